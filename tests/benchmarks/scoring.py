"""How fast completions are scored for tools, on one core.

    python -m tests.benchmarks.scoring [--completions N]

Each completion answers a record of `traffic` of its own, three tools to choose from; half of them
are right, the others miss in one of the ways that models miss. Prints the seconds; a run of the
full 100,000 adds them to ``results/scoring.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flywheel.scoring import misses_by_kind, score
from flywheel.types import Completion, Record, Score

from . import results

Json = dict[str, Any]

FULL = 100_000
PORTION = 5_000
"""Completions scored at a time, as many as an eval set is large."""
_TEXT = {"type": "string"}
CITIES = ("Paris", "Lima", "Oslo", "Kyoto", "Accra", "São Paulo", "New York")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; write what a full run measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scoring")
    parser.add_argument("--completions", type=int, default=FULL)
    count = parser.parse_args(arguments).completions
    seconds, seen = 0.0, Counter[str]()
    for start in range(0, count, PORTION):
        pairs = [pair(random.Random(i)) for i in range(start, min(start + PORTION, count))]
        took, scores = scored(pairs)
        seconds += took
        seen += shown(scores)
    print(f"{count:,} completions with tools scored in {seconds:.2f} s")  # noqa: T201
    for name, number in seen.items():
        print(f"{name}: {number:,}")  # noqa: T201
    if count == FULL:
        results.write("scoring", {"seconds_100k_tool_completions": round(seconds, 2)})


def scored(pairs: Sequence[tuple[Record, Completion]]) -> tuple[float, list[Score]]:
    """Seconds to score an eval set, and its scores."""
    started = time.perf_counter()
    scores = [one for record, completion in pairs for one in score(record, completion)]
    return time.perf_counter() - started, scores


def shown(scores: Sequence[Score]) -> Counter[str]:
    """How many scores of each metric are 1, and how many records show each kind of miss."""
    right = Counter(one.metric for one in scores if one.value == 1)
    return right + Counter({k: v["records"] for k, v in misses_by_kind(scores).items()})


def pair(rng: random.Random) -> tuple[Record, Completion]:
    """A record and a completion of it, each with objects of its own, as if read from disk."""
    due = [_call(rng) for _ in range(1 if rng.random() < 0.8 else rng.randint(0, 4))]
    request = {"messages": [{"role": "user", "content": "…"}], "tools": json.loads(_TOOLS)}
    response = {"choices": [{"message": _message(due)}]}
    record = Record(0.0, "w", "c", request, response, id=f"{rng.getrandbits(64):016x}")
    sent = due if rng.random() < 0.5 else _changed(due, rng)
    return record, Completion(record.id, _message(sent))


def _call(rng: random.Random) -> tuple[str, Json]:
    city = rng.choice(CITIES)
    day = f"2026-11-{rng.randint(1, 30):02}"
    calls: list[tuple[str, Json]] = [
        ("get_weather", {"city": city, "unit": rng.choice(("Celsius", "Fahrenheit")), "days": 3}),
        (
            "book_flight",
            {
                "from": city,
                "to": rng.choice(CITIES),
                "departure": f"{day}T10:00:00Z",
                "passengers": [{"name": f"P{i}", "age": 30 + i} for i in range(rng.randint(1, 3))],
                "options": {"meals": ["vegan", "kosher"], "bags": rng.randint(0, 3)},
            },
        ),
        ("search", {"query": f"what to do in {city}  on {day}", "limit": rng.randint(1, 50)}),
    ]
    return rng.choice(calls)


def _changed(calls: list[tuple[str, Json]], rng: random.Random) -> list[tuple[str, Json]]:
    """Calls as a model might send them instead."""
    if not calls:
        return [_call(rng)]
    name, arguments = calls[0]
    first = next(iter(arguments))
    rest = {key: value for key, value in arguments.items() if key != first}
    changed: list[list[tuple[str, Json]]] = [
        [],
        [("no_such_tool", arguments)],
        [(name, rest)],
        [(name, {**arguments, "invented": True})],
        [(name, {**arguments, first: "elsewhere"})],
        [(name, {**arguments, first: 7})],
        [(name, arguments), (name, arguments)],
        [(name, {**rest, first: f" {arguments[first]} "})],
    ]
    return [*rng.choice(changed), *reversed(calls[1:])]


def _message(calls: list[tuple[str, Json]]) -> Json:
    sent = [
        {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for name, given in calls
    ]
    return {"role": "assistant", "content": None if sent else "Hello", "tool_calls": sent}


def _tool(name: str, properties: Json, required: list[str]) -> Json:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": {"passenger": {"type": "object", "properties": {"name": _TEXT, "age": {}}}},
    }
    function = {"name": name, "description": f"Does {name}. " * 10, "parameters": parameters}
    return {"type": "function", "function": function}


_TOOLS = json.dumps(
    [
        _tool(
            "get_weather",
            {
                "city": _TEXT,
                "unit": {"enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "integer", "default": 3},
            },
            ["city"],
        ),
        _tool(
            "book_flight",
            {
                "from": _TEXT,
                "to": _TEXT,
                "departure": {"type": "string", "format": "date-time"},
                "passengers": {"type": "array", "items": {"$ref": "#/$defs/passenger"}},
                "options": {
                    "anyOf": [
                        {"type": "null"},
                        {
                            "type": "object",
                            "properties": {
                                "meals": {"type": "array", "items": _TEXT, "uniqueItems": True},
                                "bags": {"type": "integer", "default": 0},
                            },
                        },
                    ]
                },
            },
            ["from", "to", "departure"],
        ),
        _tool("search", {"query": _TEXT, "limit": {"type": "integer", "default": 10}}, ["query"]),
    ]
)

if __name__ == "__main__":
    main()
