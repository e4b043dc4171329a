"""Which records belong together, and sums over those that do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flywheel.datasets.keys import LINKS
from flywheel.types import Record

Groups = Mapping[str, int]
"""A record's id -> the number of its group; a record that is not named is alone."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MASKED = re.compile(r"<[A-Z_]+_\d+>")


def conversations(records: Sequence[Record], names: Collection[str] = LINKS) -> Groups:
    """Put records into one group that share a conversation, session or user, directly or not.

    Args:
        records: Masked records. Where masking left a placeholder, a name tells nobody apart, so it
            links nothing.
        names: Which of `LINKS` count, as in the experiment's ``dataset.group_by``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [(row, link) for row, record in enumerate(records) for link in _links(record, names)]
    numbers = {link: len(records) + i for i, link in enumerate({link for _, link in links})}
    size = len(records) + len(numbers)
    ends = [row for row, _ in links], [numbers[link] for _, link in links]
    graph = coo_array((np.ones(len(links), np.int8), ends), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    return {record.id: int(group) for record, group in zip(records, found, strict=False)}


def group_codes(record_ids: Sequence[str], groups: Groups | None) -> Ints:
    """The groups of records, numbered from 0; each alone where none is known."""
    if not groups:
        return np.arange(len(record_ids))
    keys = [str(groups[name]) if name in groups else f"alone {name}" for name in record_ids]
    return np.unique(keys, return_inverse=True)[1]


def _links(record: Record, names: Collection[str]) -> Iterator[tuple[str, str]]:
    metadata = record.request.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    for name in LINKS:
        value = named.get(name)
        if value is None and name == "user":
            value = record.request.get("user")
        known = isinstance(value, str | int) and value != "" and not _MASKED.search(str(value))
        if known and name in names:
            yield name, str(value)
