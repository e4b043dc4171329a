"""Where personal data stands in a text: the kinds of `patterns`, looked for in order of precedence.

All hints together are `SUSPICIOUS`, the cheap test that spares most traffic everything else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

import re2

from flywheel.redaction.patterns import KINDS, NUMBER, WORD, Hit, Span

_AFTER = r"[\dA-Z)０-９]"
_ODD = "\u00a0\u2000-\u200a\u202f\u3000\u2010-\u2015\u2212－"
_WIDE = "＋０-９＠Ａ-Ｚａ-ｚ"
_UNUSUAL = re.compile(f"(?<={_AFTER})[{_ODD}]|[{_WIDE}]", re.ASCII)
"""Spaces and dashes of word processors inside a number, and full-width characters."""
_UNUSUAL_HINTS = (
    f"{_AFTER}[{_ODD}]|[{_WIDE}]",
    # The JSON text of a value may escape any character. These could matter to a pattern: ASCII
    # (but for quotes, & < >, which many writers escape), odd spaces and dashes inside a number,
    # and what is neither European letter nor punctuation.
    r"\\u(?:00(?:2[0589bBdDeEfF]|3[0-9aAdD]|[4-7])|[3-9a-fA-F])",
    r"[\dA-Z)]\\+(?:/|u(?:00[aA]0|20[0-2]|2212))",
)


def _plain(hit: Hit) -> str:
    if hit[0] > "\uff00" and hit[0] != "－":
        return chr(ord(hit[0]) - 0xFEE0)
    return "-" if "\u2010" <= hit[0] <= "\u2015" or hit[0] in "\u2212－" else " "


def _union(hints: Iterable[str]) -> str:
    """The hints as one expression; what many begin with is tried once."""
    rests: dict[str, list[str]] = {}
    for hint in hints:
        begin = next(b for b in (NUMBER, WORD, "") if hint.startswith(b))
        rests.setdefault(begin, []).append(hint.removeprefix(begin))
    return "|".join(f"{begin}(?:{'|'.join(rest)})" for begin, rest in rests.items())


SUSPICIOUS = _union([hint for kind in KINDS for hint in kind.hints] + [*_UNUSUAL_HINTS])
"""A text without a match, or a value whose JSON text has none, is certainly left alone."""
_SUSPICIOUS = re2.compile(SUSPICIOUS)


def needs_masking(text: str | bytes) -> bool:
    """Whether `SUSPICIOUS` matches; never wrongly ``False``."""
    return _SUSPICIOUS.search(_utf8(text)) is not None


_SHORT = 64
"""Characters of a text that is likely to come again: roles, types, names of models and tools."""
_short_needs_masking = lru_cache(maxsize=4096)(needs_masking)


def is_usual(text: str) -> bool:
    """Whether it is short and certainly holds nothing to mask; quick for what was asked before."""
    return len(text) <= _SHORT and not _short_needs_masking(text)


def suspects(texts: Sequence[bytes]) -> set[int]:
    """Which of many texts, by number, `needs_masking` may say yes to: all in one search."""
    whole = b"\n".join(texts)
    ends = list(accumulate([len(text) + 1 for text in texts]))
    found: set[int] = set()
    for hit in _SUSPICIOUS.finditer(whole):
        # A hit that reaches into the next texts may hide one of their own.
        found.update(range(bisect_right(ends, hit.start()), bisect_right(ends, hit.end()) + 1))
    return {i for i in found if i < len(texts)}


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    return text.encode("utf-8", "replace")  # half a surrogate pair is no part of any kind


def _hint_set() -> tuple[re2.Set, list[int]]:
    """All hints to be looked for at once, and the number of each one's kind."""
    hints, kinds = re2.Set.SearchSet(), []
    for number, kind in enumerate(KINDS):
        for hint in kind.hints:
            hints.Add(hint)
            kinds.append(number)
    hints.Compile()
    return hints, kinds


_HINTS, _HINTED = _hint_set()


_ROUNDS = 3
_NEIGHBOUR = re.compile(rf"[\w.+%@:/{_ODD}-]|[ -][\d(]")
"""What a value so near may have hidden: it is blanked and the rest searched again."""


def find(text: str, name: str = "") -> list[Span]:
    """Where personal data stands in a text, in order, not overlapping.

    Args:
        text: Any text.
        name: The JSON key it stands under, which may say what a bare value is.
    """
    label = f"{name[-60:]}: " if name else ""
    whole = label + text
    if not (_short_needs_masking if len(whole) <= _SHORT else needs_masking)(whole):
        return []
    spans = search(whole)
    shift = len(label)
    return [Span(s.start - shift, s.end - shift, s.kind) for s in spans if s.start >= shift]


def search(text: str) -> list[Span]:
    """`find` without the cheap test before it."""
    spans: list[Span] = []
    for _ in range(_ROUNDS):
        new = _search_once(_UNUSUAL.sub(_plain, text))
        text = _blanked(text, sorted(new))
        spans += new
        if not any(_has_neighbour(text, span) for span in new):
            break
    return sorted(spans)


def _blanked(text: str, spans: list[Span]) -> str:
    pieces, at = [], 0
    for span in spans:
        pieces += [text[at : span.start], "\0" * (span.end - span.start)]
        at = span.end
    return "".join([*pieces, text[at:]]) if spans else text


def _search_once(text: str) -> list[Span]:
    spans: list[Span] = []
    found_hints = _HINTS.Match(_utf8(text))  # None also where the set's memory did not suffice
    if found_hints is None and not needs_masking(text):
        return []
    hinted = range(len(KINDS)) if found_hints is None else {_HINTED[i] for i in found_hints}
    for number, kind in enumerate(KINDS):
        if number in hinted and (found := list(kind.spans(text))):
            text = _blanked(text, found)
            spans += found
    return spans


def _has_neighbour(text: str, span: Span) -> bool:
    before = text[max(0, span.start - 1) : span.start]
    return bool(_NEIGHBOUR.match(text, span.end) or _NEIGHBOUR.match(before))
