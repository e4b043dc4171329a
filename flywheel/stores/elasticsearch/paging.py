"""The pages of a slice: each document once, whatever becomes of the point in time."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from elastic_transport import ApiError, JsonSerializer, TransportError
from elasticsearch import Elasticsearch

from flywheel.stores import Chunk
from flywheel.types import Json

PAGE_BYTES = 8 * 2**20
"""About what a page should hold; how many documents that is, the pages before tell."""

_FIRST_PAGE, _LARGEST_PAGE, _GROWTH = 50, 5_000, 8
_KEEP_ALIVE = "5m"
_REOPENINGS = 3
"""How often in a row a point in time may be lost without a new document being read."""


class Hit(msgspec.Struct):
    """A document found; its source stays the text that came, keys in the order stored."""

    index: str = msgspec.field(name="_index")
    id: str = msgspec.field(name="_id")
    sort: list[Any]
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))

    @property
    def place(self) -> str:
        """Index and id, as a source is named."""
        return f"{self.index}/{self.id}"

    @property
    def mark(self) -> int:
        """64 bits that stand for the place while this process lives."""
        return hash(self.place)


class _Hits(msgspec.Struct):
    hits: list[Hit]


class RawSources(JsonSerializer):
    """Decodes answers, but not the documents in them."""

    _parts = msgspec.json.Decoder(dict[str, msgspec.Raw])
    _hits = msgspec.json.Decoder(_Hits)

    def json_loads(self, data: bytes) -> Any:
        """An object whose ``hits``, if it answers a search, are `_Hits`."""
        try:
            parts = self._parts.decode(data)
            hits = parts.pop("hits", None) if "took" in parts else None
            answer: Json = {name: msgspec.json.decode(part) for name, part in parts.items()}
            return answer if hits is None else {**answer, "hits": self._hits.decode(hits)}
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None


def each_once(client: Elasticsearch, index: str, search: Json) -> Iterator[list[Hit]]:
    """All pages; where a point in time is lost, from the beginning, without what was given."""
    given = array("q")
    in_vain = 0
    while True:
        before = len(given)
        known = np.sort(np.frombuffer(given, np.int64)) if before else None
        try:
            for page in _pages(client, index, search):
                if new := page if known is None else _unknown(page, known):
                    given.extend(hit.mark for hit in new)
                    yield new
        except ApiError as error:
            in_vain = in_vain + 1 if len(given) == before else 0
            if not _is_lost(error) or in_vain == _REOPENINGS:
                raise
        else:
            return


def _unknown(page: list[Hit], known: np.ndarray) -> list[Hit]:
    marks = np.array([hit.mark for hit in page], np.int64)
    nearest = known[np.searchsorted(known, marks) % len(known)]
    return [hit for hit, new in zip(page, nearest != marks, strict=True) if new]


def _pages(client: Elasticsearch, index: str, search: Json) -> Iterator[list[Hit]]:
    """The pages of one point in time, which is closed however this ends."""
    point: str = client.open_point_in_time(index=index, keep_alive=_KEEP_ALIVE)["id"]
    size, after = _FIRST_PAGE, None
    try:
        while True:
            pit = {"id": point, "keep_alive": _KEEP_ALIVE}
            answer = client.search(pit=pit, size=size, search_after=after, **search).body
            point = answer.get("pit_id", point)
            page: list[Hit] = answer["hits"].hits
            if page:
                yield page
            if len(page) < size:
                return
            after = page[-1].sort
            size = _fitting(size, sum(len(hit.source) for hit in page))
    finally:
        # It may be what was lost; else it ends by itself.
        with suppress(ApiError, TransportError):
            client.close_point_in_time(id=point)


def _fitting(size: int, filled: int) -> int:
    """Documents for the next page, after ``size`` of them filled so many bytes.

    It grows by steps, as a few small documents say little about the next ones.
    """
    return max(1, min(int(size * PAGE_BYTES / max(filled, 1)), _GROWTH * size, _LARGEST_PAGE))


def chunk(page: list[Hit]) -> Chunk:
    """A page as lines of a store; documents that hold line breaks are written on one."""
    lines = [msgspec.json.format(bytes(hit.source), indent=-1) for hit in page]
    return Chunk(lines, [0] * len(page), [hit.place for hit in page])


def _is_lost(error: ApiError) -> bool:
    return error.meta.status == 404 and "search_context_missing" in json.dumps(error.body)
