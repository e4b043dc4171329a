from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks import baseline, curation, traffic
from benchmarks.measure import MeasurementError, measure
from jsonschema import Draft202012Validator

LINES = 3000
PLANTED = traffic.planted(LINES)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("traffic")
    assert traffic.write(folder, LINES) == PLANTED
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir())).splitlines()


@pytest.fixture(scope="module")
def records(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if not reason(line)]


def reason(line: bytes) -> str:  # noqa: PLR0911
    """Why a line is no record, as somebody would see who knows only the log schema."""
    try:
        log = json.loads(line)
    except ValueError:
        return "not_json"
    if "workload_id" not in log:
        return "missing_workload_id"
    if not isinstance(log["timestamp"], int):
        return "bad_timestamp"
    if not log["request"]["messages"]:
        return "empty_messages"
    if {m["role"] for m in log["request"]["messages"]} - {"system", "user", "assistant", "tool"}:
        return "unknown_role"
    if not log["response"]["choices"]:
        return "empty_choices"
    if log["response"]["choices"][0]["finish_reason"] == "length":
        return "unfinished_answer"
    try:
        arguments(log)
    except ValueError:
        return "tool_arguments_not_json"
    return ""


def calls(log: dict[str, Any]) -> list[dict[str, Any]]:
    answer = log["response"]["choices"][0]["message"]
    return [call["function"] for call in answer.get("tool_calls", [])]


def arguments(log: dict[str, Any]) -> list[Any]:
    return [json.loads(call["arguments"]) for call in calls(log)]


def asked(log: dict[str, Any]) -> tuple[str, ...]:
    return tuple(m["content"] for m in log["request"]["messages"] if m["role"] == "user")


def normal(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()).rstrip(".?! ") for text in texts)


def similarity(one: str, other: str) -> float:
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other))
    return len(a & b) / len(a | b)


def test_lines_are_about_as_long_as_real_ones(lines: list[bytes]) -> None:
    mean = sum(len(line) + 1 for line in lines) / len(lines)
    assert mean == pytest.approx(2600, rel=0.05)


def test_rejections_are_those_planted(lines: list[bytes]) -> None:
    found = Counter(map(reason, lines))
    assert len(lines) == PLANTED.lines
    assert found.pop("") == PLANTED.records
    assert found == PLANTED.rejected


def test_repeats_are_those_planted(records: list[dict[str, Any]]) -> None:
    requests = {json.dumps(log["request"]): normal(asked(log)) for log in records}
    assert len(records) - len(requests) == PLANTED.exact
    unique = set(requests.values())
    assert len(requests) - len(unique) == PLANTED.normalised
    # A text with one change keeps its beginning or its end.
    alike = defaultdict(set)
    for *_, text in unique:
        for part in (text[:30], text[-30:]):
            alike[part].add(text)
    pairs = {
        frozenset((one, other))
        for texts in alike.values()
        for one in texts
        for other in texts
        if one < other and similarity(one, other) >= 0.8
    }
    assert len(pairs) == PLANTED.near
    assert min(similarity(*pair) for pair in pairs) >= 0.87


def test_personal_data_is_that_planted(records: list[dict[str, Any]]) -> None:
    patterns = {
        "EMAIL": r"@example\.(com|org|net)\b",
        "PHONE": r"\(\d{3}\) 555-01\d\d\b",
        "CARD": r"\b4\d{3}( \d{4}){3}\b",
    }
    found = {
        kind: sum(bool(re.search(pattern, asked(log)[-1])) for log in records)
        for kind, pattern in patterns.items()
    }
    assert found == PLANTED.personal
    assert sum(found.values()) == LINES * 5 // 100


