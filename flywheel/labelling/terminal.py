"""Labels one by one in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from flywheel.judging.pairs import printable
from flywheel.labelling.pool import Item, Pool

KEYS = {"g": True, "b": False, "u": None}
QUESTION = "as good as production's? (g)ood, (b)ad, (u)nsure, (q)uit: "


def ask(pool: Pool, console: Console, answer: Callable[[str], str] = input) -> int:
    """Show pair after pair until there are no more, or the person has had enough.

    Args:
        pool: The run's pairs.
        console: Shows them.
        answer: Asks a question and gives what was typed; raises EOFError where nobody types.

    Returns:
        How many labels were given.
    """
    given = 0
    while (turn := pool.next()) is not None:
        item, drawn = turn
        _show(console, item, f"{pool.labelled + 1} of {len(pool.items)}")
        key = ""
        while key not in KEYS:
            try:
                key = answer(QUESTION).strip().casefold()[:1]
            except EOFError:
                key = "q"
            if key == "q":
                return given
        pool.label({item.key: (KEYS[key], drawn)})
        given += 1
    return given


def _show(console: Console, item: Item, title: str) -> None:
    """Traffic is neither markup nor control sequences."""
    console.rule(title)
    pair = item.pair
    for name, text in zip(
        ("question", "production", "candidate"),
        (pair.query, pair.reference, pair.candidate),
        strict=True,
    ):
        console.print(Text.assemble((f"{name}\n", "bold"), printable(text), "\n"))
