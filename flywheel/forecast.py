"""How long a plan may take, from what the same work took before in the same storage.

Earlier trials left how long they trained and how fast their model answered; the new plan's work is
counted in the same units (records learned from, requests). What was never measured is said to be
unknown, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from flywheel import folders
from flywheel.config import LEARNING
from flywheel.storage import Storage
from flywheel.types import Json, Trial

Work = tuple[str, str]
"""``train`` or ``answer``, and the model; methods of one kind differ less than models do."""

_RUNS = 5
"""How many of the latest runs count."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of how long a plan may take."""

    training_s: float
    answering_s: float
    unknown: tuple[str, ...]
    """Work that was never measured here, as in ``training SmolLM2``."""

    @property
    def sentence(self) -> str:
        """For people; empty where nothing at all is known."""
        known = self.training_s + self.answering_s
        if not known:
            return ""
        text = f"about {_told(known)} by earlier runs"
        return f"{text}; not measured yet: {', '.join(self.unknown)}" if self.unknown else text


def speeds(runs: Iterable[Storage]) -> dict[Work, float]:
    """Seconds per record learned from, and per request, in the median of earlier trials.

    Args:
        runs: Folders of runs, the newest first; the latest few with measured trials count.
    """
    found: dict[Work, list[float]] = {}
    used = 0
    for run in runs:
        measured = [one for key in run.at("trials").names() for one in _of(run.at("trials", key))]
        for work, speed in measured:
            found.setdefault(work, []).append(speed)
        used += bool(measured)
        if used == _RUNS:
            break
    return {work: median(values) for work, values in found.items()}


def forecast(
    planned: Sequence[Trial],
    unfinished: Callable[[Trial, str], bool],
    speed: Mapping[Work, float],
    *,
    train_records: int,
    eval_records: int,
    together: int,
) -> Forecast:
    """Seconds that a plan may take.

    Args:
        planned: Its trials; of suggestions to come, as many of the longest that may be suggested.
        unfinished: Whether a trial still has to ``train`` or to ``answer``.
        speed: What `speeds` found.
        train_records: Size of the train split.
        eval_records: Size of the eval split.
        together: Trainings at the same time.
    """
    training = answering = 0.0
    unknown: dict[str, None] = {}
    for trial in planned:
        if trial.method in LEARNING and unfinished(trial, "train"):
            if (each := speed.get(("train", trial.model))) is None:
                unknown[f"training {trial.candidate}"] = None
            else:
                training += each * _seen(trial, train_records)
        if unfinished(trial, "answer"):
            if (each := speed.get(("answer", trial.model))) is None:
                unknown[f"answering with {trial.candidate}"] = None
            else:
                answering += each * eval_records
    return Forecast(training / max(1, together), answering, tuple(unknown))


def longest_first(
    trainings: Sequence[Trial], train_records: int, weight: Callable[[str], float]
) -> list[Trial]:
    """Trainings in the order of what they compute, most first.

    The last to end are short ones then, so that few GPUs idle at the end (Graham, 1969, Bounds on
    multiprocessing timing anomalies).

    Args:
        trainings: Trials of methods that learn.
        train_records: Size of the train split.
        weight: A model's size, in any unit; what a record takes grows with it.
    """

    def work(trial: Trial) -> float:
        return _seen(trial, train_records) * weight(trial.model)

    return sorted(trainings, key=work, reverse=True)


def _of(folder: Storage) -> list[tuple[Work, float]]:
    """What one trial tells."""
    if not folder.exists("spec.json") or folder.exists("reused.json"):
        return []
    trial, found = folders.read_spec(folder), []
    if folder.exists("training.json"):
        facts = folder.read_json("training.json")
        seen = _seen(trial, facts["rows"]) * facts["steps"] / max(1, facts["steps_planned"])
        found.append((("train", trial.model), facts["seconds"] / seen))
    if folder.exists("answers.json"):
        latency, _ = folders.read_latency(folder)
        if latency is not None:
            found.append((("answer", trial.model), 1 / latency.requests_per_second))
    return found


def _seen(trial: Trial, there: int) -> float:
    """Records that a training learns from, counted as often as it sees them."""
    told: Json = {**trial.settings["training"], **trial.parameters}
    most = min(there, told["max_train_records"] or there)
    if told["steps"] is not None and told["batch_tokens"] is None:
        return float(told["steps"] * told["batch_records"])
    return float(most * (told["epochs"] or 1))


def _told(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
