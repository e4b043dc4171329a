"""What commands show on the terminal: tables and sentences, or JSON for programs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flywheel import leaderboard, logs
from flywheel.storage import Storage

if TYPE_CHECKING:
    from flywheel.catalogue import Difference
    from flywheel.datasets import Manifest
    from flywheel.parity import Parity

err = Console(stderr=True)
out = Console() if sys.stdout.isatty() else Console(width=160)


def board(folder: Storage, *, as_json: bool) -> None:
    """A run's leaderboard, with what is to be said of it."""
    data = folder.read_json("leaderboard.json")
    if as_json:
        dump(data)
        return
    ranked = leaderboard.Leaderboard.from_json(data)
    columns, rows = leaderboard.table(ranked)
    # Long names of metrics may break between words; figures and names of trials may not.
    headers = [column.replace("_", " ") for column in columns]
    table = Table(*headers, title=folder.url.rsplit("/", 1)[-1], title_justify="left")
    for column in table.columns:
        column.overflow = "fold"  # a figure is never cut
    table.columns[columns.index("trial")].no_wrap = True
    trial, verdict = columns.index("trial"), columns.index("verdict")
    without = [row for row in rows if _empty(row, {trial, verdict})]
    for row in rows:
        if row not in without:  # a sentence in a narrow column would make the row a page long
            table.add_row(*map(escape, row))
    out.print(table)
    for row in without:
        out.print(escape(f"{row[trial]}: {row[verdict]}"), highlight=False, soft_wrap=True)
    for sentence in (_judge_sentence(ranked.calibration), ranked.note, leaderboard.verdict(ranked)):
        if sentence:
            out.print(escape(sentence), highlight=False, soft_wrap=True)


def _empty(row: list[str], named: set[int]) -> bool:
    """Whether a row has no figure beside these cells."""
    return all(cell == leaderboard.NONE for n, cell in enumerate(row) if n not in named)


def warnings(warnings: list[str]) -> None:
    """One line each, beside the results; where there is a log, they stand in it."""
    for warning in warnings:
        if logs.environment():
            logs.log.warning(warning)
            continue
        err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def funnel(manifest: Manifest) -> None:
    """What became of the log lines on their way into a dataset."""
    from flywheel import report

    table = Table(
        "", "", "records", "left before it", title=manifest.workload, title_justify="left"
    )
    table.columns[2].justify = "right"
    for step in report.funnel(manifest.to_json()):
        bar = "█" * max(1, round(step.share / 4)) if step.count else ""
        table.add_row(step.name, f"[cyan]{bar}[/]", str(step.count), escape(step.lost))
    out.print(table)
    leaks = sum(n for pair in manifest.leak_check.values() for n in pair.values())
    sentences = [f"leaks   {leaks} shared requests or near-duplicate texts between splits"]
    for name in ("rejected", "normalised", "masked"):
        if found := getattr(manifest, name):
            listed = ", ".join(f"{reason} {n}" for reason, n in found.items())
            sentences.append(f"{name:<7} {listed}")
    if manifest.contradictions["requests"]:
        told = "{requests} requests were answered in several ways ({records} records)"
        sentences.append(f"answers {told.format(**manifest.contradictions)}")
    if manifest.rare_classes:
        rare = ", ".join(f"{name} (not in {s})" for name, s in manifest.rare_classes.items())
        sentences.append(f"rare    {rare[:400]}")
    for sentence in sentences:
        out.print(escape(sentence), highlight=False, soft_wrap=True)


def datasets(found: list[Manifest], *, as_json: bool) -> None:
    """Datasets, one a line."""
    if as_json:
        dump([manifest.to_json() for manifest in found])
        return
    from flywheel.datasets import SPLITS

    table = Table("dataset", "workload", "client", *SPLITS, "unused", "from", "to")
    for one in found:
        first, last = one.time_ranges["curated"] or (None, None)
        sizes = [str(n) for n in (*one.splits.values(), one.unused)]
        name = [one.fingerprint, escape(one.workload), escape(one.client or "all")]
        table.add_row(*name, *sizes, day(first), day(last))
    out.print(table)


