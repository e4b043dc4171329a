"""flywheel beside the Berkeley Function Calling Leaderboard's own checker, on its own data."""

from pathlib import Path

import pytest
from benchmarks import bfcl

pytestmark = pytest.mark.services

LIST_OF_ANSWERS = "the leaderboard accepts either; production's log holds one answer"
SCHEMA_DEFAULT = "the value is the schema's default, which the leaderboard wants to be said"
NO_MEMBER = "the accepted answer is no member of the enum, so no schema says that case is free"
CASE_TELLS = "the members AA, Aa and aa differ in nothing but case"
FREE_TEXT = "the leaderboard ignores case and punctuation of all texts, flywheel case in enums only"
INTEGRAL = "to JSON Schema 5.0 is an integer, to the leaderboard it is none"

REASONS = {
    ("simple_python_240", "other truth"): LIST_OF_ANSWERS,
    ("simple_python_297", "other truth"): LIST_OF_ANSWERS,
    ("multiple_10", "items in another order"): LIST_OF_ANSWERS,
    ("multiple_171", "items in another order"): LIST_OF_ANSWERS,
    ("parallel_17", "items in another order"): LIST_OF_ANSWERS,
    ("parallel_54", "items in another order"): LIST_OF_ANSWERS,
    ("parallel_116", "enum in capitals"): CASE_TELLS,
    ("live_multiple_190-84-0", "enum in capitals"): NO_MEMBER,
    ("live_multiple_947-197-0", "enum in capitals"): NO_MEMBER,
    ("live_simple_51-23-0", "object without a member"): SCHEMA_DEFAULT,
    ("live_simple_89-50-0", "default left out"): SCHEMA_DEFAULT,
    ("live_multiple_153-58-7", "default left out"): SCHEMA_DEFAULT,
    ("live_multiple_407-140-3", "default left out"): SCHEMA_DEFAULT,
    ("live_multiple_1038-265-0", "default left out"): SCHEMA_DEFAULT,
    **{
        (f"simple_python_{number}", "free text in capitals"): FREE_TEXT
        for number in (0, 5, 7, 8, 9, 10)
    },
    **{
        (f"simple_python_{number}", "free text without punctuation"): FREE_TEXT
        for number in (14, 35, 77, 166, 181, 191)
    },
    **{
        (f"simple_python_{number}", "integer written as number"): INTEGRAL
        for number in (0, 1, 2, 3, 4, 5)
    },
}
"""Case and perturbation of every disagreement -> why flywheel judges otherwise."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[bfcl.Verdicts]:
    folder: Path = tmp_path_factory.mktemp("bfcl")
    return bfcl.judged(bfcl.download(folder))


def test_flywheel_agrees_with_the_leaderboard(found):
    assert len(found) >= 2_000
    assert bfcl.agreement(found) >= 0.99


def test_every_disagreement_has_its_reason(found):
    parted = {(v.case, v.perturbation) for v in found if v.flywheel != v.leaderboard}
    assert parted == REASONS.keys()


def test_both_right_and_wrong_outputs_are_judged(found):
    right = sum(v.leaderboard for v in found)
    assert 1_000 < right < len(found) - 1_000
    assert {v.perturbation for v in found} == {*bfcl.PERTURBATIONS, *bfcl.DISPUTED}
