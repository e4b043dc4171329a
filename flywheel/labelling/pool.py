"""The pairs of a run that people can look at, which of them comes next, and what labels change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import yaml

from flywheel import config, curation, judging, report
from flywheel.errors import RequestError
from flywheel.folders import Desk
from flywheel.inference import read
from flywheel.judging.labels import Drawn, Label, Labels
from flywheel.judging.pairs import Pair, pair_of
from flywheel.leaderboard import Leaderboard
from flywheel.statistics import conversations
from flywheel.storage import Storage
from flywheel.types import Json, Record


@dataclass(frozen=True, slots=True)
class Item:
    """A pair with what the judges made of it."""

    pair: Pair
    record_id: str
    value: float | None
    """The judges' value, 0..1."""
    doubt: float
    """How much a label would tell: how near the value lies to the threshold, how far judges are
    apart, how unsure they are by their own log-probabilities, whichever is most; 0..0.5."""

    @property
    def key(self) -> str:
        """The pair's key."""
        return self.pair.key


class Pool:
    """The rated pairs of a run, each once, and the labels of its dataset.

    Raises:
        RequestError: The run was not judged.
    """

    def __init__(self, storage: Storage, run: Storage) -> None:
        """Read a run that is finished, or at least judged."""
        if not run.exists("calibration.json"):
            raise RequestError(f"{run.url}: no judge has rated anything in this run")
        calibration = run.read_json("calibration.json")
        if "by_metric" not in calibration:
            raise RequestError(f"{run.url}: was judged by an earlier version; run it anew")
        self._desk, self._run = Desk(storage, run.url.rsplit("/", 1)[-1]), run
        dataset = run.read_json("run.json")["dataset"]
        data = yaml.safe_load(run.read_bytes("experiment.yaml"))
        self._experiment = config.validate(data, f"{run.url}/experiment.yaml")
        self._records = curation.load_split(storage, dataset, "eval")
        trials = run.at("trials")
        self._trials = {key: trials.at(key) for key in trials.names()}
        self.labels = Labels(storage, dataset)
        self.items = self._items(calibration["metric"])
        """By the pair's key."""
        self._by_doubt = sorted(self.items.values(), key=lambda item: (-item.doubt, item.key))
        self._at_random = sorted(self.items.values(), key=lambda item: item.key)

    @property
    def labelled(self) -> int:
        """How many of its pairs have a label."""
        return sum(key in self.labels.by_pair for key in self.items)

    def next(self) -> tuple[Item, Drawn] | None:
        """The next to look at: the most informative one and one drawn at random, by turns."""
        mine = [label for key, label in self.labels.by_pair.items() if key in self.items]
        informative = sum(label.drawn == "informative" for label in mine)
        drawn: Drawn = "random" if 2 * informative > len(mine) else "informative"
        order = self._at_random if drawn == "random" else self._by_doubt
        waiting = (item for item in order if item.key not in self.labels.by_pair)
        item = next(waiting, None)
        return None if item is None else (item, drawn)

    def order(self) -> list[tuple[Item, Drawn]]:
        """All that have no label, in the order in which `next` would give them."""
        left = {key for key in self.items if key not in self.labels.by_pair}
        orders = {"informative": iter(self._by_doubt), "random": iter(self._at_random)}
        found: list[tuple[Item, Drawn]] = []
        while left:
            drawn: Drawn = "random" if len(found) % 2 else "informative"
            item = next(item for item in orders[drawn] if item.key in left)
            left.remove(item.key)
            found.append((item, drawn))
        return found

    def label(self, said: Mapping[str, tuple[bool | None, Drawn]]) -> None:
        """Keep what a person said of pairs, by key.

        Raises:
            RequestError: A pair is none of this run's.
        """
        strange = [key for key in said if key not in self.items]
        if strange:
            raise RequestError(f"no pair {strange[0][:40]!r} in {self._run.url}")
        self.labels.add(
            Label(self.items[key].pair, self.items[key].record_id, good, drawn)
            for key, (good, drawn) in said.items()
        )

    def close(self) -> Json:
        """Write what the labels say into the run's files, and give what they say of each metric.

        Those files are the calibration and, where the run is ranked, its board and its report.
        """
        calibration = judging.relabelled(
            self._run,
            self._trials,
            self.labels,
            self._experiment.judging.threshold,
            conversations(self._records, self._experiment.dataset.group_by),
        )
        if self._run.exists("leaderboard.json"):
            board = Leaderboard.from_json(self._run.read_json("leaderboard.json"))
            self._run.write_json(
                "leaderboard.json", replace(board, calibration=calibration).to_json()
            )
            page = report.render(report.read(self._desk))
            self._run.write_bytes("report.html", page.encode("utf-8", "replace"))
        found = judging.by_metric(calibration)
        return {metric: one["human"] for metric, one in found.items()}

    def _items(self, metric: str) -> dict[str, Item]:
        by_id = {record.id: record for record in self._records}
        threshold = self._experiment.judging.threshold
        return {
            item.key: item
            for key, rows in judging.verdicts(self._trials, metric).items()
            for item in _of_trial(self._trials[key], rows, by_id, threshold)
        }


def _of_trial(
    trial: Storage, rows: Sequence[Json], records: Mapping[str, Record], threshold: float
) -> list[Item]:
    verdicts = {row["record_id"]: row for row in rows}
    return [
        Item(
            pair_of(records[c.record_id], c.message),
            c.record_id,
            verdicts[c.record_id]["value"],
            _doubt(verdicts[c.record_id], threshold),
        )
        for c in read(trial.at("completions"))
        if c.message is not None and c.record_id in verdicts
    ]


def _doubt(row: Json, threshold: float) -> float:
    judges = list(row["judges"].values())
    values = [float(judge["value"]) for judge in judges if judge["value"] is not None]
    if row["value"] is None or not values:
        return 0.0
    near = 0.5 - min(0.5, abs(float(row["value"]) - threshold))
    apart = (max(values) - min(values)) / 2
    return max(near, apart, *(float(judge["spread"] or 0) for judge in judges))


DRAWN: tuple[Drawn, ...] = get_args(Drawn)
