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
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flywheel import __version__, config, doctor, leaderboard
from flywheel.errors import DataError, FlywheelError, ParityError, RequestError
from flywheel.progress import display
from flywheel.storage import Storage
from flywheel.stores import open_store

if TYPE_CHECKING:
    from flywheel.catalogue import Difference
    from flywheel.datasets import Manifest
    from flywheel.parity import Parity

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
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field: methods.lora.rank=8."),
]
LogsOption = Annotated[str | None, typer.Option("--logs", help="Read logs from here instead.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to join; default: RAY_ADDRESS, else none."),
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
    settings: Settings = None,
    logs: LogsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest unfinished run of this file.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run anew what earlier runs have finished.")
    ] = False,
    address: Address = None,
    verbose: Annotated[bool, typer.Option(help="Show the libraries' own logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment: curate, train, answer, score, judge, rank."""
    from flywheel import pipeline

    loaded = config.load(experiment, _overrides(settings, logs))
    run_id = pipeline.unfinished_run(loaded) if resume else None
    if resume and run_id is None:
        raise RequestError(f"{experiment}: no unfinished run of it in {loaded.storage}")
    run_id = run_id or pipeline.new_run_id(loaded)
    if not verbose:
        _hush()
    where = f"run [bold]{run_id}[/] in {Storage(loaded.storage).url}"
    err.print(where, highlight=False, soft_wrap=True)
    planned = pipeline.power(loaded, loaded.dataset.eval_size)
    _print_warnings(pipeline.power_warning(loaded, planned))
    shown = display(err)
    try:
        outcome = pipeline.run(loaded, run_id, address, shown, fresh=fresh)
    finally:
        shown.close()
    _print_warnings(outcome.warnings)
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


@app.command("parity")
def parity_command(
    what: Annotated[str, typer.Argument(metavar="EXPERIMENT|RUN", help="A file, or a run's id.")],
    settings: Settings = None,
    storage: StorageOption = "flywheel-data",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check that served models answer as they do outside the engine, adapters of a run too."""
    from flywheel import paritycheck

    _hush()
    shown = display(err)
    try:
        if Path(what).is_file():
            loaded = config.load(what, settings or [])
            found = paritycheck.of_experiment(loaded, address, shown)
        else:
            if settings:
                raise RequestError("--set is for an experiment file; a run is checked as it was")
            found = paritycheck.of_run(Storage(storage), what, address, shown)
    finally:
        shown.close()
    _print_parity(found, as_json=as_json)
    failed = [f"{label}: {one.first_difference}" for label, one in found.items() if not one.passed]
    if failed:
        raise ParityError("\n".join(failed))


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs to read.")],
    to: Annotated[str, typer.Option("--to", help="Log store: elasticsearch://host:9200/index.")],
    workload_id: Annotated[str, typer.Option(help="For exports that name no workload.")] = "",
    client_id: Annotated[str, typer.Option(help="For exports that name no client.")] = "",
    as_json: AsJson = False,
) -> None:
    """Load logs, or exports in another format, into a log store; twice changes nothing."""
    from dataclasses import asdict
    from functools import partial

    from flywheel import ingest as loading

    _hush()
    shown = display(err)
    try:
        report = loading.ingest(
            files,
            to,
            partial(shown.update, f"loading into {to}"),
            workload_id=workload_id,
            client_id=client_id,
        )
    finally:
        shown.close()
    if as_json:
        _dump(asdict(report))
        return
    counts = f"{report.written} written, {report.unchanged} there already, {report.refused} refused"
    mended = f", {report.mended} mended" if report.mended else ""
    out.print(f"{report.lines} lines: {counts}{mended}", highlight=False)
    if report.listed:
        table = Table("refused", "at", "why")
        for one in report.listed[:20]:
            table.add_row(_escape(one.source), str(one.offset), _escape(one.reason))
        out.print(table)


@app.command()
def curate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    settings: Settings = None,
    logs: LogsOption = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Make an experiment's dataset and nothing else; show what became of every line."""
    from flywheel import curation
    from flywheel.cluster import connect

    loaded = config.load(experiment, _overrides(settings, logs))
    storage = Storage(loaded.storage)
    _hush()
    shown = display(err)
    try:
        shown.update("starting Ray", 0, 0)
        with connect(address):
            manifest = curation.curate(loaded, storage, shown.update)
    finally:
        shown.close()
    if as_json:
        _dump(manifest.to_json())
        return
    _print_funnel(manifest)
    out.print(f"dataset {storage.at('datasets', manifest.fingerprint).url}", soft_wrap=True)


@app.command()
def datasets(
    compare: Annotated[
        list[str] | None, typer.Argument(help="Two fingerprints (or their beginnings) to compare.")
    ] = None,
    storage: StorageOption = "flywheel-data",
    as_json: AsJson = False,
) -> None:
    """List datasets; with two fingerprints, show what came in, what left, and what moved."""
    from flywheel import catalogue

    place = Storage(storage)
    if not compare:
        _print_datasets(catalogue.manifests(place), as_json=as_json)
        return
    if len(compare) != 2:
        raise RequestError(f"datasets: name two to compare, not {len(compare)}")
    old, new = (catalogue.find(place, name) for name in compare)
    _print_difference(catalogue.difference(place, old, new), as_json=as_json)


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


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, from which editors complete them."""
    _dump(config.schema())


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


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        err.print(f"[yellow]warning:[/] {_escape(warning)}", highlight=False)


def _hush() -> None:
    """Keep the libraries' own logs and bars off the terminal."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)


def _overrides(settings: list[str] | None, logs: str | None) -> list[str]:
    return [*(settings or []), *([f"logs={json.dumps(logs)}"] if logs else [])]


def _print_funnel(manifest: Manifest) -> None:
    from flywheel.report import funnel

    table = Table(
        "", "", "records", "left before it", title=manifest.workload, title_justify="left"
    )
    table.columns[2].justify = "right"
    for step in funnel(manifest.to_json()):
        bar = "█" * max(1, round(step.share / 4)) if step.count else ""
        table.add_row(step.name, f"[cyan]{bar}[/]", str(step.count), _escape(step.lost))
    out.print(table)
    leaks = sum(n for pair in manifest.leak_check.values() for n in pair.values())
    sentences = [f"leaks   {leaks} shared requests or near-duplicate texts between splits"]
    for name in ("rejected", "normalised", "masked"):
        if counts := getattr(manifest, name):
            listed = ", ".join(f"{reason} {n}" for reason, n in counts.items())
            sentences.append(f"{name:<7} {listed}")
    if manifest.contradictions["requests"]:
        told = "{requests} requests were answered in several ways ({records} records)"
        sentences.append(f"answers {told.format(**manifest.contradictions)}")
    if manifest.rare_classes:
        rare = ", ".join(f"{name} (not in {s})" for name, s in manifest.rare_classes.items())
        sentences.append(f"rare    {rare[:400]}")
    for sentence in sentences:
        out.print(_escape(sentence), highlight=False, soft_wrap=True)


def _print_datasets(found: list[Manifest], *, as_json: bool) -> None:
    if as_json:
        _dump([manifest.to_json() for manifest in found])
        return
    from flywheel.datasets import SPLITS

    table = Table("dataset", "workload", "client", *SPLITS, "unused", "from", "to")
    for one in found:
        first, last = one.time_ranges["curated"] or (None, None)
        sizes = [str(n) for n in (*one.splits.values(), one.unused)]
        name = [one.fingerprint, _escape(one.workload), _escape(one.client or "all")]
        table.add_row(*name, *sizes, _day(first), _day(last))
    out.print(table)


def _print_difference(found: Difference, *, as_json: bool) -> None:
    if as_json:
        _dump(found.to_json())
        return
    from flywheel.datasets import SPLITS

    table = Table("split", "before", "left", "came", "stayed", "after")
    for split in SPLITS:
        counts = (c.get(split, 0) for c in (found.left, found.came, found.stayed))
        ends = found.old.splits[split], found.new.splits[split]
        table.add_row(split, str(ends[0]), *map(str, counts), str(ends[1]))
    out.print(table)
    for move, count in sorted(found.moved.items()):
        out.print(f"moved   {move}: {count}", highlight=False)
    mixes = [m.class_mix["curated"] for m in (found.old, found.new)]
    classes = Table("class", "before", "after")
    for name in sorted({**mixes[0], **mixes[1]}):
        shares = [f"{m.get(name, 0)} ({m.get(name, 0) / sum(m.values()):.1%})" for m in mixes]
        classes.add_row(_escape(name[:60]), *shares)
    out.print(classes)
    for name, (before, after) in found.rule.items():
        out.print(_escape(f"rule    {name}: {before} -> {after}"), highlight=False)


def _print_parity(found: dict[str, Parity], *, as_json: bool) -> None:
    if as_json:
        _dump({label: one.to_json() for label, one in found.items()})
        return
    names = ("prompt tokens", "same answers", "answer tokens", "mean nats", "largest nats", "")
    table = Table("model", *names)
    for label, one in found.items():
        figures = (one.mean_difference, one.largest_difference)
        nats = ["–" if figure is None else f"{figure:.3f}" for figure in figures]
        same = f"{one.same_answers} of {one.records}"
        mark = "[green]passed[/]" if one.passed else "[red]failed[/]"
        counts = [str(one.prompt_tokens), same, str(one.answer_tokens)]
        table.add_row(_escape(label), *counts, *nats, mark)
    out.print(table)


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