def difference(found: Difference, *, as_json: bool) -> None:
    """What changed between two datasets."""
    if as_json:
        dump(found.to_json())
        return
    from flywheel.datasets import SPLITS

    table = Table("split", "before", "left", "came", "stayed", "after")
    for split in SPLITS:
        counts = (c.get(split, 0) for c in (found.left, found.came, found.stayed))
        ends = found.old.splits[split], found.new.splits[split]
        table.add_row(split, str(ends[0]), *map(str, counts), str(ends[1]))
    out.print(table)
    for move, count in sorted(found.moved.items()):
        out.print(f"moved   {move}: {count}", highlight=False)
    mixes = [m.class_mix["curated"] for m in (found.old, found.new)]
    classes = Table("class", "before", "after")
    for name in sorted({**mixes[0], **mixes[1]}):
        shares = [f"{m.get(name, 0)} ({m.get(name, 0) / sum(m.values()):.1%})" for m in mixes]
        classes.add_row(escape(name[:60]), *shares)
    out.print(classes)
    for name, (before, after) in found.rule.items():
        out.print(escape(f"rule    {name}: {before} -> {after}"), highlight=False)


def parity(found: dict[str, Parity], *, as_json: bool) -> None:
    """Whether served models say what they say outside the engine."""
    if as_json:
        dump({label: one.to_json() for label, one in found.items()})
        return
    names = ("prompt tokens", "same answers", "answer tokens", "mean nats", "largest nats", "")
    table = Table("model", *names)
    for label, one in found.items():
        figures = (one.mean_difference, one.largest_difference)
        nats = ["–" if figure is None else f"{figure:.3f}" for figure in figures]
        same = f"{one.same_answers} of {one.records}"
        mark = "[green]passed[/]" if one.passed else "[red]failed[/]"
        counts = [str(one.prompt_tokens), same, str(one.answer_tokens)]
        table.add_row(escape(label), *counts, *nats, mark)
    out.print(table)


def labels(found: dict[str, Any], *, as_json: bool) -> None:
    """How far judges and people agree, metric by metric."""
    if as_json:
        dump(found)
        return
    table = Table("metric", "labels", "at random", "kappa", "true positives", "false positives")
    for metric, human in found.items():
        names = ("kappa", "true_positive_rate", "false_positive_rate")
        figures = [leaderboard.decimal(human.get(name)) for name in names]
        table.add_row(metric, str(human.get("labels", 0)), str(human.get("drawn", 0)), *figures)
    out.print(table)


def _judge_sentence(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return ""
    auc = "no verdicts" if calibration["auc"] is None else f"ROC AUC {calibration['auc']:.2f}"
    trusted = "trusted" if calibration["trusted"] else "not trusted"
    floor, n = calibration["floor"], calibration["n"]
    told = f"judge   {calibration['judge']}: {auc} over {n} verdicts, floor {floor:g}: {trusted}"
    written = calibration.get("auc_written")
    if not calibration["trusted"] and written is not None and written >= floor:
        told += f"; as written {written:.2f} (judge.reading: written)"
    return told


def counts(found: dict[str, int]) -> str:
    """The largest of many counts, one a line."""
    first = sorted(found.items(), key=lambda item: -item[1])
    more = [f"and {len(first) - 8} more"] if len(first) > 8 else []
    return escape("\n".join([*(f"{name[:40]} {n}" for name, n in first[:8]), *more]))


def day(timestamp: float | None) -> str:
    """Minutes are near enough; empty for none."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M}" if timestamp else ""


def dump(value: Any) -> None:
    """JSON, for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def escape(text: str) -> str:
    """Text from traffic and files is no markup."""
    from rich.markup import escape

    return escape(text)
