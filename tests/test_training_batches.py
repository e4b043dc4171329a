"""The order of a training is planned before it starts, and follows from rows and seed alone."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import LoraConfig
from flywheel.methods.batches import plan, rate
from flywheel.rendering import Example
from flywheel.types import Json


def rows(lengths: list[int]) -> list[Example]:
    return [Example(str(i), [7] * n, n - 1) for i, n in enumerate(lengths)]


def told(**changes: object) -> Json:
    return LoraConfig(**changes).model_dump()  # type: ignore[arg-type]


LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=30)


@given(lengths=LENGTHS, epochs=st.integers(1, 3), size=st.integers(1, 8), seed=st.integers(0, 9))
def test_every_epoch_sees_each_row_once(
    lengths: list[int], epochs: int, size: int, seed: int
) -> None:
    some = rows(lengths)
    steps = plan(some, told(epochs=epochs, batch_records=size), seed)
    assert all(len(step) == size for step in steps[:-1])
    seen = [row.record_id for row in chain(*steps)]
    for start in range(0, len(seen), len(some)):
        assert Counter(seen[start : start + len(some)]) == Counter(r.record_id for r in some)
    assert len(seen) == epochs * len(some)


@given(lengths=LENGTHS, budget=st.integers(16, 80))
def test_batches_by_tokens_are_as_full_as_they_can_be(lengths: list[int], budget: int) -> None:
    steps = plan(rows(lengths), told(batch_tokens=budget, epochs=2), 0)
    sizes = [sum(len(row.ids) for row in step) for step in steps]
    for step, size in zip(steps, sizes, strict=True):
        assert size <= budget or len(step) == 1
    for size, later in zip(sizes, steps[1:], strict=False):
        assert size + len(later[0].ids) > budget


@given(lengths=LENGTHS, steps=st.integers(1, 12))
def test_steps_replace_epochs(lengths: list[int], steps: int) -> None:
    assert len(plan(rows(lengths), told(steps=steps, batch_records=4), 0)) == steps


def test_the_order_is_the_seeds_and_new_in_every_epoch() -> None:
    some = rows([5] * 40)

    def order(seed: int) -> list[str]:
        return [row.record_id for row in chain(*plan(some, told(epochs=2), seed))]

    assert order(3) == order(3) != order(4)
    assert order(3)[:40] != order(3)[40:]


def test_a_curriculum_goes_from_short_to_long_in_the_first_epoch() -> None:
    steps = plan(rows([9, 3, 7, 5]), {**told(epochs=1), "curriculum": "short_first"}, 0)
    assert [len(row.ids) for row in chain(*steps)] == [3, 5, 7, 9]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.854, 0.5, 0.146]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_then_follows_its_schedule(
    schedule: str, wanted: list[float]
) -> None:
    got = [rate(step, 6, 0.3, schedule) for step in range(6)]
    assert got == pytest.approx(wanted, abs=1e-3)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rate(0, 10, 0.0, "cosine") == 1.0
