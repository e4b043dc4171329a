"""Regular expressions over answers, matched by RE2: time grows with the text, memory is bounded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

from flywheel.scoring.text import readable
from flywheel.scoring.tool_calls import UnscorableError
from flywheel.types import Json

MAX_PATTERN = 2_000
"""Characters."""


def prepare(*, pattern: str, full: bool = False) -> Json:
    """Check a pattern.

    Raises:
        ValueError: RE2 does not take it.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"pattern: longer than {MAX_PATTERN:,} characters")
    try:
        _compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        said = said.decode() if isinstance(said, bytes) else str(said)
        raise ValueError(f"pattern: RE2 does not take {pattern!r}: {said}") from None
    return {"pattern": pattern, "full": full}


def agreement(expected: str, answer: str, pattern: str, *, full: bool) -> tuple[float, str]:
    """Whether the answer matches, and catches what the expected text does; and why not.

    Raises:
        UnscorableError: The pattern catches something, but does not match the expected text.
    """
    found = _match(pattern, answer, full=full)
    if not _compiled(pattern).groups:
        return float(found is not None), "" if found else "the pattern does not match"
    wanted = _match(pattern, expected, full=full)
    if wanted is None:
        raise UnscorableError("the pattern does not match the expected answer")
    if found is None:
        return 0.0, "the pattern does not match"
    same = found.groups() == wanted.groups()
    return float(same), "" if same else "the groups catch something else"


def _match(pattern: str, text: str, *, full: bool) -> Any:
    compiled = _compiled(pattern)
    return (compiled.fullmatch if full else compiled.search)(readable(text))


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
