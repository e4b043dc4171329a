"""Where figures come from: the day, the code's commit, the machine, the versions, the seed."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from flywheel import versions
from flywheel.types import Json


def of(started_at: str, seed: int) -> Json:
    """What is written beside every figure of a run.

    Args:
        started_at: When this session of the run began, ISO 8601.
        seed: The experiment's.
    """
    return {
        "date": started_at[:10],
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions.installed(),
        "seed": seed,
    }


def _commit() -> str:
    """The code's commit where it runs from a checkout, else the empty string."""
    here = Path(__file__).resolve().parents[1]
    if not (here / "pyproject.toml").is_file():
        return ""
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603 -- fixed words
            command, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
