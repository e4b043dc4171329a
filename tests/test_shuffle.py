"""Rows come back from parts in the order they are asked for."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa

from flywheel.shuffle import take, write_part
from flywheel.storage import Storage


def part(start: int, count: int) -> pa.Table:
    names = pa.array([f"tool {i % 3 + start % 2}" for i in range(count)]).dictionary_encode()
    return pa.table({"n": pa.array(range(start, start + count)), "tools": names})


def test_rows_come_back_in_the_order_they_are_asked_for(tmp_path: Path) -> None:
    scratch = Storage(str(tmp_path))
    parts = {"a": part(0, 1300), "b": part(1300, 7), "c": part(1307, 900)}
    for name, rows in parts.items():
        write_part(scratch, name, rows)
    places = [(p, r) for p, rows in enumerate(parts.values()) for r in range(rows.num_rows)]
    asked = random.Random(3).sample(places, 500)
    number, row = np.array(asked, np.int32).T
    got = take(scratch, list(parts), number, row, ["tools", "n"]).to_pylist()
    tables = [rows.to_pylist() for rows in parts.values()]
    assert got == [{"tools": t["tools"], "n": t["n"]} for p, r in asked for t in [tables[p][r]]]
