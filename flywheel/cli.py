"""The command line: parse, call, print. Every command that prints results takes ``--json``.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by the user.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flywheel import __version__, config, doctor, leaderboard, printing
from flywheel.errors import (
    DataError,
    FlywheelError,
    Interrupted,
    ParityError,
    RequestError,
    StorageError,
    boundary,
)
from flywheel.logs import Format, configure, environment, fields, log
from flywheel.progress import Logged, display
from flywheel.storage import Storage
from flywheel.stores import open_store

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="flywheel",
    help="Prove, on production's own traffic, whether a small model can replace a big one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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


class ReportFormat(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "md"
    CSV = "csv"
    JSON = "json"


def main() -> None:
    """Run the program; errors made on purpose print as sentences, never as tracebacks."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except FlywheelError as error:
        if environment():  # what failed in the work may quote traffic
            asked = {"error": str(error)}
            told = asked if isinstance(error, RequestError) else {}
            log.error("flywheel", extra=fields(asked, exit_code=error.exit_code, **told))
        else:
            printing.err.print(
                f"[bold red]flywheel:[/] {_plain(error)}", soft_wrap=True, highlight=False
            )
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
    submit: Annotated[
        str | None,
        typer.Option(
            "--submit", metavar="URL", help="Send it as a job to this Ray head: http://head:8265."
        ),
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option(help="Show the libraries' own logs.")] = False,
    log_format: Annotated[
        Format | None,
        typer.Option("--log-format", help="Log what happens, a line each, instead of bars."),
    ] = None,
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Prompts and answers may stand in the log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment: curate, train, answer, score, judge, rank."""
    from flywheel import pipeline, preflight, runs

    if log_texts and not log_format:
        raise RequestError("--log-texts says what a log may hold: name --log-format, too")
    overrides = _overrides(settings, logs)
    loaded = config.load(experiment, overrides)
    if submit is not None:
        if address is not None:
            raise RequestError("--submit sends the run to a cluster, --address joins one: name one")
        flags = {"--fresh": fresh, "--verbose": verbose, "--log-texts": log_texts}
        log_as = [f"--log-format={log_format}"] if log_format else []
        arguments = [
            *(f"--set={one}" for one in overrides),
            *(f for f in flags if flags[f]),
            *log_as,
        ]
        _submit(submit, experiment, loaded, arguments, resume=resume, as_json=as_json)
        return
    if log_format:
        configure(log_format, texts=log_texts)
    run_id = runs.unfinished(loaded) if resume else None
    if resume and run_id is None:
        raise RequestError(f"{experiment}: no unfinished run of it in {loaded.storage}")
    run_id = run_id or runs.new_id(loaded)
    if not verbose:
        _hush()
    place = Storage(loaded.storage).url
    if log_format:
        log.info("run", extra=fields(run=run_id, storage=place))
    else:
        where = f"run [bold]{run_id}[/] in {place}"
        printing.err.print(where, highlight=False, soft_wrap=True)
    planned = preflight.power(loaded, loaded.dataset.eval_size)
    printing.warnings(preflight.power_warning(loaded, planned))
    shown = Logged() if log_format else display(printing.err)
    try:
        outcome = pipeline.run(loaded, run_id, address, shown, fresh=fresh)
    finally:
        shown.close()
    printing.warnings(outcome.warnings)
    printing.board(outcome.folder, as_json=as_json)
    if not as_json:
        printing.out.print(
            f"report  {outcome.folder.url}/report.html", soft_wrap=True, highlight=False
        )
        ui = f"mlflow ui --backend-store-uri {outcome.tracking_uri}"
        printing.out.print(f"mlflow  {ui}", soft_wrap=True, highlight=False)


def _submit(
    address: str,
    file: Path,
    experiment: config.Experiment,
    arguments: list[str],
    *,
    resume: bool,
    as_json: bool,
) -> None:
    """Send the run as a job, or find the one that was sent; follow it to its end."""
    from dataclasses import asdict

    from flywheel.submitting import Jobs, command_for

    _hush()
    command = command_for(file, [*arguments, *(["--resume"] if resume else [])])
    jobs = Jobs(address)
    job = jobs.find(experiment) if resume else None
    if job is None or job.status in {"FAILED", "STOPPED"}:
        job = jobs.submit(command, experiment)
    printing.err.print(f"job [bold]{job.id}[/] at {address}", highlight=False, soft_wrap=True)
    shown = sys.stderr if as_json else sys.stdout
    try:
        job = jobs.follow(job, lambda text: print(text, end="", file=shown, flush=True))
    except KeyboardInterrupt:
        raise Interrupted(
            f"detached; job {job.id} goes on. Come back with the same command and --resume; "
            f"end it with: ray job stop {job.id} --address {address}"
        ) from None
    if as_json:
        printing.dump(asdict(job))
    if job.status != "SUCCEEDED":
        printing.err.print(f"job {job.id} {job.status}: {printing.escape(job.message)}")
        raise typer.Exit(job.exit_code or 1)


@app.command()
def results(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run's leaderboard."""
    folder = _run_folder(storage, run_id)
    board = _board(folder)
    if markdown:
        sys.stdout.write(leaderboard.to_markdown(board))
        return
    printing.board(folder, as_json=as_json)