def test_traffic_is_shaped_like_a_deployment(records: list[dict[str, Any]]) -> None:
    requests = [log["request"] for log in records]
    prompts = {request["messages"][0]["content"] for request in requests}
    toolsets = {json.dumps(request["tools"]) for request in requests}
    assert len(prompts) == len(toolsets) == 3
    assert all(500 <= len(prompt) <= 700 for prompt in prompts)
    assert all(1300 <= len(tools) <= 1600 for tools in toolsets)
    assert {len(request["tools"]) for request in requests} == {5}
    assert len({log["client_id"] for log in records}) == 8
    lengths = [len(asked(log)[-1]) for log in records]
    assert min(lengths) >= 30
    assert sum(length <= 200 for length in lengths) > 0.97 * LINES
    assert sum(len(asked(log)) > 1 for log in records) == pytest.approx(0.15 * LINES, rel=0.2)
    assert sum(bool(calls(log)) for log in records) == pytest.approx(0.85 * LINES, rel=0.05)


def test_arguments_fit_their_tools_schema(records: list[dict[str, Any]]) -> None:
    tools = [tool["function"] for log in records[:100] for tool in log["request"]["tools"]]
    schemas = {tool["name"]: Draft202012Validator(tool["parameters"]) for tool in tools}
    for log in records:
        offered = {tool["function"]["name"] for tool in log["request"]["tools"]}
        for call, given in zip(calls(log), arguments(log), strict=True):
            assert call["name"] in offered
            schemas[call["name"]].validate(given)


def test_two_texts_have_little_in_common(records: list[dict[str, Any]]) -> None:
    texts = [asked(log)[-1] for log in records]
    rng = random.Random(1)
    shared = [similarity(*rng.sample(texts, 2)) for _ in range(500)]
    assert sum(shared) / len(shared) < 0.1


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        traffic.write(tmp_path / name, 200, seed)
        files.append((tmp_path / name / "traffic-00000.jsonl").read_bytes())
    assert files[0] == files[1] != files[2]


def test_shares_are_the_same_at_any_size() -> None:
    small, large = traffic.planted(800), traffic.planted(8_000)
    assert large.exact == 10 * small.exact
    assert large.rejected == {name: 10 * n for name, n in small.rejected.items()}
    with pytest.raises(ValueError, match="multiple of 100"):
        traffic.planted(150)


