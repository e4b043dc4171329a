"""What several commands share: their options, and a terminal without the libraries' noise."""

from __future__ import annotations

import json
import logging
import os
from typing import Annotated

import typer

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


def hush() -> None:
    """Keep the libraries' own logs and bars off the terminal."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)


def overrides(settings: list[str] | None, logs: str | None) -> list[str]:
    """What ``--set`` and ``--logs`` change of an experiment file."""
    return [*(settings or []), *([f"logs={json.dumps(logs)}"] if logs else [])]
