"""What decides about a Record: hashes of what it asks and answers, and the names of its class.

Everything after reading (duplicates, groups, classes, splits) looks at these columns alone, a few
hundred bytes a record, and never at a record's text. A hash is the first 8 bytes of BLAKE2b.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flywheel.types import Json, Record, canonical_bytes, tools_digest

NO_TOOL = "no_tool"

LINKS = ("conversation_id", "session_id", "user")
"""What a request's metadata may name that ties records together; ``user`` also OpenAI's field."""

_LABEL_LENGTH = 80
"""Characters of a text answer that tell classes apart."""

U64 = npt.NDArray[np.uint64]

HASHES = ("id", "exact", "normalised", "prompt", "frame", "text", "answer", *LINKS)
SCHEMA = pa.schema(
    [
        *((name, pa.uint64()) for name in HASHES),
        ("timestamp", pa.float64()),
        ("tool", pa.string()),
        ("label", pa.string()),
        ("length", pa.int32()),
    ]
)
"""One row per record, in the order of `row`."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of N records: entry i of every column is about record i."""

    id: U64
    exact: U64
    """Equal for the same messages and tools."""
    normalised: U64
    """Equal for the same messages and tools but for how the user's text is written."""
    prompt: U64
    """As ``normalised``, whatever the tools: the request as a leak check sees it."""
    frame: U64
    """Equal where all but the user's text is the same."""
    text: U64
    """The user's normalised text alone; 0 where there is none."""
    answer: U64
    """What production answered: the calls, or the text."""
    conversation_id: U64
    """Hash of what the log says; 0 where it says nothing. So the next two."""
    session_id: U64
    user: U64
    timestamp: npt.NDArray[np.float64]
    """Seconds since the epoch."""
    tool: npt.NDArray[Any]
    """Names of the tools called, or ``no_tool``."""
    label: npt.NDArray[Any]
    """The start of a text answer."""
    length: npt.NDArray[np.int32]
    """Characters of a text answer."""

    def linked_by(self, names: Collection[str]) -> Keys:
        """The same without the links that are not named."""
        nothing = np.zeros(len(self), np.uint64)
        dropped: dict[str, Any] = {name: nothing for name in LINKS if name not in names}
        return replace(self, **dropped)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def identity(self) -> U64:
        """What a hash places: the conversation, session or user where named, else the request."""
        identity = self.prompt
        for name in reversed(LINKS):
            link = getattr(self, name)
            identity = np.where(link != 0, link, identity)
        return identity

    @classmethod
    def of(cls, records: Sequence[Record]) -> Keys:
        """Read records' keys."""
        return cls.from_table(table([row(record) for record in records]))

    @classmethod
    def from_table(cls, rows: pa.Table) -> Keys:
        """Take the columns of `SCHEMA` out of a table."""
        return cls(*(_column(rows[field.name].combine_chunks()) for field in fields(cls)))


def table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Rows as `row` gives them, as a table of `SCHEMA`."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _column(values: Any) -> npt.NDArray[Any]:
    """As numpy; equal texts are one object."""
    if not pa.types.is_string(values.type):
        return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    encoded = values.dictionary_encode()
    names: npt.NDArray[Any] = np.array([*encoded.dictionary.to_pylist(), None], object)[:-1]
    texts: npt.NDArray[Any] = names[encoded.indices.to_numpy(zero_copy_only=False)]
    return texts


def row(record: Record) -> tuple[Any, ...]:
    """One record's keys in the order of `SCHEMA`."""
    *deciding, _ = decide(
        record.messages, tools_digest(record.tools), record.answer, record.request
    )
    return (int(record.id, 16), *deciding[:9], record.timestamp, *deciding[9:])


def decide(messages: list[Json], tools: bytes, answer: Json, request: Json) -> tuple[Any, ...]:
    """The keys of one record but for id and timestamp, and the user's normalised text.

    Args:
        messages: The conversation.
        tools: `tools_digest` of its tools.
        answer: Production's message.
        request: What else the request holds.
    """
    spoken: list[Json] = []
    frame: list[Json | str] = []
    said: list[str] = []
    for message in messages:
        if message["role"] != "user":
            spoken.append(message)
            frame.append(message)
            continue
        content, text = _normal_content(message["content"])
        spoken.append({**message, "content": content})
        frame.append("user")
        said.append(text)
    asked = canonical_bytes(spoken)
    text = "\n".join(said)
    calls = answer.get("tool_calls")
    content = answer.get("content") or ""
    return (
        _hash(canonical_bytes(messages) + tools),
        _hash(asked + tools),
        _hash(asked),
        _hash(canonical_bytes(frame) + tools),
        _hash(text.encode("utf-8", "surrogatepass")) if text else 0,
        _hash(canonical_bytes([c["function"] for c in calls] if calls else content)),
        *_links(request),
        _tool(calls),
        content.strip()[:_LABEL_LENGTH],
        len(content),
        text,
    )


def normal_text(text: str) -> str:
    """A query without case, spacing and closing marks."""
    return " ".join(text.casefold().split()).rstrip(".?! ")


def tool_of(record: Record) -> str:
    """The tools production called, ``(a, b)`` where several, or ``no_tool``."""
    return _tool(record.answer.get("tool_calls"))


def _tool(calls: list[Json] | None) -> str:
    if not calls:
        return NO_TOOL
    if len(calls) == 1:
        name: str = calls[0]["function"]["name"]
        return name
    names = sorted({call["function"]["name"] for call in calls})
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _links(request: Json) -> list[int]:
    metadata = request.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    if not named and "user" not in request:
        return [0, 0, 0]
    values = [named.get(name) for name in LINKS]
    if values[-1] is None:
        values[-1] = request.get("user")
    return [
        _hash(f"{name}={value}".encode("utf-8", "surrogatepass"))
        if isinstance(value, str | int) and value != ""
        else 0
        for name, value in zip(LINKS, values, strict=True)
    ]


def _normal_content(content: Any) -> tuple[Any, str]:
    """A user message's content in normal form, and its text alone."""
    if isinstance(content, str):
        text = normal_text(content)
        return text, text
    parts, texts = [], []
    for part in content:
        text = part.get("text")
        if isinstance(text, str):
            texts.append(normal_text(text))
            parts.append({**part, "text": texts[-1]})
        else:
            parts.append(part)
    return parts, "\n".join(texts)
