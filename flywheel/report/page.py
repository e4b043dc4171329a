"""The page: a run's material, put into one HTML file that needs no network.

Everything passes the templates' escaping and `visible`. The Content Security Policy lets nothing
run but the page's own script, by its hash, and nothing load at all; so even text that got past the
escaping would stay text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files

import jinja2
import yaml
from markupsafe import Markup, escape

from flywheel.leaderboard import (
    Leaderboard,
    Row,
    decimal,
    headline,
    interval,
    metric_titles,
    money,
    saving,
    table,
    verdict,
)
from flywheel.report import charts
from flywheel.report.classes import by_class
from flywheel.report.curated import funnel, total
from flywheel.report.disagreements import kinds, largest
from flywheel.report.facts import facts
from flywheel.report.material import Material, featured
from flywheel.report.operations import PERCENTILES, costs, speeds
from flywheel.report.text import cut, line, visible
from flywheel.statistics import Power
from flywheel.types import Json


def render(material: Material) -> str:
    """Make the page; the same material always makes the same one."""
    board, manifest = material.board, material.manifest
    templates = _environment()
    script = _source("page.js")
    steps = funnel(manifest)
    return templates.get_template("page.html.jinja").render(
        style=_source("page.css"),
        script=script,
        script_hash=_hash(script),
        board=board,
        experiment=material.experiment,
        experiment_yaml=yaml.safe_dump(material.experiment, sort_keys=False, allow_unicode=True),
        manifest=manifest,
        headline=headline(board),
        tone=_tone(board),
        verdict=verdict(board),
        key_figures=_key_figures(board),
        tables=_tables(board),
        featured=featured(board),
        pareto=charts.pareto(board),
        kinds=kinds(material),
        classes=by_class(material),
        shown=largest(material),
        speeds=speeds(material),
        percentiles=PERCENTILES,
        costs=costs(board),
        judges=_judges(board),
        power=_power_sentence(board),
        power_chart=charts.power(board),
        funnel=steps,
        funnel_chart=charts.funnel(steps),
        leaks=total(manifest.get("leak_check", 0)),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flywheel.report"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cut": cut,
        "line": line,
        "count": lambda n: f"{n:,}",
        "breakable": _breakable,
        "decimal": decimal,
        "interval": lambda figure: interval(figure) if figure else "–",
        "money": lambda dollars: "–" if dollars is None else f"${money(dollars)}",
        "facts": facts,
        "times": _times,
    }
    return environment


def _source(name: str) -> Markup:
    """A file of our own, put into the page as it is."""
    return Markup((files("flywheel.report") / "templates" / name).read_text("utf-8"))  # noqa: S704


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _breakable(name: str) -> Markup:
    """Let a long name break after its underscores."""
    return escape(visible(name)).replace("_", Markup("_<wbr>"))


def _times(times: Json | None, *percentiles: str, digits: int = 2) -> str:
    """Seconds at some percentiles of a load test: ``0.81 / 1.20``."""
    if not times:
        return "–"
    return " / ".join(f"{times[name]:.{digits}f}" for name in percentiles or ("p50", "p95"))


def _tone(board: Leaderboard) -> str:
    """How the headline is coloured."""
    return "good" if board.foremost is not None and board.foremost.eligible else "open"


def _key_figures(board: Leaderboard) -> list[tuple[str, str, str]]:
    """What, how much, and what to hold it against, of the trial that the headline is about."""
    row = board.foremost
    if row is None:
        return []
    figure, speed = row.result.metrics[board.metric], row.result.latency
    within = f"95 % interval {decimal(figure.low)} to {decimal(figure.high)}"
    found = [("quality", decimal(figure.value), within), *_dollars(board, row)]
    if speed:
        half = f"half within {speed.p50_s:.2f} s"
        found.append(("95 % of answers within", f"{speed.p95_s:.2f} s", half))
    return [*found, ("held-out records", f"{figure.n:,}", f"{figure.scored:,} of them scored")]


def _dollars(board: Leaderboard, row: Row) -> Iterator[tuple[str, str, str]]:
    today = board.production.per_1k_requests if board.production else None
    if row.cost is not None:
        against = "production's is not known" if today is None else f"production ${money(today)}"
        yield "cost of 1,000 requests", f"${money(row.cost)}", against
    saved = saving(row.cost, board.production)
    if saved is not None:
        what = "saved" if saved >= 0 else "dearer by"
        yield what, f"{abs(100 * saved):.0f} %", "of production's cost"


def _tables(board: Leaderboard) -> Json:
    """The board in two: what decides, and the other metrics."""
    columns, rows = table(board)
    others = set(metric_titles(board)[1:])
    lead = [i for i, name in enumerate(columns) if name not in others]
    more = [i for i, name in enumerate(columns) if name in others or i < 2]
    styles = [*map(_style, board.rows), "production"]
    return {
        "columns": [columns[i] for i in lead],
        "rows": [([r[i] for i in lead], style) for r, style in zip(rows, styles, strict=False)],
        "metrics": [columns[i] for i in more] if len(more) > 2 else [],
        "figures": [[row[i] for i in more] for row in rows[: len(board.rows)]],
    }


def _style(row: Row) -> str:
    if row.rank is None:
        return "failed"
    return "promising" if row.eligible else ""


def _judges(board: Leaderboard) -> Json:
    """Each judged metric's calibration; none without a judge."""
    if board.calibration is None:
        return {}
    found: Json = board.calibration.get("by_metric") or {"judge": board.calibration}
    return found


def _power_sentence(board: Leaderboard) -> str:
    if not board.power:
        return ""
    return Power(**{k: v for k, v in board.power.items() if k != "enough"}).sentence
