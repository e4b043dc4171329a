"""What other stages measured, whatever it was, as names and values for people.

A calibration may gain figures; the report shows them as they come, without knowing each by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.report.text import line

Pairs = list[tuple[str, str]]
ENTRIES = 40
"""Of one group's figures, or a table's rows."""
VALUES = 12
"""Of a list."""
LENGTH = 200
"""Characters of a value."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A JSON object in parts that can be read."""

    plain: Pairs
    """Figures by name."""
    groups: list[tuple[str, Pairs]]
    """Objects within it that are not empty."""
    tables: list[tuple[str, list[str], list[list[str]]]]
    """Lists of objects within it: name, columns, rows."""


def facts(data: Mapping[str, Any], without: Sequence[str] = ()) -> Facts:
    """Sort a JSON object's members by their shape, at most `ENTRIES` of each."""
    kept = {title(name): value for name, value in data.items() if name not in without}
    nested = {name: value for name, value in kept.items() if isinstance(value, Mapping)}
    listed = {name: value for name, value in kept.items() if _is_table(value)}
    plain = {n: v for n, v in kept.items() if n not in nested and n not in listed and v != []}
    return Facts(
        plain=[(name, value_of(value)) for name, value in plain.items()][:ENTRIES],
        groups=[(n, list(_flat(value))[:ENTRIES]) for n, value in nested.items() if value],
        tables=[(name, *_table(value)) for name, value in listed.items()],
    )


def title(name: str) -> str:
    """A name as words."""
    return line(name.replace("_", " "))


def value_of(value: Any) -> str:
    """A JSON value as people read it."""
    match value:
        case None:
            text = "–"
        case bool():
            text = "yes" if value else "no"
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        case list():
            more = f" and {len(value) - VALUES} more" if len(value) > VALUES else ""
            text = ", ".join(map(value_of, value[:VALUES])) + more
        case dict():
            shown = list(value.items())[:VALUES]
            text = ", ".join(f"{title(name)} {value_of(one)}" for name, one in shown)
        case _:
            text = line(str(value), LENGTH)
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return list(map(title, names)), [
        [value_of(row.get(name)) for name in names] for row in rows[:ENTRIES]
    ]


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and any(isinstance(one, Mapping) for one in value.values()):
            yield from ((f"{title(name)}: {inner}", told) for inner, told in _flat(value))
        else:
            yield title(name), value_of(value)
