"""The command line, put together from `flywheel.commands`.

Every command that prints results takes ``--json``. Exit codes: 0 done, 1 the work failed, 2 the
request was wrong, 130 stopped by the user.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from typing import Annotated

import typer

from flywheel import __version__, printing
from flywheel.commands import data, parity, run, runs, setup
from flywheel.errors import FlywheelError, RequestError
from flywheel.logs import environment, fields, log

app = typer.Typer(
    name="flywheel",
    help="Prove, on production's own traffic, whether a small model can replace a big one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run.run,
    runs.results,
    runs.label,
    runs.report,
    runs.status,
    runs.sync,
    parity.parity,
    data.ingest,
    data.curate,
    data.datasets,
    data.sample_logs,
    data.workloads,
    setup.schema,
    setup.doctor,
):
    app.command()(command)


def main() -> None:
    """Run the program; errors made on purpose print as sentences, never as tracebacks."""
    signal.signal(signal.SIGTERM, _interrupt)
    atexit.register(_end_at_once)
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


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        printing.out.print(__version__, highlight=False)
        raise typer.Exit


def _end_at_once() -> None:
    """Spare Python the last look for garbage, a second over what libraries have made.

    Triton's binding, where something has loaded it, would complain of what is left.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def _plain(error: Exception) -> str:
    return printing.escape(str(error))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
