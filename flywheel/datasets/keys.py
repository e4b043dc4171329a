"""What decides about a Record: hashes of what it asks and answers, and the names of its class.

Everything after reading (duplicates, groups, classes, splits) looks at these columns alone, a few
hundred bytes a record, and never at a record's text. A hash is the first 8 bytes of BLAKE2b.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_digest, xxh3_128_digest

from flywheel.types import Json, Record, canonical_bytes, digest

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
"""One row per record."""


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
        return cls.among(gathered([rows], rows.num_rows))

    @classmethod
    def among(cls, columns: Mapping[str, npt.NDArray[Any]]) -> Keys:
        """Take those of `SCHEMA` out of more columns."""
        return cls(*(columns[field.name] for field in fields(cls)))


class Row(NamedTuple):
    """One record's keys, as they are collected."""

    hashes: bytes
    """8 bytes for each of `HASHES`."""
    timestamp: float
    tool: str
    label: str
    length: int


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of `SCHEMA`."""
    hashes = np.frombuffer(b"".join(row.hashes for row in rows), ">u8").reshape(-1, len(HASHES))
    others = zip(*(row[1:] for row in rows), strict=True) if rows else [()] * 4
    arrays = [pa.array(column) for column in hashes.T.astype(np.uint64)]
    arrays += [
        pa.array(v, f.type) for v, f in zip(others, list(SCHEMA)[len(arrays) :], strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def gathered(tables: Iterable[pa.Table], rows: int) -> dict[str, npt.NDArray[Any]]:
    """The tables' columns as arrays of so many rows, with no more than one table at a time.

    Lists of a fixed length become (rows, length); what is missing of whole numbers is -1.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    at = 0
    for table in tables:
        for name in table.column_names:
            values = _column(table[name].combine_chunks())
            if name not in found:
                found[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            found[name][at : at + len(values)] = values
        at += table.num_rows
    return found


def _column(values: Any) -> npt.NDArray[Any]:
    """As numpy; equal texts are one object."""
    if pa.types.is_fixed_size_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, values.type.list_size)  # type: ignore[no-any-return]
    if values.null_count and pa.types.is_integer(values.type):
        values = values.fill_null(-1)
    if not pa.types.is_string(values.type):
        return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    encoded = values.dictionary_encode()
    names: npt.NDArray[Any] = np.array([*encoded.dictionary.to_pylist(), None], object)[:-1]
    texts: npt.NDArray[Any] = names[encoded.indices.to_numpy(zero_copy_only=False)]
    return texts


def numbered(column: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Each entry's value by number, and the different values, in order of their first entry."""
    encoded = pa.array(column).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_numpy(zero_copy_only=False)


class Said(msgspec.Struct, frozen=True):
    """What the hashes see of one message."""

    whole: bytes
    """`digest` of the message."""
    asked: bytes
    """The same for messages that differ in how the user's text is written, and in nothing else."""
    frame: bytes
    """The same for messages that differ in the user's text."""
    text: str | None
    """The user's normalised text; ``None`` for the messages of others."""

    @classmethod
    def of(cls, message: Json) -> Said:
        """Look at a message."""
        whole = digest(message)
        if message["role"] != "user":
            return cls(whole, whole, whole, None)
        content = message["content"]
        if len(message) == 2 and isinstance(content, str):
            text = normal_text(content)
            return cls(
                whole,
                xxh3_128_digest(b"text" + text.encode("utf-8", "surrogatepass")),
                b"user",
                text,
            )
        content, text = _normal_content(content)
        asked = xxh3_128_digest(canonical_bytes({**message, "content": content}))
        return cls(whole, asked, b"user", text)


def row(record: Record) -> Row:
    """One record's keys."""
    said = [Said.of(message) for message in record.messages]
    found, _ = decide(
        record.id,
        record.timestamp,
        said,
        digest(record.tools),
        links(record.request),
        record.answer,
    )
    return found


def decide(
    name: str, timestamp: float, said: Sequence[Said], tools: bytes, linked: bytes, answer: Json
) -> tuple[Row, str]:
    """One record's keys, and the user's normalised text.

    Args:
        name: The record's id.
        timestamp: Seconds since the epoch.
        said: What its messages say.
        tools: `digest` of the list of its tools.
        linked: `links` of its request.
        answer: Production's message.
    """
    prompt = b"".join([one.asked for one in said])
    text = "\n".join([one.text for one in said if one.text is not None])
    calls, content = answer.get("tool_calls"), answer.get("content") or ""
    answered = canonical_bytes([call["function"] for call in calls] if calls else content)
    hashes = (
        bytes.fromhex(name),
        _hash(b"".join([one.whole for one in said]) + tools),
        _hash(prompt + tools),
        _hash(prompt),
        _hash(b"\n".join([one.frame for one in said]) + tools),
        _hash(text.encode("utf-8", "surrogatepass")) if text else _NOTHING,
        _hash(answered),
        linked,
    )
    label = content.strip()[:_LABEL_LENGTH]
    return Row(b"".join(hashes), timestamp, _tool(calls), label, len(content)), text


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


_NOTHING = bytes(8)


_hash = xxh3_64_digest


def links(request: Json) -> bytes:
    """8 bytes for each of `LINKS`."""
    metadata = request.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    if not named and "user" not in request:
        return _NOTHING * len(LINKS)
    values = [named.get(name) for name in LINKS]
    if values[-1] is None:
        values[-1] = request.get("user")
    return b"".join(
        _hash(f"{name}={value}".encode("utf-8", "surrogatepass"))
        if isinstance(value, str | int) and value != ""
        else _NOTHING
        for name, value in zip(LINKS, values, strict=True)
    )


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
