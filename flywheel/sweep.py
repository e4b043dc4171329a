"""Which trial comes next, and what is learned from those that ended.

A feed hands out trials one by one as places become free: `Listed` those that were planned,
`Guided` those that Optuna suggests by then. Both ask the budget first. What is suggested is written
before it is tried, so a resumed search knows its history and tries what it had begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from flywheel import folders, planning
from flywheel.budget import Budget
from flywheel.config import CandidateConfig, Experiment
from flywheel.folders import Desk
from flywheel.search import Guide
from flywheel.storage import Storage
from flywheel.types import Json, Trial, content_hash

_SAME = 100
"""Suggestions that were tried before, in a row, after which a search is over."""


class Feed(Protocol):
    """Trials for `flywheel.fanout`."""

    @property
    def expected(self) -> int:
        """How many there will be, as far as is known."""

    @property
    def ready(self) -> bool:
        """Whether `next` has an answer now; it is asked again if not."""

    def next(self) -> Trial | None:
        """The next trial, or none when there is nothing more to start."""

    def ended(self, trial: Trial) -> None:
        """A trial ended; its folder says how."""


class Listed:
    """Trials known beforehand."""

    ready = True

    def __init__(
        self, planned: Sequence[Trial], desk: Desk, budget: Budget, spent: Callable[[Trial], None]
    ) -> None:
        """Take the trials in this order; ``spent`` tells the budget what one took."""
        self.waiting, self.expected = deque(planned), len(planned)
        self.desk, self.budget, self.spent = desk, budget, spent

    def next(self) -> Trial | None:
        """The next that the budget allows; what has begun is finished whatever it says."""
        while self.waiting:
            trial, why = self.waiting.popleft(), self.budget.reached()
            if not why or self.desk.folder(trial).exists("spec.json"):
                return trial
            self.budget.refuse(why, 1)
        return None

    def ended(self, trial: Trial) -> None:
        """Count what it took."""
        self.spent(trial)


class Guided:
    """Fine-tunings suggested by Optuna, one study per candidate, the candidates taking turns."""

    ready = True

    def __init__(
        self,
        experiment: Experiment,
        fingerprint: str,
        desk: Desk,
        budget: Budget,
        spent: Callable[[Trial], None],
        adopt: Callable[[Trial], None],
        samples: int,
    ) -> None:
        """Go on where the run's journal ends.

        Args:
            experiment: Its search, and its candidates that can be fine-tuned.
            fingerprint: The dataset's.
            desk: Where trials work.
            budget: What may be taken.
            spent: Tells the budget what a trial took.
            adopt: Looks whether an earlier run has finished a trial, and takes it over.
            samples: Suggestions of all candidates together.
        """
        self.desk, self.budget, self.spent, self.adopt = desk, budget, spent, adopt
        able = [c for c in experiment.candidates if c.can_try("lora")]
        self.studies = [_Study(experiment, c, fingerprint, desk) for c in able]
        self.trials = {t.key: t for study in self.studies for t in study.tried}
        """All there are, those of earlier sessions too."""
        self.left = samples - len(self.trials)
        self.begun = deque((s, p) for s in self.studies for p in s.unfinished)
        self.expected = max(0, self.left) + len(self.begun)
        self.running: dict[str, tuple[_Study, int]] = {}
        self.turn = len(self.trials)

    def next(self) -> Trial | None:
        """What an earlier session had begun, then what is suggested, unless a limit is reached."""
        if self.begun:
            study, point = self.begun.popleft()
            number, trial, _ = study.ask(point)
            return self._start(study, number, trial)
        same = 0
        while self.left > 0 and same < _SAME:
            if why := self.budget.reached():
                self.budget.refuse(why, self.left)
                break
            study = self.studies[self.turn % len(self.studies)]
            self.turn += 1
            number, trial, point = study.ask()
            if trial.key in self.trials:  # nothing new: tell what is known of it and ask again
                study.tell(number, trial)
                same += 1
                continue
            same, self.left = 0, self.left - 1
            self.trials[trial.key] = trial
            study.write(trial, point)
            self.adopt(trial)
            if not study.over(trial):
                return self._start(study, number, trial)
            study.tell(number, trial)
        self.left = 0
        return None

    def ended(self, trial: Trial) -> None:
        """Let its study learn, and count what it took."""
        study, number = self.running.pop(trial.key)
        study.tell(number, trial)
        self.spent(trial)

    def _start(self, study: _Study, number: int, trial: Trial) -> Trial:
        self.running[trial.key] = study, number
        return trial


class _Study:
    """One candidate's guide and its journal: a file per suggestion, in order."""

    def __init__(
        self, experiment: Experiment, candidate: CandidateConfig, fingerprint: str, desk: Desk
    ) -> None:
        lora, search = experiment.methods.lora, experiment.search
        assert lora is not None  # noqa: S101 -- otherwise nothing is guided
        self.experiment, self.candidate, self.fingerprint = experiment, candidate, fingerprint
        self.desk = desk
        self.journal: Storage = desk.run.at(
            "search", f"{_slug(candidate.title)}-{content_hash(candidate.title, 6)}"
        )
        self.guide = Guide(lora, search, experiment.seed)
        self.tried: list[Trial] = []
        self.unfinished: list[Json] = []
        for name in self.journal.names(".json"):
            point = self.journal.read_json(name)["point"]
            trial = self._trial(point)
            self.tried.append(trial)
            if self.over(trial):
                self.guide.remember(point, self._objectives(trial))
            else:
                self.unfinished.append(point)

    def ask(self, point: Json | None = None) -> tuple[int, Trial, Json]:
        """A number to tell by, the next trial, and the point where it lies."""
        number, point = self.guide.ask(point)
        return number, self._trial(point), point

    def tell(self, number: int, trial: Trial) -> None:
        """Let the guide know how the trial ended; one still running counts as failed here."""
        self.guide.tell(number, self._objectives(trial))

    def write(self, trial: Trial, point: Json) -> None:
        """Enter a suggestion."""
        self.tried.append(trial)
        self.journal.write_json(f"{len(self.tried):06}.json", {"key": trial.key, "point": point})

    def _trial(self, point: Json) -> Trial:
        return planning.of(self.experiment, self.candidate, "lora", point, self.fingerprint)

    def over(self, trial: Trial) -> bool:
        """Whether the training has ended; one that failed is tried again by a later session."""
        folder = self.desk.folder(trial)
        return any(folder.exists(f"{n}.json") for n in ("training", "stopped"))

    def _objectives(self, trial: Trial) -> list[float] | None:
        """What the training came to; one that was stopped counts as its whole length would."""
        folder = self.desk.folder(trial)
        facts, share = folders.stopped(folder), 1.0
        if facts is not None:
            share = facts["share"]
        elif folder.exists("training.json"):
            facts = folder.read_json("training.json")
        if facts is None or facts["val_loss"] is None:
            return None
        found = {"val_loss": facts["val_loss"], "cost": facts["seconds"] / share}
        return [found[name] for name in self.experiment.search.objectives]


def _slug(name: str) -> str:
    """A name as part of a path or URL."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return "".join(c if c.isalnum() else "-" for c in last)[:40].strip("-")
