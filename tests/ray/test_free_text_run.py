"""A whole run whose judge compares free text in tool calls, and is asked nothing else of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from remote_bench import EVAL_SIZE, bench, candidate, judge, judged_by

from flywheel.curation import load_split
from flywheel.rendering import query_of
from flywheel.sample_logs import write_sample_logs
from flywheel.scoring.tool_calls import parse
from flywheel.testing import FakeEndpoint, Request, text_reply, tool_reply
from flywheel.types import Json, Record

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MARK = "so to say "
"""What the candidate puts before a product's name, or into an argument that nobody asked for."""


def answered(record: Record) -> Json:
    """Production's call, the product in other words; a call without a product is spoilt."""
    (call,) = parse(record.answer) or [None]
    if call is None:
        return text_reply("no call")
    product = call.arguments.get("product")
    changed = {"product": MARK + product} if product else {"invented": MARK}
    return tool_reply(call.name, {**call.arguments, **changed})


def about_calls(request: Request) -> bool:
    """Whether a judge is asked about an answer of the candidate, under the prompt for calls."""
    lead, shown = request.body["messages"][0]["content"], request.body["messages"][-1]["content"]
    return "Compare the tool calls" in lead and MARK in shown


def test_the_judge_is_asked_for_products_in_other_words_and_nothing_else(tmp_path: Path) -> None:
    write_sample_logs(tmp_path / "logs", 300)
    records: dict[str, Record] = {}

    def answer(body: Json) -> Json:
        return answered(records[body["messages"][-1]["content"]])

    with FakeEndpoint(answer) as fake, FakeEndpoint(judge) as rater:
        mine = bench(
            tmp_path,
            tmp_path / "logs",
            [candidate(fake)],
            judge=judged_by(rater, injection_suite=False),
            scoring={"free_text": {"arguments": ["check_stock.product"]}},
        )
        curate = [sys.executable, "-m", "flywheel", "curate", str(mine.file)]
        subprocess.run(curate, check=True, capture_output=True, timeout=240)
        (fingerprint,) = mine.storage.at("datasets").names()
        records |= {query_of(r): r for r in load_split(mine.storage, fingerprint, "eval")}
        done = mine.ended()
    assert done.returncode == 0, done.stderr

    calls = {record.id: parse(record.answer) for record in records.values()}
    stock = {name for name, made in calls.items() if made and made[0].name == "check_stock"}
    assert 0 < len(stock) < EVAL_SIZE
    assert sum(map(about_calls, rater.requests)) == len(stock)
    (trial,) = mine.trials()
    metrics = trial.read_json("result.json")["metrics"]
    judged = metrics["tool_calling_correctness"]
    assert (judged["n"], judged["unscored"], judged["failed"]) == (len(calls), 0, 0)
    assert judged["value"] == pytest.approx(len(stock) / len(calls) / 9)
    assert metrics["function_name_and_args_accuracy"]["value"] == 0.0
    verdicts = trial.at("verdicts").read_lines("tool_calling_correctness.jsonl")
    assert {row["record_id"] for row in verdicts if row["judges"]} == stock
    board = mine.run.read_json("leaderboard.json")
    assert set(board["calibration"]["by_metric"]) == {"similarity", "tool_calling_correctness"}
