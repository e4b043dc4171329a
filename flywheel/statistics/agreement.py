"""How far those who judged the same things agree, beyond what chance would bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


def krippendorff_alpha(
    ratings: Sequence[Sequence[float | None]], level: Literal["nominal", "interval"]
) -> float | None:
    """Krippendorff's alpha: 1 where all agree, 0 where they agree as strangers would.

    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability". Written out because the
    package for it is under the GPL.

    Args:
        ratings: One row a thing, one column a judge; ``None`` where a judge said nothing.
        level: ``nominal`` counts values that differ, ``interval`` by how much they do.

    Returns:
        ``None`` where no thing has two ratings, or all ratings are the same: there is nothing to
        agree on.
    """
    rows = [[r for r in row if r is not None] for row in ratings]
    rows = [row for row in rows if len(row) > 1]
    values, codes = np.unique(np.concatenate(rows or [[]]), return_inverse=True)
    sizes = [len(row) for row in rows]
    counts = np.zeros((len(rows), len(values)))
    np.add.at(counts, (np.repeat(np.arange(len(rows)), sizes), codes), 1)
    each = np.asarray(sizes, np.float64)
    pairs = counts.T @ (counts / (each[:, None] - 1))  # of values of one thing, by value and value
    pairs -= np.diag((counts / (each[:, None] - 1)).sum(axis=0))
    apart = values[:, None] - values
    distance = np.not_equal(apart, 0).astype(float) if level == "nominal" else apart**2
    totals = counts.sum(axis=0)
    expected = float((np.outer(totals, totals) * distance).sum())
    if not expected:
        return None
    return 1 - (float(totals.sum()) - 1) * float((pairs * distance).sum()) / expected
