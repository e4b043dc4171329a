"""The table of faults says what tests make happen and how long that took, row by row."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.benchmarks import faults

TESTS = Path(__file__).parent
HEAD = ["fault", "what you see", "what is lost", "what brings it back", "time to recover", "test"]


LINES = [cells for line in faults.TABLE.read_text().splitlines() if (cells := faults.cells(line))]
ROWS = [cells for cells in LINES if cells != HEAD]
MEASURED = json.loads(faults.written().read_text())["faults"]


def test_every_table_has_these_columns() -> None:
    assert LINES.count(HEAD) == 2
    assert {len(row) for row in ROWS} == {len(HEAD)}


def test_every_measurement_has_its_row() -> None:
    assert MEASURED.keys() <= {row[0] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_row_says_what_its_test_measured(row: list[str]) -> None:
    told = MEASURED.get(row[0])
    assert row[faults.TIME] == (faults.cell(told) if told else faults.UNKNOWN)
    assert told is None or f"`{told['test']}`" in row[5]


def test_the_tests_that_rows_name_exist() -> None:
    there = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef)
    }
    assert faults.named()
    assert set(faults.named()) <= there
