"""``flywheel run``: an experiment to its leaderboard, in this process or as a job on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flywheel import config, printing
from flywheel.commands.options import Address, AsJson, LogsOption, Settings, hush, overrides
from flywheel.errors import Interrupted, RequestError
from flywheel.logs import Format, configure, fields, log
from flywheel.progress import Logged, display
from flywheel.storage import Storage


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
    if log_texts and not log_format:
        raise RequestError("--log-texts says what a log may hold: name --log-format, too")
    if submit is not None and address is not None:
        raise RequestError("--submit sends the run to a cluster, --address joins one: name one")
    changes = overrides(settings, logs)
    loaded = config.load(experiment, changes)
    if submit is not None:
        flags = {"--fresh": fresh, "--verbose": verbose, "--log-texts": log_texts}
        log_as = [f"--log-format={log_format}"] if log_format else []
        settings_again = [f"--set={one}" for one in changes]
        arguments = [*settings_again, *(name for name, given in flags.items() if given), *log_as]
        _submit(submit, experiment, loaded, arguments, resume=resume, as_json=as_json)
        return
    if log_format:
        configure(log_format, texts=log_texts)
    run_id = _run_id(experiment, loaded, resume=resume)
    if not verbose:
        hush()
    _announce(loaded, run_id, logged=log_format is not None)
    _run_here(loaded, run_id, address, logged=log_format is not None, fresh=fresh, as_json=as_json)


def _run_id(file: Path, experiment: config.Experiment, *, resume: bool) -> str:
    from flywheel import runs

    if not resume:
        return runs.new_id(experiment)
    unfinished = runs.unfinished(experiment)
    if unfinished is None:
        raise RequestError(f"{file}: no unfinished run of it in {experiment.storage}")
    return unfinished


def _announce(experiment: config.Experiment, run_id: str, *, logged: bool) -> None:
    """Tell which run it is and where, and what its eval records can show."""
    from flywheel import preflight

    place = Storage(experiment.storage).url
    if logged:
        log.info("run", extra=fields(run=run_id, storage=place))
    else:
        where = f"run [bold]{run_id}[/] in {place}"
        printing.err.print(where, highlight=False, soft_wrap=True)
    planned = preflight.power(experiment, experiment.dataset.eval_size)
    printing.warnings(preflight.power_warning(experiment, planned))


def _run_here(
    experiment: config.Experiment,
    run_id: str,
    address: str | None,
    *,
    logged: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Run it in this process and show what came of it."""
    from flywheel import pipeline

    shown = Logged() if logged else display(printing.err)
    try:
        outcome = pipeline.run(experiment, run_id, address, shown, fresh=fresh)
    finally:
        shown.close()
    printing.warnings(outcome.warnings)
    printing.board(outcome.folder, as_json=as_json)
    if as_json:
        return
    ui = f"mlflow ui --backend-store-uri {outcome.tracking_uri}"
    for line in (f"report  {outcome.folder.url}/report.html", f"mlflow  {ui}"):
        printing.out.print(line, soft_wrap=True, highlight=False)


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

    hush()
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
