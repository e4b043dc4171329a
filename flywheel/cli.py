"""The command line: parse, call, print. Every command that prints results takes ``--json``.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by the user.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flywheel import __version__, config, doctor, leaderboard
from flywheel.errors import DataError, FlywheelError, RequestError
from flywheel.progress import display
from flywheel.storage import Storage
from flywheel.stores import open_store

app = typer.Typer(
    name="flywheel",
    help="Prove, on production's own traffic, whether a small model can replace a big one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)
out = Console() if sys.stdout.isatty() else Console(width=160)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StorageOption = Annotated[
    str, typer.Option("--storage", help="Folder or URL where runs are kept.", show_default=True)
]


def main() -> None:
    """Run the program; errors made on purpose print as sentences, never as tracebacks."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except FlywheelError as error:
        err.print(f"[bold red]flywheel:[/] {_plain(error)}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a field: methods.lora.rank=8."),
    ] = None,
    logs: Annotated[str | None, typer.Option(help="Read logs from here instead.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest unfinished run of this file.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else none.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show the libraries' own logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment: curate, train, answer, score, judge, rank."""
    from flywheel import pipeline

    overrides = [*(settings or []), *([f"logs={json.dumps(logs)}"] if logs else [])]
    loaded = config.load(experiment, overrides)
    run_id = pipeline.unfinished_run(loaded) if resume else None
    if resume and run_id is None:
        raise RequestError(f"{experiment}: no unfinished run of it in {loaded.storage}")
    run_id = run_id or pipeline.new_run_id(loaded)
    if not verbose:
        os.environ.setdefault("TQDM_DISABLE", "1")
        logging.disable(logging.WARNING)
    where = f"run [bold]{run_id}[/] in {Storage(loaded.storage).url}"
    err.print(where, highlight=False, soft_wrap=True)
    shown = display(err)
    try:
        outcome = pipeline.run(loaded, run_id, address, shown)
    finally:
        shown.close()
    for warning in outcome.warnings:
        err.print(f"[yellow]warning:[/] {_escape(warning)}", highlight=False)
    _print_board(outcome.folder, as_json=as_json)
    if not as_json:
        out.print(f"report  {outcome.folder.url}/report.html", soft_wrap=True, highlight=False)
        ui = f"mlflow ui --backend-store-uri {outcome.tracking_uri}"
        out.print(f"mlflow  {ui}", soft_wrap=True, highlight=False)


@app.command()
def results(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run's leaderboard."""
    folder = _run_folder(storage, run_id)
    if not folder.exists("leaderboard.json"):
        note = folder.read_json("run.json")
        raise RequestError(f"run {note['run']} has no leaderboard yet; it is {note['status']}")
    if markdown:
        board = leaderboard.Leaderboard.from_json(folder.read_json("leaderboard.json"))
        sys.stdout.write(leaderboard.to_markdown(board))
        return
    _print_board(folder, as_json=as_json)


@app.command("sample-logs")
def sample_logs(
    directory: Annotated[Path, typer.Argument(help="Folder to write into.")],
    records: Annotated[int, typer.Option(min=100, max=5000, help="Well-formed records.")] = 3000,
    seed: Annotated[int, typer.Option(help="Another seed is other traffic.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write synthetic traffic of a made-up web shop's assistant, defects included."""
    from dataclasses import asdict

    from flywheel.sample_logs import NOTICE, write_sample_logs

    summary = asdict(write_sample_logs(directory, records, seed))
    if as_json:
        _dump(summary)
        return
    del summary["notice"]
    out.print(NOTICE.strip(), highlight=False, soft_wrap=True)
    for name, value in summary.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        if not isinstance(value, list):
            out.print(f"  {name.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True)


@app.command()
def workloads(
    store: Annotated[str, typer.Argument(help="Log store: file, folder, glob or URL.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a log store: workloads, clients, records, class mix, time range."""
    from dataclasses import asdict

    found = open_store(store).workloads()
    if not found:
        raise DataError(f"{store}: holds no lines")
    if as_json:
        _dump([asdict(summary) for summary in found])
        return
    table = Table(
        "workload", "records", "rejected", "clients", "classes", "from", "to", show_lines=True
    )
    for one in found:
        table.add_row(
            _escape(one.workload_id) or "[dim](none named)[/]",
            str(one.records),
            _counts(one.rejected),
            _counts(one.clients),
            _counts(one.classes),
            _day(one.first),
            _day(one.last),
        )
    out.print(table)


@app.command("doctor")
def doctor_command(
    address: Annotated[str | None, typer.Option(help="Ray cluster to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine and cluster can run."""
    checks = doctor.checks(address)
    if as_json:
        _dump([check.to_json() for check in checks])
    else:
        table = Table("", "what", "found")
        for check in checks:
            mark = "[green]✓[/]" if check.good else "[red]✗[/]"
            table.add_row(mark, check.what, _escape(check.found))
        out.print(table)
    if not all(check.good for check in checks):
        raise FlywheelError("something that runs need is missing; see the marked lines")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


def _run_folder(storage: str, run_id: str | None) -> Storage:
    runs = Storage(storage).at("runs")
    names = [name for name in runs.names() if runs.at(name).exists("run.json")]
    if not names:
        raise RequestError(f"{runs.url}: holds no runs")
    if run_id is None:
        return max((runs.at(n) for n in names), key=lambda f: f.read_json("run.json")["started_at"])
    if run_id not in names:
        raise RequestError(f"no run {run_id} in {runs.url}; there are: {', '.join(names[-5:])}")
    return runs.at(run_id)


def _print_board(folder: Storage, *, as_json: bool) -> None:
    data = folder.read_json("leaderboard.json")
    if as_json:
        _dump(data)
        return
    board = leaderboard.Leaderboard.from_json(data)
    columns, rows = leaderboard.table(board)
    # Long names of metrics may break between words; figures and names of trials may not.
    headers = [column.replace("_", " ") for column in columns]
    table = Table(*headers, title=folder.url.rsplit("/", 1)[-1], title_justify="left")
    table.columns[columns.index("trial")].no_wrap = True
    for row in rows:
        table.add_row(*map(_escape, row))
    out.print(table)
    for sentence in (_judge_sentence(board.calibration), board.note, leaderboard.verdict(board)):
        if sentence:
            out.print(_escape(sentence), highlight=False, soft_wrap=True)


def _judge_sentence(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return ""
    auc = "no verdicts" if calibration["auc"] is None else f"ROC AUC {calibration['auc']:.2f}"
    trusted = "trusted" if calibration["trusted"] else "not trusted"
    floor, n = calibration["floor"], calibration["n"]
    return f"judge   {calibration['judge']}: {auc} over {n} verdicts, floor {floor:g}: {trusted}"


def _counts(counts: dict[str, int]) -> str:
    first = sorted(counts.items(), key=lambda item: -item[1])
    more = [f"and {len(first) - 8} more"] if len(first) > 8 else []
    return _escape("\n".join([*(f"{name[:40]} {n}" for name, n in first[:8]), *more]))


def _day(timestamp: float | None) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M}" if timestamp else ""


def _dump(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain(error: Exception) -> str:
    return _escape(str(error))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
