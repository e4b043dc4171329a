"""Put placeholders in the place of what finders found, the same for equal values of one record."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from flywheel.errors import ConfigError
from flywheel.redaction.patterns import Span
from flywheel.redaction.searching import find, is_usual, needs_masking
from flywheel.types import Json, Record, canonical_json, json_bytes, json_text

Finder = Callable[[str, str], list[Span]]
"""Text and the JSON key it stands under -> its spans, in order, not overlapping."""
Redactor = Callable[[Record], tuple[Record, Counter[str]]]
"""Record -> the masked record, and how many different values of each type were masked in it."""


def mask_text(text: str) -> str:
    """Mask one text on its own."""
    return _Masker(find).text(text)


def redact(record: Record, finder: Finder = find) -> tuple[Record, Counter[str]]:
    """Mask everything a record says; its id becomes that of the masked content.

    Returns:
        The masked record, and how many different values of each type were masked in it.
    """
    masker = _Masker(finder)
    found = masker.found()
    request, response = _mapped(record.request, found), _mapped(record.response, found)
    if not masker.counts:
        return record, masker.counts
    if masker.stands_elsewhere(json_text([request, response])):
        repeated = masker.repeated()
        request, response = _mapped(request, repeated), _mapped(response, repeated)
    return replace(record, request=request, response=response, id=""), masker.counts


def redact_said(
    messages: Sequence[tuple[Json, bytes]], response: tuple[Json, bytes], rest: bytes
) -> tuple[list[Json], Json, Counter[str]] | None:
    """`redact` where nothing but messages and response can hold anything: what these become.

    Args:
        messages: Each with its JSON text.
        response: With its JSON text.
        rest: JSON text of all else that the record says; certainly nothing to mask.

    Returns:
        Messages and response, the same objects where nothing was masked in them, and how many
        different values of each type were masked. ``None`` where a value stands elsewhere in the
        record, unrecognised: then `redact` has to look at all of it.
    """
    masker = _Masker(find)
    found = masker.found()
    masked = [_mapped(one, found) if needs_masking(text) else one for one, text in messages]
    answer = _mapped(response[0], found) if needs_masking(response[1]) else response[0]
    if masker.counts:
        texts = [
            text if new is old else json_bytes(new)
            for new, (old, text) in zip([*masked, answer], [*messages, response], strict=True)
        ]
        if masker.stands_elsewhere(b"\n".join([*texts, rest]).decode("utf-8", "surrogatepass")):
            return None
    return masked, answer, masker.counts


def redactor(mode: str, analyzer: Any = None) -> Redactor:
    """What masks records in a mode of masking; it pickles.

    Args:
        mode: ``off``, ``on`` (all that has a form), or ``presidio`` (names of people, places and
            organisations besides).
        analyzer: For ``presidio``: what has `presidio_analyzer.AnalyzerEngine`'s ``analyze``;
            by default an engine of each process's own.

    Raises:
        ConfigError: There is no such mode, or its extra is not installed.
    """
    if mode == "off":
        return _untouched
    if mode == "on":
        return redact
    if mode == "presidio":
        from flywheel.redaction.presidio import Names

        return partial(redact, finder=Names(analyzer))
    raise ConfigError(f"masking is {mode!r}; it can be off, on or presidio")


def _untouched(record: Record) -> tuple[Record, Counter[str]]:
    return record, Counter()


_MOST_REPEATED = 500
"""Values that are looked for everywhere else in their record; a bound against hostile ones."""
_WRITTEN_ALIKE = re.compile(r"[\w .,:;@+*()/-]*")
"""What JSON writes as it is, however deep the text it stands in."""
_BARE_NUMBER = re.compile(r"(?<!\w)[0-9]{7,19}(?!\w)")
_BARE = {"PHONE": 9, "CARD": 19, "SSN": 9}
"""Kinds that may stand elsewhere as a bare number, and how many of its last digits tell them
apart: of a phone number not those of country and trunk prefix."""


def _key(kind: str, value: str) -> tuple[str, str]:
    """What different spellings of one value share."""
    if kind in _BARE:
        return kind, re.sub(r"\D", "", value)[-_BARE[kind] :]
    if kind == "IBAN":
        return kind, re.sub(r"\W", "", value).upper()
    return kind, value if kind in ("API_KEY", "URL_CREDENTIALS") else value.casefold()


@dataclass(frozen=True)
class _Change:
    """What is done to each text of a record."""

    text: Callable[[str, str], str]
    """Text and the key it stands under -> the text instead of it."""
    touches: Callable[[str], bool]
    """Whether a value with this JSON text may hold anything to change. Asked of tool definitions,
    which are most of many a record, and the same in record after record."""
    passes: Callable[[str], bool] = lambda text: False
    """Whether an object with this JSON text is certainly left alone. Asked of messages."""
    spares: Callable[[str], bool] = lambda key: False
    """Whether this key is certainly left alone."""


_tools_need_masking = lru_cache(maxsize=64)(needs_masking)


class _Masker:
    """The placeholders of one record."""

    def __init__(self, finder: Finder) -> None:
        self.counts: Counter[str] = Counter()
        self._find = finder
        self._placeholders: dict[tuple[str, str], str] = {}
        self._spellings: dict[str, str] = {}

    def text(self, text: str, name: str = "") -> str:
        spans = self._find(text, name)
        if not spans:
            return text
        pieces, at = [], 0
        for start, end, kind in spans:
            pieces += [text[at:start], self._placeholder(kind, text[start:end])]
            at = end
        return "".join([*pieces, text[at:]])

    def found(self) -> _Change:
        """Masks what the finder finds."""
        if self._find is not find:  # names have no form to tell them by
            return _Change(self.text, _tools_need_masking)
        return _Change(self.text, _tools_need_masking, lambda t: not needs_masking(t), is_usual)

    def stands_elsewhere(self, text: str) -> bool:
        """Whether a known value may stand unmasked in this JSON text."""
        if any(one in text or not _WRITTEN_ALIKE.fullmatch(one) for one in self._spellings):
            return True
        # A bare number that is a known value ends with the digits that tell the value apart.
        digits = [tail for kind, tail in self._placeholders if kind in _BARE]
        return any(tail in text for tail in digits) and any(
            self._repeated(hit) != hit[0] for hit in _BARE_NUMBER.finditer(text)
        )

    def repeated(self) -> _Change:
        """Masks the known values where nothing but their equality says what they are."""
        known = sorted(self._spellings, key=len, reverse=True)[:_MOST_REPEATED]
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))}|[0-9]{{7,19}})(?!\w)")
        return _Change(
            lambda text, _: pattern.sub(self._repeated, text),
            lambda text: pattern.search(text) is not None,
        )

    def _repeated(self, hit: re.Match[str]) -> str:
        value = hit[0]
        bare = (self._placeholders.get(_key(kind, value)) for kind in _BARE)
        return self._spellings.get(value) or next(filter(None, bare), value)

    def _placeholder(self, kind: str, value: str) -> str:
        key = _key(kind, value)
        if key not in self._placeholders:
            self.counts[kind] += 1
            self._placeholders[key] = f"<{kind}_{self.counts[kind]}>"
        return self._spellings.setdefault(value, self._placeholders[key])


def _mapped(value: Any, change: _Change, name: str = "") -> Any:
    """The JSON value with the change made to each text in it, keys included.

    Keys are visited in sorted order, so that equal values get equal placeholders, and stay in the
    order that was logged.
    """
    if isinstance(value, str):
        return change.text(value, name)
    if isinstance(value, list):
        return [
            item
            if isinstance(item, dict) and change.passes(json_text(item))
            else _mapped(item, change)
            for item in value
        ]
    if isinstance(value, dict):
        return _mapped_object(value, change)
    if isinstance(value, int) and 10**6 <= abs(value) < 10**19:
        text = str(value)
        changed = change.text(text, name)
        return value if changed == text else changed
    return value


def _mapped_object(value: Json, change: _Change) -> Json:
    changed = {
        key: (
            key if change.spares(key) else change.text(key, ""),
            _field(key, value[key], change),
        )
        for key in sorted(value)
    }
    return dict(changed[key] for key in value)


def _field(name: str, value: Any, change: _Change) -> Any:
    if name == "arguments" and isinstance(value, str):
        return _arguments(value, change)
    if name == "tools" and not change.touches(json.dumps(value, ensure_ascii=False)):
        return value
    if isinstance(value, dict) and change.passes(json_text(value)):
        return value
    return _mapped(value, change, name)


def _arguments(text: str, change: _Change) -> str:
    """Tool-call arguments are JSON in a text: changed inside, so that they stay JSON."""
    try:
        return canonical_json(_mapped(json.loads(text), change))
    except (ValueError, RecursionError):
        return change.text(text, "")
