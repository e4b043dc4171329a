"""The page's charts, drawn by matplotlib as static SVG.

A static SVG of some 20 kB needs no script, prints, and takes the page's own colours, so that it
follows the reader's light or dark setting; an interactive library would put megabytes of script
into every report. Charts are about as wide as a phone, so that their text is as large as the
page's.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from flywheel.leaderboard import Leaderboard, Row, floor, money
from flywheel.report.curated import Step
from flywheel.report.text import line, visible
from flywheel.statistics import plan

COLOURS = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--accent)",
    "#010206": "var(--line)",
    "#010207": "var(--warn)",
}
"""What a chart is drawn with -> what the page calls it."""
INK, MUTED, ACCENT, LINE, WARN = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flywheel",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
"""matplotlib's settings: text stays text, ids do not change from run to run."""
WIDTH = 3.9
"""Inches, of 96 pixels on a page."""
LABELLED = 12
"""Points that are numbered; with more, only those on the Pareto front."""
_STROKES = ["-", "--", ":", "-.", (0, (6, 1.5)), (0, (1, 3))]


def pareto(board: Leaderboard) -> Markup | None:
    """Quality against cost with 95 % error bars; ``None`` if no ranked trial has a cost."""
    rows = [row for row in board.ranked if row.cost is not None]
    return _svg(lambda axes: _draw_pareto(axes, rows, board), 3.1) if rows else None


def latencies(labelled: Sequence[tuple[str, Sequence[float]]]) -> Markup | None:
    """How many of a trial's answers came within how many seconds; ``None`` without answers.

    Args:
        labelled: A name, and the seconds of each answer.
    """
    drawn = [(name, seconds) for name, seconds in labelled if seconds]
    return _svg(lambda axes: _draw_latencies(axes, drawn), 2.7) if drawn else None


