"""Curation as NVIDIA's data flywheel blueprint does it: one process, one loop after the other.

Written from a description of its behaviour (release 0.3.0), to be measured against, on ordinary
Python dicts and the standard json. All records are read into memory; the workload is classified;
format and quality are checked; equal user texts are dropped, the newest stays; scikit-learn splits;
rows for evaluation and training are formatted and each file is made as one string. Two differences:
records come from JSON Lines instead of Elasticsearch, and ``limit`` is off.

    python -m tests.benchmarks.baseline LOGS OUTPUT WORKLOAD

prints seconds by phase and counts as JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sklearn.model_selection import train_test_split

Json = dict[str, Any]

MOST_PROPERTIES = 8
"""A tool with more is refused, for whatever workload."""
NO_TOOL, OTHERS = "no_tool", "others"


@dataclass(slots=True)
class Outcome:
    """What a curation took and what it found."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall clock by phase."""
    counts: dict[str, int] = field(default_factory=dict)

    def timed(self, phase: str, work: Callable[[], Any]) -> Any:
        """Do one phase."""
        start = perf_counter()
        result = work()
        self.seconds[phase] = perf_counter() - start
        return result


def curate(
    logs: Path,
    output: Path,
    workload: str,
    *,
    eval_size: int = 100,
    val_ratio: float = 0.1,
    min_total_records: int = 50,
    seed: int = 0,
) -> Outcome:
    """Curate one workload from a folder of JSON Lines files.

    Args:
        logs: The folder.
        output: Where ``eval_data.jsonl``, ``training/`` and ``validation/`` are written.
        workload: Its workload_id.
        eval_size: Records held out.
        val_ratio: Share of the others for validation.
        min_total_records: Fewer are an error.
        seed: Of both splits.

    Raises:
        ValueError: Too few records.
    """
    outcome = Outcome()
    counts = outcome.counts
    lines, records = outcome.timed("load", lambda: load(logs, workload))
    counts |= {"lines": lines, "records": len(records)}
    kind = outcome.timed("classify", lambda: workload_type(records))
    valid = outcome.timed("validate", lambda: [r for r in records if is_well_formed(r)])
    if kind == "tool_calling":
        good = outcome.timed("quality", lambda: [r for r in valid if has_good_calls(r)])
    else:
        good = valid
    unique = outcome.timed("deduplicate", lambda: deduplicated(good))
    counts |= {
        "invalid_format": len(records) - len(valid),
        "removed_quality_filters": len(valid) - len(good),
        "duplicates": len(good) - len(unique),
    }
    if len(unique) < min_total_records:
        raise ValueError(f"{len(unique)} valid records, fewer than {min_total_records}")
    held_out, train, val = outcome.timed(
        "split", lambda: split(unique, min(eval_size, len(unique)), val_ratio, seed)
    )
    train_rows, val_rows, eval_rows = outcome.timed(
        "format",
        lambda: (
            [row for r in train if (row := training_row(r, kind)) is not None],
            [row for r in val if (row := training_row(r, kind)) is not None],
            [evaluation_row(r) for r in held_out],
        ),
    )
    files = {
        "eval_data.jsonl": eval_rows,
        "training/train_data.jsonl": train_rows,
        "validation/val_data.jsonl": val_rows,
    }
    outcome.timed("write", lambda: dump(output, files))
    counts |= {"eval": len(eval_rows), "train": len(train_rows), "val": len(val_rows)}
    return outcome


def load(logs: Path, workload: str) -> tuple[int, list[Json]]:
    """All records of a workload, the newest first, and how many lines there were."""
    lines, records = 0, []
    for path in sorted(logs.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                lines += 1
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if record.get("workload_id") == workload:
                    records.append(record)
    records.sort(key=_time, reverse=True)
    return lines, records


def _time(record: Json) -> float:
    # Elasticsearch sorts a malformed date to the end.
    time = record.get("timestamp")
    return time if isinstance(time, int | float) else 0


def workload_type(records: list[Json]) -> str:
    """``tool_calling`` if any first choice holds a tool call, else ``generic``."""
    for record in records:
        try:
            if record["response"]["choices"][0]["message"].get("tool_calls"):
                return "tool_calling"
        except (KeyError, IndexError):
            continue
    return "generic"


def is_well_formed(record: Json) -> bool:
    """Messages, choices with a message, and small tools: all that is asked of the format."""
    try:
        return _has_request(record["request"]) and _has_response(record["response"])
    except Exception:  # noqa: BLE001 -- as the original: whatever goes wrong, it is invalid
        return False


def _has_request(request: Any) -> bool:
    if not isinstance(request, dict):
        return False
    messages = request["messages"]
    if not isinstance(messages, list) or not messages:
        return False
    if "tools" in request:
        for tool in request["tools"]:
            parameters = tool["function"].get("parameters", {})
            if len(parameters.get("properties", {})) > MOST_PROPERTIES:
                return False
    return True


def _has_response(response: Any) -> bool:
    if not isinstance(response, dict):
        return False
    choices = response["choices"]
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(choice, dict) and "message" in choice for choice in choices)


