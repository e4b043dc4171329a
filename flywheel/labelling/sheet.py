"""Labels by spreadsheet: a CSV file out with the pairs to look at, and in again with labels."""

from __future__ import annotations

import csv
from pathlib import Path

from flywheel.errors import RequestError
from flywheel.judging.labels import Drawn
from flywheel.labelling.pool import DRAWN, Item, Pool

COLUMNS = ("pair", "drawn", "label", "question", "production", "candidate", "judges", "record_id")
WORDS = {"good": True, "bad": False, "unsure": None}
"""What may stand in the column ``label``; nothing at all is no label."""


def write(pool: Pool, path: Path) -> int:
    """Write the run's pairs, those without a label first in the order they should be looked at.

    Returns:
        How many there are.

    Raises:
        RequestError: The file cannot be written.
    """
    words = {good: word for word, good in WORDS.items()}
    done = [
        (pool.items[key], label.drawn, words[label.good])
        for key, label in pool.labels.by_pair.items()
        if key in pool.items
    ]
    rows = [(item, drawn, "") for item, drawn in pool.order()] + done
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_row(*row) for row in rows)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from None
    return len(rows)


def read(pool: Pool, path: Path) -> int:
    """Take the labels out of such a file; only ``pair``, ``drawn`` and ``label`` are looked at.

    Returns:
        How many labels it holds.

    Raises:
        RequestError: The file cannot be read, or a line of it is wrong; nothing was kept.
    """
    said: dict[str, tuple[bool | None, Drawn]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"pair", "label"} <= set(reader.fieldnames or ()):
                raise RequestError(f"{path}: needs the columns pair and label")
            for row in reader:
                word = (row["label"] or "").strip().casefold()
                if not word:
                    continue
                if word not in WORDS:
                    allowed = ", ".join(WORDS)
                    raise RequestError(
                        f"{path}: line {reader.line_num}: label {word[:40]!r}; allowed: {allowed}"
                    )
                said[row["pair"] or ""] = WORDS[word], _drawn(row.get("drawn"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None
    pool.label(said)
    return len(said)


def _row(item: Item, drawn: Drawn, label: str) -> list[str]:
    value = "" if item.value is None else f"{item.value:.3f}"
    texts = (item.pair.query, item.pair.reference, item.pair.candidate)
    return [item.key, drawn, label, *map(_harmless, texts), value, item.record_id]


def _harmless(text: str) -> str:
    """Spreadsheets take some texts for formulas (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _drawn(word: str | None) -> Drawn:
    """What a file does not say was drawn at random was not."""
    return next((kind for kind in DRAWN if kind == (word or "").strip()), "informative")
