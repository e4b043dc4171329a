"""One complete experiment, and what its sections demand of each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from flywheel.config.data import DatasetConfig
from flywheel.config.endpoints import LEARNING, CandidateConfig, ModelConfig
from flywheel.config.evaluation import (
    JudgeConfig,
    JudgingConfig,
    ParityConfig,
    ProductionConfig,
    RankingConfig,
    SamplingConfig,
    ScoringConfig,
)
from flywheel.config.measuring import CascadeConfig, LatencyConfig
from flywheel.config.methods import MethodsConfig
from flywheel.config.search import BudgetConfig, ClusterConfig, SearchConfig
from flywheel.config.section import Section
from flywheel.types import Json


class TrackingConfig(Section):
    """Where MLflow records the run."""

    uri: str | None = None
    """Default: an SQLite file ``mlflow.db`` in the storage folder."""
    experiment: str = "flywheel"


def _how_many(judge: object) -> str:
    """Which form ``judge`` has, so that a mistake is told of that form alone."""
    return "[none]" if judge is None else "[several]" if isinstance(judge, list) else "[one]"


class Experiment(Section):
    """One complete run: logs, dataset rule, trials, judge, ranking."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    logs: str
    """Log store: a file, folder, glob or fsspec URL of JSON Lines."""
    workload: str
    """The ``workload_id`` to evaluate."""
    client: str | None = None
    """Only this ``client_id``; default: all."""
    storage: str = "flywheel-data"
    """Folder or fsspec URL that every node of the cluster reaches."""
    seed: int = 0
    """Seeds training; the split has its own ``dataset.random_seed``."""
    dataset: DatasetConfig = DatasetConfig()
    candidates: Annotated[list[CandidateConfig], Field(min_length=1)]
    methods: MethodsConfig
    search: SearchConfig = SearchConfig()
    budget: BudgetConfig = BudgetConfig()
    cluster: ClusterConfig = ClusterConfig()
    sampling: SamplingConfig = SamplingConfig()
    judge: Annotated[
        Annotated[None, Tag("[none]")]
        | Annotated[list[JudgeConfig], Tag("[several]")]
        | Annotated[JudgeConfig, Tag("[one]")],
        Discriminator(_how_many),
    ] = JudgeConfig()
    """A list for several: those whose prompts have the same metric sit together. ``null`` for
    none."""
    judging: JudgingConfig = JudgingConfig()
    scoring: ScoringConfig = ScoringConfig()
    parity: ParityConfig = ParityConfig()
    """Trials beyond these limits fail: they would answer differently in production."""
    latency: LatencyConfig | None = None
    """Measures latency and throughput under load; default: only what the answers took."""
    cascades: CascadeConfig | None = None
    """Ranks, beside the trials, each as the first step of a cascade; default: none."""
    ranking: RankingConfig = RankingConfig()
    production: ProductionConfig = ProductionConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def judges(self) -> list[JudgeConfig]:
        """The judges, none, one or several."""
        if isinstance(self.judge, list):
            return self.judge
        return [self.judge] if self.judge else []

    @property
    def local_models(self) -> list[str]:
        """The models of candidates that are served here."""
        return [candidate.model for candidate in self.candidates if not candidate.remote]

    def candidate(self, title: str) -> CandidateConfig:
        """The candidate of this title; there is one."""
        return next(candidate for candidate in self.candidates if candidate.title == title)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        titles = [candidate.title for candidate in self.candidates]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two candidates are called {title!r}; give each a name")
        for candidate in self.candidates:
            if not any(map(candidate.can_try, self.methods.chosen)):
                chosen = ", ".join(self.methods.chosen)
                raise ValueError(f"candidate {candidate.title!r} can do no method of: {chosen}")
            if _place(candidate) in map(_place, self.judges):
                raise ValueError(f"judge.model {candidate.model!r} is a candidate itself")
        asked = [(*_place(judge), judge.prompt, judge.show_question) for judge in self.judges]
        if len(set(asked)) < len(asked):
            raise ValueError("two judges are the same model under the same prompt; leave one out")
        if self.scoring.free_text is not None and not self.judges:
            raise ValueError("scoring.free_text is for a judge to compare; name a judge")
        self._check_baseline()
        if self.cascades and self.dataset.val_ratio == 0:
            raise ValueError("cascades choose their thresholds on val; raise dataset.val_ratio")
        if self.cascades and self.scoring.references is not None:
            raise ValueError("cascades take production's answers for right; leave references out")
        return self

    def _check_baseline(self) -> None:
        name = self.ranking.baseline
        if self.ranking.adaptive and self.scoring.references is not None:
            raise ValueError("ranking.adaptive compares with logged answers, not with references")
        if name is None:
            return
        if self.ranking.adaptive:
            raise ValueError("ranking.adaptive compares with logged answers; leave baseline out")
        named = [candidate for candidate in self.candidates if candidate.title == name]
        if not named or "base" not in self.methods.chosen or not named[0].can_try("base"):
            titles = ", ".join(candidate.title for candidate in self.candidates)
            raise ValueError(
                f"ranking.baseline {name!r} must be a candidate ({titles}) asked by method base"
            )

    @model_validator(mode="after")
    def _searchable(self) -> Experiment:
        drawn = [
            f"methods.{method}.{name}"
            for method in self.methods.chosen
            for name in getattr(self.methods, method).distributions()
        ]
        if drawn and self.search.algorithm == "grid":
            raise ValueError(
                f"{drawn[0]} is a distribution; search.algorithm grid knows only lists"
            )
        guided = self.methods.lora and self.search.algorithm == "optuna"
        learning = any(method in LEARNING for method in self.methods.chosen)
        stopped = learning and self.search.scheduler.kind != "none"
        if (guided or stopped) and self.dataset.val_ratio == 0:
            raise ValueError("optuna and schedulers go by validation loss; raise dataset.val_ratio")
        return self


def _place(model: ModelConfig) -> tuple[str, str]:
    return model.model, (model.endpoint or "").rstrip("/")


def engines(experiment: Experiment) -> dict[str, Json]:
    """The engine arguments in an experiment, by the field that holds them."""
    found = {f"candidates.{i}.engine": c.engine for i, c in enumerate(experiment.candidates)}
    if isinstance(experiment.judge, list):
        return found | {f"judge.{i}.engine": j.engine for i, j in enumerate(experiment.judge)}
    return {**found, **({"judge.engine": experiment.judge.engine} if experiment.judge else {})}
