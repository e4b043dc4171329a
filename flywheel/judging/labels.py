"""What people say of answers that judges have rated, and what that makes of the judges.

A label belongs to a pair's content, so it holds in every run on the dataset. People see the most
informative pairs first, which says much about a judge and nothing about an average; so every
other pair is the next of a random order (that of the pairs' hashes), and figures that speak for all
answers (agreement, rates, the corrected score) rest on that random sample alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from flywheel.judging.pairs import Pair
from flywheel.statistics import Groups, corrected_mean
from flywheel.storage import Storage
from flywheel.types import Estimate, Json

Drawn = Literal["random", "informative"]
Rows = Mapping[str, Sequence[Json]]
"""By trial key the rows of its ``verdicts/<metric>.jsonl``."""


@dataclass(frozen=True, slots=True)
class Label:
    """One person's word on one pair."""

    pair: Pair
    """What was seen: a label says what it is about, even when its run is gone."""
    record_id: str
    good: bool | None
    """Whether the candidate's answer is as good as production's; ``None``: cannot be said."""
    drawn: Drawn
    """How the pair came before the person's eyes."""

    @property
    def key(self) -> str:
        """The pair's key."""
        return self.pair.key


class Labels:
    """The labels of a dataset, shared by all runs on it."""

    def __init__(self, storage: Storage, dataset: str) -> None:
        """Read what is there."""
        self._folder, self._name = storage.at("labels"), f"{dataset}.jsonl"
        there = self._folder.exists(self._name)
        rows = self._folder.read_lines(self._name) if there else ()
        found = (Label(**{**row, "pair": Pair(**row["pair"])}) for row in rows)
        self.by_pair = {label.key: label for label in found}

    @property
    def paraphrases(self) -> list[Pair]:
        """Answers in other words than production's that people called as good."""
        good = (one.pair for one in self.by_pair.values() if one.good)
        return [pair for pair in good if pair.candidate != pair.reference]

    def add(self, labels: Iterable[Label]) -> None:
        """Keep labels; a later one of the same pair takes the place of an earlier one.

        A pair that was drawn at random stays so, whatever it is looked at for later.
        """
        for label in labels:
            earlier = self.by_pair.get(label.key)
            drawn = "random" if earlier and earlier.drawn == "random" else label.drawn
            self.by_pair[label.key] = replace(label, drawn=drawn)
        self._folder.write_lines(self._name, [asdict(one) for one in self.by_pair.values()])


def sample(pairs: Iterable[str], labels: Mapping[str, Label]) -> dict[str, bool]:
    """The labelled pairs that are a random sample of these: the beginning of their random order.

    It ends with a pair that was drawn at random: to go on with those behind it that happen to be
    labelled for being informative would favour these.
    """
    found: dict[str, bool] = {}
    waiting: dict[str, bool] = {}
    for key in sorted(set(pairs)):
        label = labels.get(key)
        if label is None:
            break
        if label.good is not None:
            waiting[key] = label.good
        if label.drawn == "random":
            found |= waiting
            waiting = {}
    return found


def human(
    labels: Mapping[str, Label], rows: Rows, threshold: float, groups: Groups | None = None
) -> Json:
    """What labels say of the judges of one metric; empty where none is of a pair they rated.

    Args:
        labels: By pair.
        rows: The judges' verdicts on every trial's answers, and what programs said of those that
            no judge was asked about: these count for ``corrected`` alone.
        threshold: Value from which they call an answer good.
        groups: Records that belong together.

    Returns:
        ``labels``: how many pairs people decided, and ``drawn`` how many of them are the random
        sample; ``kappa`` (Cohen), ``true_positive_rate``, ``false_positive_rate``: of the judges
        against people on that sample, and the same ``overall`` (all labels, the informative ones
        too); ``corrected``: by trial key, the mean of what people would say of all its answers.
    """
    values = {row["pair"]: row["value"] for some in rows.values() for row in some}
    settled = {row["pair"] for some in rows.values() for row in some if not row["judges"]}
    known = {key: one.good for key, one in labels.items() if key in values and one.good is not None}
    if not known:
        return {}
    drawn = sample(values, labels)
    judged = {key: value for key, value in values.items() if key not in settled}
    corrected = {
        key: asdict(estimate)
        for key, some in rows.items()
        if (estimate := _corrected(some, labels, groups))
    }
    return {
        "labels": len(known),
        "drawn": len(drawn),
        **_against(drawn, judged, threshold),
        "overall": _against(known, judged, threshold),
        "corrected": corrected,
    }


def _corrected(
    rows: Sequence[Json], labels: Mapping[str, Label], groups: Groups | None
) -> Estimate | None:
    judged = {row["record_id"]: row["value"] for row in rows if row["value"] is not None}
    people = sample((row["pair"] for row in rows), labels)
    said = {
        row["record_id"]: float(people[row["pair"]])
        for row in rows
        if row["pair"] in people and row["record_id"] in judged
    }
    return corrected_mean(judged, said, groups)


def _against(
    people: Mapping[str, bool], values: Mapping[str, float | None], threshold: float
) -> Json:
    """How judges and people agree; what has no verdict is not counted."""
    from sklearn.metrics import cohen_kappa_score

    known = ((truth, values.get(key)) for key, truth in people.items())
    both = [(truth, value >= threshold) for truth, value in known if value is not None]
    good = [said for truth, said in both if truth]
    bad = [said for truth, said in both if not truth]
    said, truths = {s for _, s in both}, {t for t, _ in both}
    told = len(said) > 1 or len(truths) > 1  # else kappa is 0/0
    kappa = cohen_kappa_score(*zip(*both, strict=True)) if both and told else None
    return {
        "n": len(both),
        "kappa": None if kappa is None else float(kappa),
        "true_positive_rate": sum(good) / len(good) if good else None,
        "false_positive_rate": sum(bad) / len(bad) if bad else None,
    }
