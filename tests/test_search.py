"""Which points a search gives, and that a resumed one goes on as it would have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flywheel.config import LoraConfig, SearchConfig
from flywheel.search import Guide, guided, points
from flywheel.types import Json

SPACES: Json = {"rank": [8, 16], "learning_rate": {"loguniform": [1e-5, 1e-1]}}


def lora(**spaces: Any) -> LoraConfig:
    return LoraConfig.model_validate(spaces)


def search(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"algorithm": "optuna", "samples": 40, **changes})


def test_a_grid_is_every_combination_in_order() -> None:
    found = list(points(lora(rank=[8, 16], learning_rate=[1, 2]), "grid", 10, 0))
    assert [(p["rank"], p["learning_rate"]) for p in found] == [(8, 1), (8, 2), (16, 1), (16, 2)]


def test_without_anything_to_search_there_is_one_point() -> None:
    assert list(points(lora(rank=8), "random", 10, 0)) == [{}]


def test_every_combination_gets_the_same_draws() -> None:
    found = list(points(lora(**SPACES), "random", 5, 0))
    assert len(found) == 10
    rates = [[p["learning_rate"] for p in found if p["rank"] == rank] for rank in (8, 16)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 5


def test_more_samples_leave_the_first_as_they_were_and_a_seed_gives_others() -> None:
    few, many = (list(points(lora(**SPACES), "random", n, 0)) for n in (3, 6))
    assert many[: len(few)] == few
    assert list(points(lora(**SPACES), "random", 3, 1)) != few


@pytest.mark.parametrize(
    ("spaces", "algorithm", "expected"),
    [
        ({"rank": [8, 16]}, "optuna", True),
        ({"epochs": {"randint": [1, 3]}}, "optuna", True),
        ({"rank": 8}, "optuna", False),
        (SPACES, "random", False),
    ],
    ids=str,
)
def test_optuna_guides_where_there_is_a_choice(
    spaces: Json, algorithm: str, expected: bool
) -> None:
    assert guided(lora(**spaces), algorithm) is expected


def loss(point: Json) -> float:
    """Best at a rate of 0.001 and rank 16."""
    return abs(math.log10(point["learning_rate"]) + 3) + (point["rank"] != 16)


def run(guide: Guide, count: int) -> list[Json]:
    found = []
    for _ in range(count):
        number, point = guide.ask()
        guide.tell(number, [loss(point)])
        found.append(point)
    return found


def test_suggestions_come_nearer_to_what_is_best() -> None:
    found = run(Guide(lora(**SPACES), search(), 0), 40)
    first, last = (sum(map(loss, part)) / 10 for part in (found[:10], found[-10:]))
    assert last < first / 2


def test_a_resumed_search_goes_on_as_it_would_have() -> None:
    whole = run(Guide(lora(**SPACES), search(), 3), 20)
    later = Guide(lora(**SPACES), search(), 3)
    for point in whole[:12]:
        later.remember(point, [loss(point)])
    assert run(later, 8) == whole[12:]


def test_a_point_that_was_begun_is_tried_again_as_it_was() -> None:
    guide = Guide(lora(**SPACES), search(), 0)
    begun = {"rank": 8, "learning_rate": 0.0123}
    number, point = guide.ask(begun)
    assert point == begun
    guide.tell(number, [1.0])
    assert guide.ask()[1] != begun


def test_failed_points_teach_nothing_and_end_nothing() -> None:
    guide = Guide(lora(**SPACES), search(), 0)
    for _ in range(15):
        number, _ = guide.ask()
        guide.tell(number, None)
    assert set(guide.ask()[1]) == set(SPACES)


def test_two_objectives_are_both_minimised() -> None:
    guide = Guide(lora(**SPACES), search(objectives=["val_loss", "cost"]), 0)
    for _ in range(30):
        number, point = guide.ask()
        guide.tell(number, [loss(point), float(point["rank"])])
    assert {trial.values[1] for trial in guide.study.best_trials} == {8.0, 16.0}


def test_every_kind_of_space_comes_back_as_it_was_written() -> None:
    spaces = {
        "rank": {"choice": [8, 64]},
        "dropout": {"quniform": [0, 0.3, 0.1]},
        "batch_records": {"randint": [4, 9]},
        "weight_decay": {"uniform": [0, 1]},
        "max_train_records": [None, 100],
        "curriculum": ["none", "short_first"],
    }
    config = lora(**spaces)
    guide = Guide(config, search(), 0)
    for _ in range(25):
        number, point = guide.ask()
        LoraConfig.model_validate({**config.model_dump(), **point})
        guide.remember(point, [0.0])
        guide.tell(number, [0.0])
    assert len({t.params["rank"] for t in guide.study.trials}) == 2
