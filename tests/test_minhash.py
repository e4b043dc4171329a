"""Signatures agree as often as sets overlap, and no verified pair is wrong or lost."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.datasets.minhash import (
    Banding,
    bands,
    buckets,
    joined,
    verified,
)
from tests.shingles import grams, jaccard

TEXTS = st.lists(st.text("abcd ", max_size=30), min_size=1, max_size=12, unique=True)


def words(rng: random.Random, n: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(n))


def edited(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    return text[:at] + rng.choice("xyz") + text[at + 1 :]


@pytest.mark.parametrize(
    ("text", "shingles"),
    [("abcdef", {"abcde", "bcdef"}), ("abc", {"abc"}), ("", {""}), ("aaaaaaaa", {"aaaaa"})],
)
def test_a_text_is_the_set_of_its_shingles(text: str, shingles: set[str]) -> None:
    assert grams(text) == shingles


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_a_banding_finds_almost_all_at_the_threshold(threshold: float) -> None:
    banding = Banding.for_threshold(threshold)
    assert banding.probability(threshold) >= 0.99
    assert banding.bands * banding.rows <= 64


@given(TEXTS)
def test_bands_depend_on_the_text_alone(texts: list[str]) -> None:
    banding = Banding(3, 2)
    together = bands(texts, banding)
    for text, own in zip(texts, together, strict=True):
        assert (bands([text], banding)[0] == own).all()


def test_bands_agree_as_often_as_sets_overlap() -> None:
    rng = random.Random(0)
    one = words(rng, 40)
    other = one[:120] + words(rng, 20)
    similarity = jaccard(grams(one), grams(other))
    first, second = bands([one, other], Banding(4000, 1))
    assert 0.3 < similarity < 0.7
    assert abs((first == second).mean() - similarity) < 0.03


def test_what_the_slow_way_finds_is_found() -> None:
    rng = random.Random(1)
    texts = [words(rng, 12) for _ in range(300)]
    texts += [edited(rng, text) for text in texts[:100]]
    threshold = 0.85
    pairs, large = buckets(bands(texts, Banding.for_threshold(threshold)))
    assert not large
    found = {tuple(pair) for pair in verified(pairs, dict(enumerate(texts)), threshold).tolist()}
    sets = [grams(text) for text in texts]
    wanted = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if jaccard(sets[i], sets[j]) >= threshold
    }
    assert found <= wanted
    assert len(wanted) > 50
    assert len(found) >= 0.98 * len(wanted)


@settings(deadline=None)
@given(
    st.lists(st.text("abc", min_size=4, max_size=14), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.3, 0.6, 0.85, 1.0]),
)
def test_a_large_bucket_loses_no_pair(texts: list[str], threshold: float) -> None:
    found = joined(np.arange(len(texts)), dict(enumerate(texts)), threshold)
    sets = [grams(text) for text in texts]
    assert {tuple(pair) for pair in found.tolist()} == {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if jaccard(sets[i], sets[j]) >= threshold
    }


def test_a_template_with_a_number_in_it_is_no_quadratic_work() -> None:
    texts = [f"please tell me the status of order number {n * 7919:09d} today" for n in range(3000)]
    pairs, large = buckets(bands(texts, Banding.for_threshold(0.85)))
    assert len(pairs) < 100 * len(texts)
    named = dict(enumerate(texts))
    for bucket in large[:2]:
        found = joined(bucket, named, 0.85)
        assert all(
            jaccard(grams(texts[i]), grams(texts[j])) >= 0.85 for i, j in found[:50].tolist()
        )


def test_a_bucket_is_named_once_and_small_ones_as_pairs() -> None:
    values = np.array([[1, 5], [1, 5], [2, 6], [2, 7]], np.uint32)
    pairs, large = buckets(values)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert large == []
    same = np.zeros((40, 3), np.uint32)
    pairs, large = buckets(same)
    assert pairs.tolist() == []
    assert [bucket.tolist() for bucket in large] == [list(range(40))]


@settings(deadline=None)
@given(
    st.lists(st.text("ab\0c\ud800\U0010ffff", max_size=12), min_size=2, max_size=8, unique=True),
    st.sampled_from([0.3, 0.6, 1.0]),
)
def test_a_pair_is_kept_by_its_sets_alone(texts: list[str], threshold: float) -> None:
    pairs = np.array(list(combinations(range(len(texts)), 2)))
    sets = [grams(text) for text in texts]
    kept = verified(pairs, dict(enumerate(texts)), threshold)
    assert kept.tolist() == [
        [i, j] for i, j in pairs.tolist() if jaccard(sets[i], sets[j]) >= threshold
    ]


def test_texts_of_many_different_characters_are_told_apart() -> None:
    rng = random.Random(2)
    letters = [chr(0x3400 + i) for i in range(20_000)]  # five of them do not fit into 64 bits
    texts = ["".join(rng.choices(letters, k=200)) for _ in range(400)]
    texts += [text[:100] + text[100 + rng.randrange(3, 30) :] for text in texts]
    pairs = np.array([(i, j) for i in range(0, 800, 3) for j in range(i + 1, 800, 7)])
    pairs = np.concatenate([pairs, [(i, i + 400) for i in range(400)]])
    sets = [grams(text) for text in texts]
    wanted = [[i, j] for i, j in pairs.tolist() if jaccard(sets[i], sets[j]) >= 0.85]
    assert 100 < len(wanted) < 400
    assert verified(pairs, dict(enumerate(texts)), 0.85).tolist() == wanted
