"""The report: one HTML page that needs no network, no script and no trust in what it shows.

Everything it prints passes the template's escaping and `visible`, which spells out characters
that could reorder or hide text. The chart is a static SVG; its colours are the page's own, so it
follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from flywheel.config import Experiment, dump
from flywheel.leaderboard import Leaderboard, Row, decimal, money, table, verdict
from flywheel.scoring.text import text_of
from flywheel.types import Completion, Json, Record, Score

WORST = 10
TEXT_LIMIT = 2_000
"""Characters shown of one query or answer."""
COLOURS = {"#010203": "var(--ink)", "#010204": "var(--muted)", "#010205": "var(--accent)"}
"""What the chart is drawn with -> what the page calls it."""
INK, MUTED, ACCENT = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flywheel",
    "font.size": 10,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
}
"""matplotlib's settings: text stays text, ids do not change from run to run."""
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls, bidirectional overrides, zero-width characters (joiners of scripts and emoji apart),
lone surrogates and tags."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One record where the best trial did not answer as production did."""

    query: str
    production: str
    candidate: str
    scores: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the curation funnel: what was left, and what left before it."""

    name: str
    count: int
    share: float
    """Of the log's lines, in percent."""
    lost: str


def render(
    board: Leaderboard,
    manifest: Mapping[str, Any],
    experiment: Experiment,
    *,
    completions: Mapping[str, Sequence[Completion]],
    scores: Mapping[str, Sequence[Score]],
    records: Sequence[Record],
) -> str:
    """Make the page.

    Args:
        board: The ranked trials.
        manifest: The dataset's ``manifest.json``.
        experiment: What was run.
        completions: By trial key; only the best trial's are read.
        scores: By trial key, all metrics.
        records: The eval records.
    """
    columns, rows = table(board)
    return _template().render(
        board=board,
        decimal=decimal,
        manifest=manifest,
        experiment=experiment,
        verdict=verdict(board),
        columns=columns,
        rows=list(zip(rows, [*map(_style, board.rows), "production"], strict=False)),
        chart=chart(board),
        funnel=funnel(manifest),
        leaks=_total(manifest.get("leak_check", 0)),
        disagreements=worst(board, completions, scores, records),
        versions=board.provenance.get("versions", {}),
        experiment_yaml=dump(experiment),
    )


def worst(
    board: Leaderboard,
    completions: Mapping[str, Sequence[Completion]],
    scores: Mapping[str, Sequence[Score]],
    records: Sequence[Record],
) -> list[Disagreement]:
    """The best trial's lowest-scored answers, by the ranking metric, then by all metrics."""
    if board.best is None:
        return []
    key = board.best.result.key
    answers = {c.record_id: c.message for c in completions.get(key, ()) if c.message is not None}
    values = _values(scores.get(key, ()))
    asked = [
        r for r in records if r.id in answers and values.get(r.id, {}).get(board.metric, 1) < 1
    ]
    asked.sort(key=lambda r: (values[r.id][board.metric], sum(values[r.id].values()), r.id))
    return [_disagreement(r, answers[r.id], values[r.id]) for r in asked[:WORST]]


def funnel(manifest: Mapping[str, Any]) -> list[Step]:
    """What was curated, from lines of the log to records per split."""
    lines = manifest.get("lines", 0)
    splits = manifest.get("splits", {})
    distinct = _total(splits) + manifest.get("unused", 0)
    losses = {
        "rejected": _total(manifest.get("rejected", 0)),
        "of other workloads": manifest.get("other_workloads", 0),
    }
    duplicates = manifest.get("duplicates", {})
    repeats = {
        **{f"{kind} duplicates": count for kind, count in duplicates.items()},
        "contradicting": manifest.get("contradictions", {}).get("rejected", 0),
        "over the limit": manifest.get("over_limit", 0),
    }
    stages = [
        ("log lines", lines, {}),
        ("records", manifest.get("records", 0), losses),
        ("distinct", distinct, repeats),
        *((name, count, {}) for name, count in splits.items()),
        ("unused", manifest.get("unused", 0), {}),
    ]
    return [
        Step(name, count, 100 * count / max(lines, 1), _lost(left)) for name, count, left in stages
    ]


