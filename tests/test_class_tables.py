"""Which classes are told apart: precision, recall, F1, confusion."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.scoring import answers_labels, score
from flywheel.scoring.classes import MAX_CLASSES, OTHER, table, tables
from flywheel.testing import sample_record, text_reply, tool_reply
from flywheel.types import Completion, Json, Score, ScoreStatus

PAIRS = [("a", "a")] * 6 + [("a", "b")] * 2 + [("b", "b")] * 3 + [("b", "none of them")]


def scores(pairs: Sequence[tuple[str, str]], metric: str = "label_accuracy") -> list[Score]:
    return [
        Score(str(i), metric, float(due == sent), classes=(due, sent))
        for i, (due, sent) in enumerate(pairs)
    ]


def test_a_class_has_precision_recall_and_f1_with_their_n():
    found = table(scores(PAIRS))
    a, b = found["classes"]
    assert (a["label"], a["support"], a["answered"]) == ("a", 8, 6)
    assert (a["precision"]["value"], a["recall"]["value"]) == (1.0, 0.75)
    assert (b["precision"]["value"], b["recall"]["value"]) == (0.6, 0.75)
    assert (a["precision"]["n"], b["precision"]["n"]) == (6, 5)
    assert a["f1"] == pytest.approx(2 * 0.75 / 1.75)
    assert found["macro_f1"] == pytest.approx((a["f1"] + b["f1"]) / 2)
    assert a["recall"]["low"] < 0.75 < a["recall"]["high"]


def test_the_confusion_counts_every_pair_and_folds_what_is_no_class():
    confusion = table(scores(PAIRS))["confusion"]
    assert confusion == {"labels": ["a", "b", OTHER], "counts": [[6, 2, 0], [0, 3, 1], [0, 0, 0]]}


def test_a_class_that_nobody_answered_has_no_precision_and_no_recall_of_zero_by_accident():
    (only,) = table(scores([("a", "x")]))["classes"]
    assert only["precision"]["value"] is None
    assert only["recall"]["value"] == 0.0
    assert only["f1"] == 0.0


def test_what_has_no_classes_has_no_table():
    assert tables([Score("r", "chrf", 0.5), Score("r", "x", None, ScoreStatus.FAILED, "e")]) == {}


def test_many_classes_keep_their_figures_and_the_most_frequent_have_lines():
    pairs = [(f"c{i}", f"c{i}") for i in range(150)] + [("c7", "c8")] * 3
    found = table(scores(pairs))
    assert len(found["classes"]) == MAX_CLASSES
    assert found["classes_left_out"] == 50
    assert found["classes"][0]["label"] == "c7"
    counts = found["confusion"]["counts"]
    assert len(counts) == len(found["confusion"]["labels"]) == MAX_CLASSES + 1
    assert sum(map(sum, counts)) == len(pairs)


LABELS = st.sampled_from(["a", "b", "c", "(other)", "\u202ex", "<script>", ""])


@given(st.lists(st.tuples(LABELS, LABELS), max_size=40))
@settings(max_examples=100, deadline=None)
def test_figures_agree_with_the_counts(pairs):
    found = tables(scores(pairs))
    json.dumps(found, allow_nan=False)
    for made in found.values():
        counts, labels = made["confusion"]["counts"], made["confusion"]["labels"]
        assert sum(map(sum, counts)) == made["n"] == len(pairs)
        for line in made["classes"]:
            right = pairs.count((line["label"], line["label"]))
            assert line["recall"]["value"] == pytest.approx(right / line["support"])
            if line["label"] != OTHER:
                assert counts[labels.index(line["label"])][labels.index(line["label"])] == right


def test_tools_are_classes_too():
    def of(due: Json, sent: Json) -> tuple[str, str] | None:
        record = sample_record("?", due)
        by_name = {s.metric: s for s in score(record, Completion(record.id, sent))}
        return by_name["function_name"].classes

    track, stock = tool_reply("track_order", {"order_id": "1"}), tool_reply("stock", {})
    broken = text_reply("<tool_call>{")
    assert of(track, track) == ("track_order", "track_order")
    assert of(track, stock) == ("track_order", "stock")
    assert of(track, text_reply("hm")) == ("track_order", "no_tool")
    assert of(track, broken) == ("track_order", "unparsable_call")


def test_classes_survive_the_disk():
    (one,) = scores([("a", "b")])
    row = json.loads(json.dumps({"record_id": "0", "metric": "label_accuracy", "value": 0.0,
                                 "status": "scored", "reason": "", "misses": [],
                                 "classes": ["a", "b"]}))  # fmt: skip
    assert Score.from_row(row) == one
    del row["classes"]
    assert Score.from_row(row).classes is None


def workload(answers: Sequence[str]) -> bool:
    records = [sample_record(f"q{i}", text_reply(a)) for i, a in enumerate(answers)]
    mix: dict[str, int] = {}
    for answer in answers:
        mix[answer.strip()[:80]] = mix.get(answer.strip()[:80], 0) + 1
    return answers_labels(mix, records)


def test_a_workload_answers_labels_when_few_answers_come_again_and_again():
    order = random.Random(0)
    assert workload([order.choice(["card lost", "refund", "other"]) for _ in range(30)])
    assert not workload([f"Your order {i} is on its way." for i in range(30)])
    assert not workload(["x" * 100] * 30)  # too long for a label
    assert not answers_labels({"no_tool": 3, "track": 30}, [sample_record("q", text_reply("x"))])
    assert not answers_labels({"up to 100 characters": 30}, [sample_record("q", text_reply("x"))])
    assert not answers_labels({}, [])
