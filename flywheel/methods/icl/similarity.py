"""How near each record of the pool lies to a query: one row of scores per query, high is near.

Queries are compared with queries: what the user asked last here with what was asked last there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


def cosine(queries: Scores, pool: Scores) -> Iterator[Scores]:
    """Cosine similarity of embeddings, as many rows at a time as scikit-learn allows memory for."""
    from sklearn.metrics import pairwise_distances_chunked

    for distances in pairwise_distances_chunked(queries, pool, metric="cosine"):
        yield from 1 - distances


def bm25(queries: Sequence[str], pool: Sequence[str]) -> Iterator[Scores]:
    """BM25 in Lucene's variant, k1 = 1.5, b = 0.75.

    Source: Robertson and Zaragoza, 2009, The Probabilistic Relevance Framework: BM25 and Beyond;
    Lucene's idf is never negative. A word is a run of letters and digits without regard to case.
    """
    from bm25s import BM25

    there = [_words(text) for text in pool]
    index = BM25(k1=1.5, b=0.75, method="lucene")
    if any(there):
        index.index(there, show_progress=False)
    for query in queries:
        asked = _words(query)
        none = np.zeros(len(pool), np.float32)
        yield index.get_scores(asked) if asked and any(there) else none


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