def log(text: str, name: str = "a", time: int = 100, **call: Any) -> dict[str, Any]:
    """A log whose answer calls a tool."""
    function = {"name": name, "arguments": '{"x": 1}', **call}
    calls = [{"id": "1", "type": "function", "function": function}]
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    tool = {"type": "function", "function": {"name": name, "parameters": {"properties": {}}}}
    return {
        "timestamp": time,
        "workload_id": "w",
        "client_id": "c",
        "request": {"messages": [{"role": "user", "content": text}], "tools": [tool]},
        "response": {"choices": [{"message": answer, "finish_reason": "tool_calls"}]},
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """A log with one thing different, by its place."""
    result = log("changed")
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place: Any = result
    for name in parents:
        place = place[name]
    place[last] = value
    return result


def test_the_baseline_counts_as_the_blueprint_does(tmp_path: Path) -> None:
    properties = dict.fromkeys("abcdefghi")
    good = [log(f"{name} {i}", name) for name in "ab" for i in range(6)]
    repeats = [log("a 0", time=1), log("A 0")]
    poor = [
        changed("response.choices.0.message", {"role": "assistant", "content": "Hello."}),
        changed("response.choices.0.message.tool_calls.0.type", "custom"),
        log("bad", arguments="{x"),
    ]
    invalid = [
        changed("response.choices", []),
        changed("request.tools.0.function.parameters.properties", properties),
    ]
    other = changed("workload_id", "other")
    logs = [*good, *repeats, *poor, *invalid, other]
    (tmp_path / "logs.jsonl").write_text("\n".join([*map(json.dumps, logs), '{"timestamp": 1']))

    outcome = baseline.curate(tmp_path, tmp_path / "out", "w", eval_size=4, min_total_records=5)

    assert outcome.counts == {
        "lines": 21,
        "records": 19,
        "invalid_format": 2,
        "removed_quality_filters": 3,
        "duplicates": 1,
        "eval": 4,
        "train": 8,
        "val": 1,
    }
    assert list(outcome.seconds) == [
        "load", "classify", "validate", "quality", "deduplicate", "split", "format", "write",
    ]  # fmt: skip
    eval_rows, train_rows, val_rows = (
        [json.loads(row) for row in (tmp_path / "out" / name).read_text().splitlines()]
        for name in ("eval_data.jsonl", "training/train_data.jsonl", "validation/val_data.jsonl")
    )
    assert Counter(map(baseline.tool_name, eval_rows)) == {"a": 2, "b": 2}
    assert all(row["timestamp"] == 100 for row in eval_rows)
    assert all(calls(row)[0]["arguments"] == {"x": 1} for row in eval_rows)
    for row in train_rows + val_rows:
        assert list(row) == ["tools", "messages"]
        assert row["messages"][-1]["content"] == ""
    texts = [row["messages"][0]["content"] for row in train_rows + val_rows]
    assert len({*texts, *(asked(row)[0] for row in eval_rows)}) == 13


def test_the_baseline_reads_what_the_generator_writes(tmp_path: Path) -> None:
    traffic.write(tmp_path, 1000)
    counts = baseline.curate(tmp_path, tmp_path / "out", traffic.WORKLOAD).counts
    planted = traffic.planted(1000)
    assert counts["lines"] == 1000
    assert counts["records"] == (
        1000 - planted.rejected["not_json"] - planted.rejected["missing_workload_id"]
    )
    assert counts["invalid_format"] == (
        planted.rejected["empty_messages"] + planted.rejected["empty_choices"]
    )
    assert counts["eval"] == 100
    assert 0 < counts["duplicates"] <= planted.exact


ORPHAN = """
import subprocess, sys, time
hold = "import time; held = bytearray(b'x') * 60_000_000; time.sleep(60)"
orphan = subprocess.Popen([sys.executable, "-c", hold], start_new_session=True)
held = bytearray(b"x") * 60_000_000
time.sleep(1)
print(orphan.pid)
"""


def test_memory_of_daemons_counts_and_none_is_left() -> None:
    measured = measure([sys.executable, "-c", ORPHAN], interval_s=0.02)
    assert 120e6 < measured.peak_bytes < 200e6
    assert 1 < measured.seconds < 20
    assert not psutil.pid_exists(int(measured.output))


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(MeasurementError, match=r"ended with 3.*oh no"):
        measure([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(MeasurementError, match=r"more than 0\.2 s"):
        measure([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)


def run(records: int, seconds: float, gb: float, cpus: int | None = None) -> curation.Run:
    return curation.Run("", records, seconds, int(gb * 1e9), 0.0, cpus)


def test_figures_compare_runs_of_their_sizes() -> None:
    runs = [
        run(100_000, 2, 1), run(250_000, 4, 2), run(1_000_000, 10, 2.5), run(2_000_000, 30, 3),
    ]  # fmt: skip
    assert curation.figures(runs, run(200_000, 50, 9)) == {
        "speedup_vs_single_process": 25.0,
        "records_per_second": 100_000,
        "peak_memory_gb": 2.5,
        "memory_growth_250k_to_1m": 1.25,
        "time_per_record_growth_100k_to_2m": 0.75,
    }
    few = curation.figures(runs[:1], run(100_000, 50, 9))
    assert few["records_per_second"] == 50_000
    assert few["memory_growth_250k_to_1m"] is None


def test_efficiency_expects_no_more_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rows = curation.efficiency([run(100, 8, 1, 1), run(100, 5, 1, 2), run(100, 4, 1, 4)])
    assert [row["speedup"] for row in rows] == [1, 1.6, 2]
    assert [row["efficiency"] for row in rows] == [1, 0.8, 1]


def test_counts_that_differ_from_those_planted_are_named() -> None:
    manifest = {
        "lines": LINES,
        "records": PLANTED.records,
        "rejected": PLANTED.rejected,
        "masked": PLANTED.personal,
        "duplicates": {"exact": PLANTED.exact, "normalised": PLANTED.normalised, "near": 89},
    }
    assert curation.differences(manifest, PLANTED) == {"near": {"found": 89, "planted": 90}}