@app.command("label")
def label_command(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here, not on a page.")] = False,
    write_csv: Annotated[
        Path | None, typer.Option("--write-csv", help="Write the pairs to label, and stop.")
    ] = None,
    read_csv: Annotated[
        Path | None, typer.Option("--read-csv", help="Take labels from such a file.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Label answers that a judge has rated; show how far judge and people agree."""
    from flywheel import labelling

    if write_csv and read_csv:
        raise RequestError("--write-csv and --read-csv: one at a time")
    pool = labelling.Pool(Storage(storage), _run_folder(storage, run_id))
    if write_csv:
        count = labelling.sheet.write(pool, write_csv)
        printing.err.print(f"{count} pairs in {printing.escape(str(write_csv))}", highlight=False)
        return
    try:
        if read_csv:
            labelling.sheet.read(pool, read_csv)
        elif terminal:
            labelling.terminal.ask(pool, printing.err)
        else:
            server = labelling.page.LabelServer(pool, port)
            printing.err.print(f"label on {server.url}", highlight=False, soft_wrap=True)
            server.serve()
    except KeyboardInterrupt:
        pass  # what was said is kept
    printing.labels(pool.close(), as_json=as_json)


@app.command("report")
def report_command(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run; default: the latest.")
    ] = None,
    storage: StorageOption = "flywheel-data",
    form: Annotated[
        ReportFormat, typer.Option("--format", help="The page, or the board alone.")
    ] = ReportFormat.HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: the run's report.html, else the terminal."),
    ] = None,
) -> None:
    """Make a run's report anew from its files: one HTML page, or the board for other programs."""
    folder = _run_folder(storage, run_id)
    text = _written(form, storage, folder)
    if form is not ReportFormat.HTML and out is None:
        sys.stdout.write(text)
        return
    data = text.encode("utf-8", "replace")
    if out is None:
        folder.write_bytes("report.html", data)
    else:
        with boundary(StorageError, f"writing {out}"):
            out.write_bytes(data)
    where = out or f"{folder.url}/report.html"
    printing.out.print(f"report  {where}", soft_wrap=True, highlight=False)


@app.command("status")
def status_command(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    once: Annotated[bool, typer.Option("--once", help="Print it once, do not follow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands, and follow it to its end: stages, trials, engines, money."""
    from flywheel import status

    folder = _run_folder(storage, run_id)
    if as_json:
        printing.dump(status.read(folder).to_json())
    elif once:
        printing.out.print(status.view(status.read(folder)))
    else:
        status.show(folder, printing.out)


@app.command()
def sync(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    storage: StorageOption = "flywheel-data",
) -> None:
    """Send MLflow what it lacks of a run; twice changes nothing."""
    from functools import partial

    from flywheel import recording

    _hush()
    shown = display(printing.err)
    try:
        where = recording.sync(Storage(storage), run_id, partial(shown.update, f"sending {run_id}"))
    finally:
        shown.close()
    printing.out.print(f"{run_id} is in MLflow at {where}", highlight=False, soft_wrap=True)


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
    shown = display(printing.err)
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
    printing.parity(found, as_json=as_json)
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
    shown = display(printing.err)
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
        printing.dump(asdict(report))
        return
    counts = f"{report.written} written, {report.unchanged} there already, {report.refused} refused"
    mended = f", {report.mended} mended" if report.mended else ""
    printing.out.print(f"{report.lines} lines: {counts}{mended}", highlight=False)
    if report.listed:
        table = Table("refused", "at", "why")
        for one in report.listed[:20]:
            table.add_row(printing.escape(one.source), str(one.offset), printing.escape(one.reason))
        printing.out.print(table)


@app.command()
def curate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    settings: Settings = None,
    logs: LogsOption = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Make an experiment's dataset and nothing else; show what became of every line."""
    from flywheel import curation, nodes
    from flywheel.cluster import connect

    loaded = config.load(experiment, _overrides(settings, logs))
    storage = Storage(loaded.storage)
    _hush()
    shown = display(printing.err)
    try:
        shown.update("starting Ray", 0, 0)
        with connect(address) as cluster:
            nodes.check(cluster, storage)
            manifest = curation.curate(loaded, storage, shown.update)
    finally:
        shown.close()
    if as_json:
        printing.dump(manifest.to_json())
        return
    printing.funnel(manifest)
    printing.out.print(
        f"dataset {storage.at('datasets', manifest.fingerprint).url}", soft_wrap=True
    )


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
        printing.datasets(catalogue.manifests(place), as_json=as_json)
        return
    if len(compare) != 2:
        raise RequestError(f"datasets: name two to compare, not {len(compare)}")
    old, new = (catalogue.find(place, name) for name in compare)
    printing.difference(catalogue.difference(place, old, new), as_json=as_json)


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
        printing.dump(summary)
        return
    del summary["notice"]
    printing.out.print(NOTICE.strip(), highlight=False, soft_wrap=True)
    for name, value in summary.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        if not isinstance(value, list):
            printing.out.print(
                f"  {name.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True
            )


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
        printing.dump([asdict(summary) for summary in found])
        return
    table = Table(
        "workload", "records", "rejected", "clients", "classes", "from", "to", show_lines=True
    )
    for one in found:
        table.add_row(
            printing.escape(one.workload_id) or "[dim](none named)[/]",
            str(one.records),
            printing.counts(one.rejected),
            printing.counts(one.clients),
            printing.counts(one.classes),
            printing.day(one.first),
            printing.day(one.last),
        )
    printing.out.print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, from which editors complete them."""
    printing.dump(config.schema())


@app.command("doctor")
def doctor_command(
    address: Annotated[str | None, typer.Option(help="Ray cluster to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine and cluster can run."""
    checks = doctor.checks(address)
    if as_json:
        printing.dump([check.to_json() for check in checks])
    else:
        table = Table("", "what", "found")
        for check in checks:
            mark = "[green]✓[/]" if check.good else "[red]✗[/]"
            table.add_row(mark, check.what, printing.escape(check.found))
        printing.out.print(table)
    if not all(check.good for check in checks):
        raise FlywheelError("something that runs need is missing; see the marked lines")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        printing.out.print(__version__, highlight=False)
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


def _board(folder: Storage) -> leaderboard.Leaderboard:
    if not folder.exists("leaderboard.json"):
        note = folder.read_json("run.json")
        raise RequestError(f"run {note['run']} has no leaderboard yet; it is {note['status']}")
    return leaderboard.Leaderboard.from_json(folder.read_json("leaderboard.json"))


def _written(form: ReportFormat, storage: str, folder: Storage) -> str:
    """A run's report, or its board alone."""
    board = _board(folder)
    if form is ReportFormat.MARKDOWN:
        return leaderboard.to_markdown(board)
    if form is ReportFormat.CSV:
        return leaderboard.to_csv(board)
    if form is ReportFormat.JSON:
        return json.dumps(board.to_json(), indent=2, ensure_ascii=False) + "\n"
    from flywheel import report
    from flywheel.trials import Desk

    run_id = folder.url.rsplit("/", 1)[-1]
    return report.render(report.read(Desk(Storage(storage), run_id)))


def _hush() -> None:
    """Keep the libraries' own logs and bars off the terminal."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)


def _overrides(settings: list[str] | None, logs: str | None) -> list[str]:
    return [*(settings or []), *([f"logs={json.dumps(logs)}"] if logs else [])]


def _plain(error: Exception) -> str:
    return printing.escape(str(error))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
