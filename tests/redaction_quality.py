"""How well masking finds what the labelled set marks: ``python -m tests.redaction_quality``.

A value counts as found if exactly its characters are found, as its kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from flywheel.redaction import Span, find

LABELLED = Path(__file__).parent / "data" / "redaction.txt"
KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "IP", "SSN", "API_KEY", "URL_CREDENTIALS")
_MARK = re.compile(rf"\{{({'|'.join(KINDS)}):(.*?)\}}", re.DOTALL)


class Sentence(NamedTuple):
    """A text and what is personal in it."""

    text: str
    spans: list[Span]


class Quality(NamedTuple):
    """How many values are labelled, found of these, and found though they are none."""

    labelled: int
    found: int
    wrong: int

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.wrong)

    @property
    def recall(self) -> float:
        return self.found / max(1, self.labelled)


def sentences() -> list[Sentence]:
    lines = LABELLED.read_text(encoding="utf-8").splitlines()
    return [_unmarked(line) for line in lines if line and not line.startswith("##")]


def _unmarked(line: str) -> Sentence:
    """Take the marks out of a line of the file; its head says what they mean."""
    line = line.replace("¦", "").replace("⏎", "\n")
    text, spans, at = "", [], 0
    for mark in _MARK.finditer(line):
        text += line[at : mark.start()]
        spans.append(Span(len(text), len(text) + len(mark[2]), mark[1]))
        text, at = text + mark[2], mark.end()
    return Sentence(text + line[at:], spans)


def measure(finder: Callable[[str], list[Span]] = find) -> dict[str, Quality]:
    """Quality by kind, and of ``ALL`` together."""
    labelled, found, wrong = Counter[str](), Counter[str](), Counter[str]()
    for text, spans in sentences():
        got = set(finder(text))
        labelled.update(span.kind for span in spans)
        found.update(span.kind for span in got & set(spans))
        wrong.update(span.kind for span in got - set(spans))
    for counter in (labelled, found, wrong):
        counter["ALL"] = counter.total()
    return {kind: Quality(labelled[kind], found[kind], wrong[kind]) for kind in (*KINDS, "ALL")}


def mistakes() -> Iterator[str]:
    """What is missed or found wrongly, one a line."""
    for text, spans in sentences():
        got = set(find(text))
        for what, those in (("missed", set(spans) - got), ("wrong", got - set(spans))):
            for start, end, kind in sorted(those):
                yield f"{what:6} {kind:15} {text[start:end]!r} in {text!r}"


def table() -> str:
    """The figures, by kind."""
    rows = [f"{'kind':15} labelled  found  wrong  precision  recall"]
    for kind, quality in measure().items():
        counts = f"{quality.labelled:8}  {quality.found:5}  {quality.wrong:5}"
        rows.append(f"{kind:15} {counts}  {quality.precision:9.3f}  {quality.recall:6.3f}")
    return "\n".join(rows)


if __name__ == "__main__":
    texts = sentences()
    clean = sum(not spans for _, spans in texts)
    print(f"{len(texts)} sentences, {clean} of them with nothing to mask")  # noqa: T201
    print(table(), *mistakes(), sep="\n")  # noqa: T201
