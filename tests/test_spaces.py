"""Lists, distributions, and what is refused before a search meets it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import ValidationError

from flywheel.config import Experiment, IclConfig, LoraConfig, dump, validate
from flywheel.errors import ConfigError
from flywheel.spaces import Distribution, extremes
from flywheel.types import Json

KINDS: list[Json] = [
    {"uniform": [0.1, 0.9]},
    {"loguniform": [1e-5, 1e-1]},
    {"quniform": [0.1, 0.95, 0.1]},
    {"quniform": [8, 64, 8]},
    {"randint": [3, 9]},
    {"choice": [8, 16, None]},
]


def experiment(lora: Json, **changes: Any) -> Experiment:
    data = {
        "name": "t",
        "logs": "l",
        "workload": "w",
        "candidates": [{"model": "org/m"}],
        "methods": {"lora": lora},
        "search": {"algorithm": "random"},
    }
    return validate({**data, **changes}, "x.yaml")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_drawn_lies_within_the_bounds_and_repeats_with_the_seed(kind: Json) -> None:
    space = Distribution.model_validate(kind)
    drawn = [space.draw(random.Random(seed)) for seed in range(300)]
    assert drawn == [space.draw(random.Random(seed)) for seed in range(300)]
    assert len(set(drawn)) > 2
    outermost = space.extremes()
    if space.kind == "choice":
        assert set(drawn) == set(outermost)
    else:
        assert min(outermost) <= min(drawn) <= max(drawn) <= max(outermost)


def test_whole_steps_are_whole_and_free_of_binary_noise() -> None:
    coarse = Distribution(quniform=(8, 64, 8))
    fine = Distribution(quniform=(0.1, 0.9, 0.1))
    rng = random.Random(0)
    assert {coarse.draw(rng) for _ in range(200)} == set(range(8, 65, 8))
    assert {fine.draw(rng) for _ in range(200)} == {n / 10 for n in range(1, 10)}


def test_randint_leaves_its_end_out() -> None:
    space = Distribution(randint=(1, 4))
    assert {space.draw(random.Random(n)) for n in range(100)} == {1, 2, 3}


def test_loguniform_gives_every_order_of_magnitude_its_share() -> None:
    space = Distribution(loguniform=(1e-4, 1.0))
    low = sum(space.draw(random.Random(n)) < 1e-2 for n in range(1000))
    assert 420 < low < 580


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, "exactly one of uniform, loguniform, quniform, randint, choice"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one of"),
        ({"uniform": [1, 1]}, "low (1) must lie below high (1)"),
        ({"loguniform": [0, 1]}, "low (0) must lie above 0"),
        ({"quniform": [0.2, 0.3, 1]}, "no multiple of step"),
        ({"choice": []}, "at least 1 item"),
        ({"uniform": [0, float("inf")]}, "finite"),
    ],
    ids=str,
)
def test_a_distribution_that_gives_nothing_is_refused(written: Json, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Distribution.model_validate(written)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": {"randint": [8, 20]}}, "rank 19 cannot be served by vLLM"),
        ({"rank": {"choice": [8, 12]}}, "rank 12 cannot be served by vLLM"),
        ({"rank": {"uniform": [8, 16]}}, "rank: uniform gives"),
        ({"dropout": {"uniform": [0, 2]}}, "dropout: uniform gives 2.0: Input should be less"),
        ({"learning_rate": {"uniform": [-1, 1]}}, "learning_rate: uniform gives -1.0"),
        ({"curriculum": {"choice": ["long_first"]}}, "curriculum: choice gives 'long_first'"),
        ({"epochs": {"gaussian": [0, 1]}}, "epochs.gaussian: unknown field; allowed: choice"),
        ({"max_tokens": {"randint": [16, 99]}}, "max_tokens: Input should be a valid integer"),
    ],
    ids=str,
)
def test_what_a_trial_could_not_have_is_refused_when_the_file_is_read(
    lora: Json, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(lora)
    assert said in str(error.value)
    assert "methods.lora" in str(error.value)


def test_a_distribution_needs_a_search_that_draws() -> None:
    lora = {"learning_rate": {"loguniform": [1e-4, 1e-2]}}
    with pytest.raises(ConfigError, match=r"methods\.lora\.learning_rate is a distribution"):
        experiment(lora, search={"algorithm": "grid"})


@pytest.mark.parametrize("search", [{"algorithm": "optuna"}, {"scheduler": {"kind": "asha"}}])
def test_what_goes_by_validation_loss_needs_validation_records(search: Json) -> None:
    with pytest.raises(ConfigError, match=r"raise dataset\.val_ratio"):
        experiment({}, search=search, dataset={"val_ratio": 0})
    assert experiment({}, search=search).search.algorithm


def test_an_experiment_with_spaces_is_written_and_read_back_the_same() -> None:
    lora = {"rank": [8, 16], "learning_rate": {"loguniform": [1e-4, 1e-2]}}
    one = experiment(lora)
    assert "learning_rate:\n      loguniform:\n      - 0.0001\n      - 0.01\n" in dump(one)
    import yaml

    assert validate(yaml.safe_load(dump(one)), "y") == one


def test_the_outermost_values_of_whatever_a_field_says() -> None:
    config = LoraConfig.model_validate({"rank": {"choice": [64, 8]}, "epochs": [1, 3]})
    assert max(extremes(config.rank)) == 64
    assert extremes(config.epochs) == [1, 3]
    assert extremes(config.dropout) == [0.0]
    assert set(config.distributions()) == {"rank"}
    assert config.grids() == {"epochs": [1, 3]}


def test_uniform_selection_among_others_goes_with_a_ratio_but_alone_does_not() -> None:
    both = ["lexical", "uniform_distribution"]
    IclConfig.model_validate({"selection": both, "relevance_ratio": 0.5})
    with pytest.raises(ValidationError, match="relevance_ratio is not for it"):
        IclConfig.model_validate({"selection": both[1:], "relevance_ratio": 0.5})
