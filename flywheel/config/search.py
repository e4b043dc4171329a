"""How trials are found, stopped early, and bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flywheel.config.section import Section

Positive = Annotated[float, Field(gt=0)]


class SchedulerConfig(Section):
    """Which trainings are stopped early, by validation loss against the other trials'."""

    kind: Literal["none", "asha", "median"] = "none"
    """ASHA (Li et al., 2020, arXiv:1810.05934) keeps the best ``1 / reduction`` of those that came
    as far; ``median`` stops what is worse than the median of the others so far."""
    grace: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of its training before which no trial is stopped."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """For ``asha``."""


class SearchConfig(Section):
    """How trials are found where methods have lists or distributions."""

    algorithm: Literal["grid", "random", "optuna"] = "grid"
    """``grid``: every combination of lists. ``random``: for each of those, ``samples`` draws from
    the distributions. ``optuna``: ``samples`` trainings of ``lora`` per candidate, suggested by TPE
    from those before, lists being choices; other methods are drawn at random."""
    samples: Annotated[int, Field(ge=1, le=100_000)] = 10
    objectives: Annotated[list[Literal["val_loss", "cost"]], Field(min_length=1, max_length=2)] = [  # noqa: RUF012 -- pydantic copies defaults
        "val_loss"
    ]
    """What Optuna minimises: nats per answer token on val, and the seconds that training takes;
    with both it looks along their Pareto front."""
    scheduler: SchedulerConfig = SchedulerConfig()
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trainings at the same time; default: what fits on the cluster."""


class ClusterConfig(Section):
    """The cluster that a run joins."""

    wait_minutes: Annotated[float, Field(ge=0)] = 0
    """How long to wait for nodes that an autoscaler brings: those that the engines take, side by
    side, then those of the trainers, ``search.max_concurrent`` or one. A run plans by what is there
    then. Default: not at all, so that what fits on no node is refused at once."""


class BudgetConfig(Section):
    """What a run may take. Once reached, no trial is started; those that run are finished."""

    trials: Annotated[int, Field(ge=1)] | None = None
    """All methods together; ``base`` and ``icl`` come first."""
    gpu_hours: Positive | None = None
    """Of training and answering together."""
    dollars: Positive | None = None
    """By each candidate's ``price_per_hour`` or ``price``."""
    hours: Positive | None = None
    """Of this command's wall clock."""