def chart(board: Leaderboard) -> Markup | None:
    """Quality against cost with 95 % error bars as SVG; ``None`` if no ranked trial has a cost."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in board.ranked if _price(row) is not None]
    if not rows:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, rows, board)
        return _page_svg(figure)


def visible(value: Any) -> Any:
    """Spell out characters that reorder or hide text; markup and numbers pass unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", value)


def shown(message: Json) -> str:
    """An answer as people read it: its text, then a line per tool call."""
    calls = message.get("tool_calls")
    lines = [text_of(message), *map(_call, calls if isinstance(calls, list) else [])]
    return "\n".join(line for line in lines if line) or "(empty)"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": _cut, "count": lambda n: f"{n:,}", "breakable": _breakable}
    source = files("flywheel").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _style(row: Row) -> str:
    if row.rank is None:
        return "failed"
    return "promising" if row.eligible else ""


def _values(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for score in scores:
        if score.value is not None:
            values.setdefault(score.record_id, {})[score.metric] = score.value
    return values


def _disagreement(record: Record, answer: Json, values: Mapping[str, float]) -> Disagreement:
    users = [m for m in record.messages if m.get("role") == "user"]
    query = text_of(users[-1]) if users else "(no user message)"
    scores = [(name, f"{value:.2f}") for name, value in values.items()]
    return Disagreement(query, shown(record.answer), shown(answer), scores)


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return f"(unreadable call) {json.dumps(call, default=str)}"
    return f"{function.get('name')} {function.get('arguments')}"


def _cut(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    return f"{text[:TEXT_LIMIT]} … (cut; {len(text):,} characters in all)"


def _breakable(name: str) -> Markup:
    """Let a long name break after its underscores."""
    return escape(visible(name)).replace("_", Markup("_<wbr>"))


def _total(counts: Any) -> int:
    """Sum a count, or a mapping of counts however deep."""
    if isinstance(counts, Mapping):
        return sum(map(_total, counts.values()))
    return int(counts)


def _lost(left: Mapping[str, int]) -> str:
    return ", ".join(f"−{count:,} {name}" for name, count in left.items() if count)


def _price(row: Row) -> float | None:
    return row.result.cost.per_1k_requests if row.result.cost else None


def _draw(axes: Any, rows: Sequence[Row], board: Leaderboard) -> None:
    prices = [_price(row) or 0.0 for row in rows]
    for row, price in zip(rows, prices, strict=True):
        _draw_point(axes, row, price, board.metric)
    axes.axhline(_floor(board), color=MUTED, linewidth=0.8, linestyle=":")
    production = board.production.per_1k_requests if board.production else None
    if production is not None:
        prices.append(production)
        axes.axvline(production, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(
            "production",
            (production, 0.0),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            color=MUTED,
        )
    _scale(axes, prices)
    axes.set_ylim(-0.03, 1.04)
    axes.set_xlabel("US dollars per 1,000 requests")
    axes.set_ylabel(board.metric, parse_math=False)


def _draw_point(axes: Any, row: Row, price: float, metric: str) -> None:
    figure = row.result.metrics[metric]
    value, low, high = figure.value or 0.0, figure.low or 0.0, figure.high or 0.0
    spread = [[value - low], [high - value]]
    axes.errorbar(price, value, spread, fmt="o", ms=5, color=ACCENT, elinewidth=1.2)
    side = 1 if (row.rank or 0) % 2 else -1
    axes.annotate(
        str(row.rank),
        (price, value),
        xytext=(7 * side, 3),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        weight="bold",
    )


def _floor(board: Leaderboard) -> float:
    """What a promising trial's interval lies above: production less the margin."""
    ceiling = board.ceiling
    figure = ceiling.result.metrics[board.metric].value if ceiling else None
    return (1.0 if figure is None else figure) - board.margin


def _scale(axes: Any, prices: Sequence[float]) -> None:
    """A logarithmic axis where prices differ tenfold, else a linear one from zero."""
    low, high = min(prices), max(prices)
    if low > 0 and high / low > 10:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.8, high * 1.8)
        axes.xaxis.set_major_formatter(lambda value, _: money(value))
    else:
        axes.set_xlim(0, high * 1.15 or 1)


def _page_svg(figure: Any) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for drawn, meant in COLOURS.items():
        text = text.replace(drawn, meant)
    return Markup(text)  # noqa: S704 - numbers and configured names only, escaped by matplotlib