def has_good_calls(record: Json) -> bool:
    """Whether the first choice that calls tools calls functions; parses arguments in place."""
    for choice in record["response"]["choices"]:
        calls = choice["message"].get("tool_calls")
        if not calls:
            continue
        if any(call.get("type") != "function" for call in calls):
            return False
        return _parse_arguments(calls)
    return False


def _parse_arguments(calls: list[Json]) -> bool:
    for call in calls:
        arguments = call["function"].get("arguments")
        if isinstance(arguments, str):
            try:
                call["function"]["arguments"] = json.loads(arguments)
            except json.JSONDecodeError:
                return False
    return True


def deduplicated(records: list[Json]) -> list[Json]:
    """The first record of each user text, compared exactly; those without one all stay."""
    seen = set()
    kept = []
    for record in records:
        messages = record["request"]["messages"]
        key = tuple(m["content"] for m in messages if m.get("role") == "user" and m.get("content"))
        try:
            if key and key in seen:
                continue
            seen.add(key)
        except TypeError:
            pass  # a list of parts is never a duplicate
        kept.append(record)
    return kept


def tool_name(record: Json) -> str:
    """The class of a record: its first tool."""
    try:
        calls = record["response"]["choices"][0]["message"].get("tool_calls")
        return str(calls[0]["function"]["name"]) if calls else NO_TOOL
    except (KeyError, IndexError):
        return NO_TOOL


def split(
    records: list[Json], eval_size: int, val_ratio: float, seed: int
) -> tuple[list[Json], list[Json], list[Json]]:
    """Eval, train, val."""
    rest, held_out = _stratified(records, eval_size, seed)
    train, val = _stratified(rest, val_ratio, seed)
    return held_out, train, val


def _stratified(records: list[Json], test_size: float, seed: int) -> tuple[list[Json], list[Json]]:
    labels = [tool_name(record) for record in records]
    counts = Counter(labels)
    labels = [label if counts[label] > 1 else OTHERS for label in labels]
    classes = len(set(labels))
    # A share is below the number of classes, so validation is never stratified: as the original.
    stratify = labels if classes > 1 and test_size >= classes else None
    one, other = train_test_split(
        records, test_size=test_size, stratify=stratify, random_state=seed
    )
    return one, other


def evaluation_row(record: Json) -> Json:
    """The whole record, with arguments in its history as JSON texts."""
    for message in record["request"]["messages"]:
        for call in message.get("tool_calls") or []:
            if isinstance(call["function"]["arguments"], dict):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return record


def training_row(record: Json, kind: str) -> Json | None:
    """Messages with the answer last, and tools for a tool workload; None where one is missing."""
    try:
        answer = record["response"]["choices"][0]["message"]
        messages = record["request"]["messages"]
        if kind == "generic":
            return {"messages": [*messages, answer]}
        for message in messages:
            if message["role"] == "assistant" and message["content"] is None:
                message["content"] = ""
        answer["content"] = ""
        return {"tools": record["request"]["tools"], "messages": [*messages, answer]}
    except (KeyError, IndexError):
        return None


def dump(folder: Path, files: dict[str, list[Json]]) -> None:
    """Make each file's content as one string, then write it."""
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def main() -> None:
    """Curate as the command line says."""
    logs, output, workload = sys.argv[1:]
    start = perf_counter()
    outcome = curate(Path(logs), Path(output), workload)
    seconds = perf_counter() - start
    print(json.dumps({"seconds": seconds, "phases": outcome.seconds, "counts": outcome.counts}))  # noqa: T201


if __name__ == "__main__":
    main()
