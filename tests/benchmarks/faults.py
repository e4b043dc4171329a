"""How long it takes until work goes on, for each row of ``docs/faults.md``.

    python -m tests.benchmarks.faults [FILE ...]

runs the tests that the rows name, all or those in some files, and writes what they tell
(`tests.recovery`) to ``results/faults.json`` and into the table. Other rows stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests import recovery

from . import results

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "faults.md"
TIME = 4
"""The column of the time to recover."""
UNKNOWN = "not measured yet"
"""What stands there before."""
FILES = (
    "e2e/test_engine_start.py", "e2e/test_run_killed.py", "ray/test_disk_full.py",
    "ray/test_fanout.py", "ray/test_keeper.py",
    "ray/test_nodes.py", "ray/test_nodes_lost.py", "ray/test_rubbish_endpoint.py",
    "services/test_elasticsearch.py", "services/test_service_faults.py",
    "services/test_tracking.py",
)  # fmt: skip
"""Where tests tell how long it took."""


def main() -> None:
    """Run the tests and write down what they tell."""
    files = sys.argv[1:] or [str(TESTS / name) for name in FILES]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "told.jsonl"
        environment = {**os.environ, recovery.VARIABLE: str(lines)}
        command = [sys.executable, "-m", "pytest", "-q", "-k", " or ".join(named()), *files]
        code = subprocess.run(command, env=environment, cwd=TESTS.parent, check=False).returncode
        if code:
            sys.exit(code)
        told = [json.loads(line) for line in lines.read_text().splitlines()]
    known = json.loads(path.read_text())["faults"] if (path := written()).exists() else {}
    commit = results.commit()
    for one in told:
        fault, seconds = one.pop("fault"), [round(s, 2) for s in one["seconds"]]
        known[fault] = {**one, "seconds": seconds, "commit": commit}
    results.write("faults", {"faults": dict(sorted(known.items()))})
    TABLE.write_text("".join(_filled(line, known) for line in TABLE.read_text().splitlines(True)))


def named() -> list[str]:
    """Functions of tests that rows name."""
    return sorted(set(re.findall(r"`(test_[^`\[]+)", TABLE.read_text())))


def cells(line: str) -> list[str]:
    """Of a line of a table; none of another line."""
    return [cell.strip() for cell in line.strip("|\n").split("|")] if line.startswith("| ") else []


def _filled(line: str, known: dict[str, Any]) -> str:
    found = cells(line)
    if not found or found[0] not in known:
        return line
    found[TIME] = cell(known[found[0]])
    return f"| {' | '.join(found)} |\n"


def written() -> Path:
    """Where the figures are."""
    return results.FOLDER / "faults.json"


def cell(told: dict[str, Any]) -> str:
    """A row's time, as the table has it."""
    seconds = told["seconds"]
    if len(seconds) == 1:
        return f"{_digits(seconds[0])} s to {told['until']}"
    among = f"{_digits(min(seconds))} to {_digits(max(seconds))} s in {len(seconds)} times"
    return f"{_digits(median(seconds))} s to {told['until']} ({among})"


def _digits(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 9.95 else f"{seconds:.1f}"


if __name__ == "__main__":
    main()
