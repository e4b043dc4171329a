"""Commands for setting up: what this machine can run, and what experiment files may say."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from flywheel import config, printing
from flywheel.commands.options import AsJson
from flywheel.doctor import checks
from flywheel.errors import FlywheelError


def schema() -> None:
    """Print the JSON Schema of experiment files, from which editors complete them."""
    printing.dump(config.schema())


def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine and cluster can run."""
    found = checks(address)
    if as_json:
        printing.dump([check.to_json() for check in found])
    else:
        table = Table("", "what", "found")
        for check in found:
            mark = "[green]✓[/]" if check.good else "[red]✗[/]"
            table.add_row(mark, check.what, printing.escape(check.found))
        printing.out.print(table)
    if not all(check.good for check in found):
        raise FlywheelError("something that runs need is missing; see the marked lines")
