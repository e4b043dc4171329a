"""Where benchmarks leave their figures: ``results/NAME.json``, which documents quote."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any]) -> None:
    """Merge figures into ``results/NAME.json``, with the date, the commit and the machine."""
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    told = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "machine": {
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**known, **told, **figures}, indent=2) + "\n")


def commit() -> str:
    """What is checked out; ``-dirty`` if files of it are changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
