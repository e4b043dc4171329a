"""The slow way to tell how alike two texts are: sets of strings."""

from __future__ import annotations

from flywheel.datasets.minhash import GRAM


def grams(text: str) -> set[str]:
    """A text's shingles; a text shorter than one is its own."""
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared elements divided by all elements."""
    return len(one & other) / len(one | other)
