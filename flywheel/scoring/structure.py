"""JSON answers, compared by what they mean: by the structure, led by a JSON Schema if there is one.

Both texts are read strictly and brought into one spelling, as tool arguments are
(`flywheel.scoring.meaning`): 5.0 is 5, keys have no order; where a schema says so, dates are
instants, an omitted property is its default, an array is a set. The answer may stand in a Markdown
code fence only where the expected one does: who reads production's answers would trip over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.schemas import MAX_SCHEMA, is_schema, signature
from flywheel.scoring import strict_json
from flywheel.scoring.meaning import TooMuchWorkError, parameters_of
from flywheel.scoring.tool_calls import UnscorableError
from flywheel.types import Json, canonical_bytes, json_text

Leaves = Counter[tuple[int, bytes]]
"""Values that hold no others, each with where it stands."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing two JSON texts."""

    same: bool
    leaf_f1: float
    """Harmonic mean of the shares of values that stand in both at the same place."""
    reason: str = ""
    """What is wrong with the answer as JSON, or what the comparison rests on."""


def compare(expected: str, answer: str, schema: Json | str | None) -> Compared:
    """Compare an answer with the expected one.

    Raises:
        ValueError: See `read_schema`.
        UnscorableError: The expected text is no JSON, or contradicts the schema.
    """
    schema = read_schema(schema) if isinstance(schema, str) else schema
    fenced = _unfenced(expected) != expected
    try:
        due = strict_json.parse(_unfenced(expected))
    except ValueError:
        raise UnscorableError("the expected answer is no JSON") from None
    if schema is not None and (place := signature(schema).contradiction(due)):
        raise UnscorableError(f"the expected answer contradicts the schema at {place}")
    try:
        sent = strict_json.parse(_unfenced(answer) if fenced else answer)
    except ValueError:
        return Compared(same=False, leaf_f1=0.0, reason="the answer is no JSON")
    if schema is not None and (place := signature(schema).contradiction(sent)):
        return Compared(same=False, leaf_f1=0.0, reason=f"contradicts the schema at {place}")
    return _compared(due, sent, schema)


def read_schema(schema: Json | str | None) -> Json | None:
    """A schema, or that of a file.

    Raises:
        ValueError: There is no such file, or it holds no JSON Schema.
    """
    if isinstance(schema, str):
        schema = _schema_file(schema)
    if schema is None:
        return None
    if len(json_text(schema)) > MAX_SCHEMA:
        raise ValueError(f"schema: longer than {MAX_SCHEMA:,} characters")
    if not is_schema(schema):
        raise ValueError("schema: is no valid JSON Schema of a known draft")
    return schema


def _schema_file(path: str) -> Json:
    try:
        found = strict_json.parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"schema: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"schema: {path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"schema: {path} must hold an object")  # noqa: TRY004 -- as the others
    return found


def _compared(due: Any, sent: Any, schema: Json | None) -> Compared:
    reason = ""
    try:
        reader = parameters_of(schema)
        meant = reader.meaning(due), reader.meaning(sent)
    except TooMuchWorkError:
        reason = "compared without the schema, which leads too far for these values"
        reader = parameters_of(None)
        meant = reader.meaning(due), reader.meaning(sent)
    places: dict[tuple[int, str | int], int] = {}
    wanted, got = (Counter(_leaves(value, places)) for value in meant)
    common = (wanted & got).total()
    same = canonical_bytes(meant[0]) == canonical_bytes(meant[1])
    return Compared(same, 2 * common / (wanted.total() + got.total()), reason)


def _leaves(value: Any, places: dict[tuple[int, str | int], int]) -> Iterator[tuple[int, bytes]]:
    """Every leaf with the number of its place; an empty object or array is a leaf too."""
    waiting = [(0, value)]
    while waiting:
        place, found = waiting.pop()
        if found and isinstance(found, dict | list):
            members = found.items() if isinstance(found, dict) else enumerate(found)
            for name, item in members:
                waiting.append((places.setdefault((place, name), len(places) + 1), item))
        else:
            yield place, canonical_bytes(found)


def _unfenced(text: str) -> str:
    """What stands in the one Markdown code fence that a text consists of; else the text."""
    bare = text.strip()
    if len(bare) < 6 or not (bare.startswith("```") and bare.endswith("```")):
        return text
    head, newline, body = bare[3:-3].partition("\n")
    return body if newline and (not head.strip() or head.strip().isalnum()) else text
