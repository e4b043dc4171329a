"""``flywheel parity``: whether served models answer as they do outside the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flywheel import config, printing
from flywheel.commands.options import Address, AsJson, Settings, StorageOption, hush
from flywheel.errors import ParityError, RequestError
from flywheel.progress import display
from flywheel.storage import Storage


def parity(
    what: Annotated[str, typer.Argument(metavar="EXPERIMENT|RUN", help="A file, or a run's id.")],
    settings: Settings = None,
    storage: StorageOption = "flywheel-data",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check that served models answer as they do outside the engine, adapters of a run too."""
    from flywheel import paritycheck

    hush()
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
