"""From a method's spaces to points: every combination of lists, draws from distributions, or TPE.

A point gives each searched field one value. Grid and random points are known before any work and
depend on nothing but the file and its seed. A `Guide` suggests a point from how those before ended;
its suggestions depend on that history alone, so that a resumed search goes on as it would have.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from flywheel.config import SearchConfig
from flywheel.spaces import Distribution, Searched, multiple
from flywheel.types import Json

_STARTUP = 10
"""Random points before TPE has enough to go by, as in Optuna; fewer where few are wanted at all."""


def points(config: Searched, algorithm: str, samples: int, seed: int) -> Iterator[Json]:
    """Every combination of lists, each with the same ``samples`` draws from the distributions.

    Args:
        config: A method's parameters.
        algorithm: ``grid`` refuses distributions when a file is read; others draw.
        samples: More of them leave the first as they were.
        seed: Another seed is other draws.
    """
    drawn, grids = config.distributions(), config.grids()
    for number in range(samples if drawn else 1):
        rng = random.Random(f"{seed} {number}")
        draw = {name: space.draw(rng) for name, space in drawn.items()}
        for combination in itertools.product(*grids.values()):
            yield {**draw, **dict(zip(grids, combination, strict=True))}


def guided(config: Searched, algorithm: str) -> bool:
    """Whether there is anything that Optuna would have to suggest."""
    return algorithm == "optuna" and bool(config.distributions() or config.grids())


class Guide:
    """Optuna's TPE (Bergstra et al., 2011) over one method's spaces. All objectives are minimised.

    Nothing of it is written: whoever asks keeps the points and how they ended, and tells them to a
    new guide with `remember`.
    """

    def __init__(self, config: Searched, search: SearchConfig, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        grids = {name: Distribution(choice=values) for name, values in config.grids().items()}
        self.spaces = {**config.distributions(), **grids}
        self.seed, self.startup = seed, max(2, min(_STARTUP, search.samples // 4))
        self.study = optuna.create_study(directions=["minimize"] * len(search.objectives))

    def remember(self, point: Json, values: Sequence[float] | None) -> None:
        """A point of an earlier session: its objectives, or none where it failed."""
        import optuna

        state = optuna.trial.TrialState
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state.FAIL if values is None else state.COMPLETE,
                values=None if values is None else list(values),
                params={name: _inner(self.spaces[name], value) for name, value in point.items()},
                distributions={name: _optuna(space) for name, space in self.spaces.items()},
            )
        )

    def ask(self, point: Json | None = None) -> tuple[int, Json]:
        """A number to tell by, and the next point; ``point`` itself where that is to be it."""
        import optuna

        if point is not None:
            inner = {name: _inner(self.spaces[name], value) for name, value in point.items()}
            self.study.enqueue_trial(inner)
        number = len(self.study.trials)
        self.study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + number, n_startup_trials=self.startup
        )
        trial = self.study.ask({name: _optuna(space) for name, space in self.spaces.items()})
        values = {name: _outer(space, trial.params[name]) for name, space in self.spaces.items()}
        return trial.number, values if point is None else point

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """How the point with that number ended: its objectives, or none where it failed."""
        import optuna

        if values is None:
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(number, list(values))


def _optuna(space: Distribution) -> Any:
    """Optuna's distribution: over positions for a choice, over counts of steps for ``quniform``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind == "choice":
        return CategoricalDistribution(list(range(len(space.arguments))))
    if space.kind == "randint":
        return IntDistribution(space.arguments[0], space.arguments[1] - 1)
    if space.kind == "quniform":
        return IntDistribution(*space.steps)
    return FloatDistribution(*space.arguments, log=space.kind == "loguniform")


def _outer(space: Distribution, value: Any) -> Any:
    """A field's value from Optuna's."""
    if space.kind == "choice":
        return space.arguments[value]
    if space.kind == "quniform":
        return multiple(value, space.arguments[2])
    return value  # not rounded: Optuna must remember a point as it was tried


def _inner(space: Distribution, value: Any) -> Any:
    """Inverse of `_outer`."""
    if space.kind == "choice":
        return space.arguments.index(value)
    return round(value / space.arguments[2]) if space.kind == "quniform" else value
