"""How long it takes until work goes on after a fault, told by the tests that make faults happen.

A test calls `told` with the fault's name, the first cell of its row in ``docs/faults.md``. Nothing
becomes of that unless ``FLYWHEEL_RECOVERY`` names a file: `tests.benchmarks.faults` does, and makes
``results/faults.json`` of its lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from flywheel.testing import Request

VARIABLE = "FLYWHEEL_RECOVERY"


def told(fault: str, until: str, *seconds: float) -> None:
    """Say how long it took.

    Args:
        fault: As the table names it.
        until: What had happened then, as in ``the next answer``.
        seconds: From the fault to that; where somebody must act, from then on. One for each time.
    """
    assert seconds
    assert min(seconds) >= 0
    if path := os.environ.get(VARIABLE):
        test = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0].split("::", 1)[1]
        line = {"fault": fault, "test": test, "until": until, "seconds": seconds}
        with Path(path).open("a") as out:
            out.write(json.dumps(line) + "\n")


def asked_again(requests: Iterable[Request]) -> list[float]:
    """Seconds from the first to the last request, of each question that was asked repeatedly."""
    asked: dict[str, list[float]] = {}
    for request in requests:
        asked.setdefault(str(request.body["messages"]), []).append(request.at)
    return [max(times) - min(times) for times in asked.values() if len(times) > 1]
