"""What trials took of GPUs and money, read from their folders and told to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel import costs, folders, loadtest
from flywheel.inference import read as read_completions
from flywheel.stages.session import Session
from flywheel.types import Completion, Trial


@dataclass(frozen=True, slots=True)
class Meter:
    """Tells the session's budget; a step that a trial has not done counts for nothing."""

    session: Session

    def trained(self, trial: Trial) -> None:
        """Tell the budget what a training took."""
        experiment, folder = self.session.experiment, self.session.desk.folder(trial)
        trainer = getattr(experiment.methods, trial.method)
        facts = folders.stopped(folder)
        if facts is None and folder.exists("training.json"):
            facts = folder.read_json("training.json")
        if facts is not None:
            hours = facts["seconds"] / 3600
            price = experiment.candidate(trial.candidate).price_per_hour or 0.0
            gpus = self.session.cluster.trainer_needs(trainer).gpus
            self.session.budget.spend(hours * gpus, hours * price)

    def answered(self, trial: Trial) -> None:
        """Tell the budget what the answers took."""
        folder = self.session.desk.folder(trial)
        if folder.exists("answers.json"):
            _, wall_s = folders.read_latency(folder)
            self._spend(trial, read_completions(folder.at("completions")), wall_s)

    def answered_val(self, trial: Trial) -> None:
        """Tell the budget what the answers to the validation split took."""
        folder = self.session.desk.folder(trial)
        if folder.exists("val.json"):
            wall_s = folder.read_json("val.json")["wall_s"]
            self._spend(trial, read_completions(folder.at("val")), wall_s)

    def load_tested(self, trial: Trial) -> None:
        """Tell the budget what the loads took."""
        for timings in loadtest.timings(self.session.desk.folder(trial)).values():
            wall_s = max(timing.sent_s + timing.total_s for timing in timings)
            self._spend(trial, [timing.completion for timing in timings], wall_s)

    def _spend(self, trial: Trial, completions: Sequence[Completion], wall_s: float) -> None:
        candidate = self.session.experiment.candidate(trial.candidate)
        gpus = 0 if candidate.remote else self.session.cluster.engine_needs(candidate).gpus
        answered = sum(not completion.error for completion in completions)
        per_1k = costs.cost_of(candidate, completions, wall_s).per_1k_requests or 0.0
        self.session.budget.spend(gpus * wall_s / 3600, per_1k * answered / 1000)
