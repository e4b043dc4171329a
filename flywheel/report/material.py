"""What a report is made from, as a finished run leaves it on disk.

Nothing but files is read: no Ray, no network, no model. The leaderboard must be there; where the
dataset has gone, the page does without records. The answers and scores of a few trials are enough,
so a sweep of hundreds is no larger a page than one of five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from flywheel import inference
from flywheel.cascading import read_handed_over
from flywheel.folders import REFERENCES, Desk, read_scores
from flywheel.leaderboard import Leaderboard, Row
from flywheel.scoring import References
from flywheel.types import Completion, Json, Record, Score

FEATURED = 6
"""Rows of the board whose answers are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Material:
    """A run's results with what they rest on."""

    board: Leaderboard
    experiment: Json
    """The run's ``experiment.yaml``, defaults filled in."""
    manifest: Json
    """The dataset's ``manifest.json``; empty where the dataset has gone."""
    records: Sequence[Record]
    """The eval records, each with what is expected as its answer: what production said, or what a
    ground-truth file says of it."""
    classes: Mapping[str, str]
    """A record's id -> its class in the dataset."""
    completions: Mapping[str, Sequence[Completion]]
    """Of the `featured` rows, by key; so the next."""
    scores: Mapping[str, Sequence[Score]]
    """All metrics."""
    results: Mapping[str, Json]
    """Their ``result.json``: what a stage measured is shown even where the board has no place."""
    handed_over: Mapping[str, Mapping[str, str]]
    """Of cascades, why each record that production answered was handed over."""


def read(desk: Desk) -> Material:
    """Read a run.

    Raises:
        StorageError: The run has no leaderboard yet, or a file cannot be read.
    """
    board = Leaderboard.from_json(desk.run.read_json("leaderboard.json"))
    folders = {r.result.key: desk.of(r.result) for r in featured(board)}
    dataset = desk.storage.at("datasets", board.dataset)
    kept = bool(board.dataset) and dataset.exists("manifest.json")
    rows = dataset.read_table("eval").to_pylist() if kept else []
    return Material(
        board=board,
        experiment=yaml.safe_load(desk.run.read_bytes("experiment.yaml")),
        manifest=dataset.read_json("manifest.json") if kept else {},
        records=_expected(desk, board, [Record.from_row(row) for row in rows]),
        classes={row["id"]: row.get("class") or "" for row in rows},
        completions={key: inference.read(f.at("completions")) for key, f in folders.items()},
        scores={key: read_scores(folder) for key, folder in folders.items()},
        results={
            key: folder.read_json("result.json")
            for key, folder in folders.items()
            if folder.exists("result.json")
        },
        handed_over={key: read_handed_over(folder) for key, folder in folders.items()},
    )


def _expected(desk: Desk, board: Leaderboard, records: list[Record]) -> list[Record]:
    """A record that a ground-truth file does not name is not scored, and stays as it is."""
    if not board.ground_truth or not records:
        return records
    truth = References.of_rows(desk.run.read_lines(REFERENCES))
    return [truth.of(record) or record for record in records]


def featured(board: Leaderboard) -> list[Row]:
    """What a reader looks at more closely.

    What the verdict is about, the best, the first of the cascades, then trials by rank: other
    cascades get wrong what their trials do, less what is handed over.
    """
    cascades = [row for row in board.ranked if row.result.cascade]
    first = [row for row in (board.foremost, board.best, *cascades[:1]) if row is not None]
    rows = [*first, *(row for row in board.ranked if not row.result.cascade)]
    by_key = {row.result.key: row for row in rows}
    return list(by_key.values())[:FEATURED]