def loads(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup | None:
    """What load does to latency; ``None`` without a load test.

    Args:
        curves: A name, and for each load the requests per second and the p95 of seconds.
    """
    drawn = [(name, points) for name, points in curves if points]
    return _svg(lambda axes: _draw_loads(axes, drawn), 2.7) if drawn else None


def power(board: Leaderboard) -> Markup | None:
    """Which margin how many eval records can show; ``None`` where nothing was planned."""
    return _svg(lambda axes: _draw_power(axes, board), 2.5) if board.power else None


def funnel(steps: Sequence[Step]) -> Markup | None:
    """What was left after each step of curation; ``None`` without any line."""
    return _svg(lambda axes: _draw_funnel(axes, steps), 2.3) if steps[0].count else None


def _svg(draw: Callable[[Any], None], height: float) -> Markup:
    """A figure in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for drawn, meant in COLOURS.items():
        text = text.replace(drawn, meant)
    return Markup(text)  # noqa: S704 - numbers and names only, escaped by matplotlib


def _draw_pareto(axes: Any, rows: Sequence[Row], board: Leaderboard) -> None:
    prices = [row.cost or 0.0 for row in rows]
    for row in rows:
        _draw_point(axes, row, board.metric, numbered=row.pareto or len(rows) <= LABELLED)
    _draw_front(axes, rows, board.metric)
    axes.axhline(floor(board), color=MUTED, linewidth=0.9, linestyle=":")
    production = board.production.per_1k_requests if board.production else None
    if production is not None:
        prices.append(production)
        axes.axvline(production, color=MUTED, linewidth=0.9, linestyle="--")
        _note(axes, "production", (production, 0.0), (-4, 2), ha="right")
    _scale(axes, prices)
    axes.set_ylim(-0.03, 1.04)
    axes.set_xlabel("US dollars per 1,000 requests")
    axes.set_ylabel(line(visible(board.metric), 40), parse_math=False)


def _draw_point(axes: Any, row: Row, metric: str, *, numbered: bool) -> None:
    figure, price = row.result.metrics[metric], row.cost or 0.0
    value, low, high = figure.value or 0.0, figure.low or 0.0, figure.high or 0.0
    colour = ACCENT if row.pareto else MUTED
    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
    filled = "full" if row.eligible else "none"
    axes.errorbar(
        price, value, spread, fmt="o", ms=5, color=colour, elinewidth=1.1, fillstyle=filled
    )
    if numbered:
        side = 1 if (row.rank or 0) % 2 else -1
        place = {"ha": "left" if side > 0 else "right", "weight": "bold", "color": INK}
        _note(axes, str(row.rank), (price, value), (6 * side, 3), **place)


def _draw_front(axes: Any, rows: Sequence[Row], metric: str) -> None:
    """What no other trial beats in quality at the same cost or less, as stairs."""
    points = sorted((row.cost or 0.0, row.result.metrics[metric].value or 0.0) for row in rows)
    front: list[tuple[float, float]] = []
    for price, value in points:
        if not front or value > front[-1][1]:
            front.append((price, value))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=ACCENT, linewidth=0.8, alpha=0.6)


def _scale(axes: Any, prices: Sequence[float]) -> None:
    """A logarithmic axis where prices differ tenfold, else a linear one from zero."""
    low, high = min(prices), max(prices)
    if low > 0 and high / low > 10:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.8, high * 1.8)
        axes.xaxis.set_major_formatter(lambda value, _: money(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.set_xlim(0, high * 1.15 or 1)


def _draw_latencies(axes: Any, labelled: Sequence[tuple[str, Sequence[float]]]) -> None:
    for i, (name, seconds) in enumerate(labelled):
        axes.ecdf(seconds, label=visible(name), **_stroke(i))
    axes.grid(axis="y")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("answers that came within")
    axes.legend(loc="lower right", handlelength=2.6)


def _draw_loads(axes: Any, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> None:
    for i, (name, points) in enumerate(curves):
        axes.plot(*zip(*points, strict=True), marker="o", ms=3.5, label=visible(name), **_stroke(i))
    axes.grid(axis="y")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests answered per second")
    axes.set_ylabel("p95, seconds")
    axes.legend(loc="upper left", handlelength=2.6)


def _stroke(number: int) -> dict[str, Any]:
    """How the curve of the first trial, the second and so on is drawn."""
    colour = ACCENT if number == 0 else INK if number < 3 else MUTED
    return {"linestyle": _STROKES[number % len(_STROKES)], "color": colour, "linewidth": 1.3}


def _draw_power(axes: Any, board: Leaderboard) -> None:
    planned = board.power or {}
    records, needed = planned["records"], planned.get("records_needed")
    reach = 2 * max(records, needed or 0, 50)
    counts = np.unique(np.linspace(20, reach, 60).astype(int))
    margins = [
        plan(
            int(n), planned["margin"], planned["disagreement"], asked_again=bool(board.asked_again)
        ).smallest_margin
        for n in counts
    ]
    axes.plot(counts, margins, color=ACCENT, linewidth=1.3)
    axes.axhline(planned["margin"], color=MUTED, linewidth=0.9, linestyle=":")
    _note(axes, "margin asked for", (reach, planned["margin"]), (0, 3), ha="right")
    axes.plot([records], [planned["smallest_margin"]], "o", ms=5, color=ACCENT)
    spot = (records, planned["smallest_margin"])
    _note(axes, f"{records:,} records: {planned['smallest_margin']:.2f}", spot, (6, 5), color=INK)
    axes.set_ylim(0, min(1.0, max(margins) * 1.1))
    axes.set_xlim(0, reach)
    axes.set_xlabel("eval records")
    axes.set_ylabel("margin that can be shown")


def _draw_funnel(axes: Any, steps: Sequence[Step]) -> None:
    names, counts = [step.name for step in steps], [step.count for step in steps]
    bars = axes.barh(names, counts, color=ACCENT, height=0.62)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, color=INK)
    axes.invert_yaxis()
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xticks([])
    axes.margins(x=0.16)


def _note(axes: Any, text: str, at: tuple[float, float], off: tuple[int, int], **how: Any) -> None:
    """Words beside a point, ``off`` points of type away."""
    axes.annotate(text, at, xytext=off, textcoords="offset points", **{"color": MUTED, **how})
