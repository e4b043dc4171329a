"""The report is made from a run's files, shows what there is, and trusts nothing it shows."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_run import MANIFEST, SampleRun, a_sample_run, call, message

from flywheel.errors import StorageError
from flywheel.folders import REFERENCES, Desk
from flywheel.leaderboard import Leaderboard
from flywheel.report import funnel, read, render
from flywheel.report.charts import pareto
from flywheel.report.classes import REST, SIDES, bounded, by_class
from flywheel.report.disagreements import ON_A_PAGE, kinds, largest
from flywheel.report.facts import facts
from flywheel.report.material import FEATURED, featured
from flywheel.report.text import TEXT_LIMIT, cut, line, shown, visible
from flywheel.scoring import References
from flywheel.storage import Storage
from flywheel.types import Completion, Cost, Estimate, Json, Trial, TrialResult

HOSTILE = [
    '<script>document.title="owned"</script>',
    '"><img src=x onerror=alert(1)>',
    "</div></article></main></body>",
    "{{ 7 * 7 }}{% for x in y %}",
    "gnp.\u202eexe\u202c and \u2066this\u2069 \ud800 \x1b[31m",
    "very " * 20_000,
]


class Page(HTMLParser):
    """What a browser would find: elements, attributes, text, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            self.scripts.append(data)
            self.tags.append("")
        self.text += data


@pytest.fixture(scope="module")
def run() -> SampleRun:
    return a_sample_run()


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return render(a_sample_run(HOSTILE).material())


def test_traffic_stays_text(hostile_page: str) -> None:
    page = Page(hostile_page)
    assert not {"img", "iframe", "object", "base"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("main") == page.tags.count("body") == 1
    for text in HOSTILE[:4]:
        assert text in page.text


def test_nothing_may_run_but_the_pages_own_script(hostile_page: str) -> None:
    page = Page(hostile_page)
    (policy,) = (v for name, v in page.attributes if name == "content" and "default-src" in v)
    digest = hashlib.sha256("".join(page.scripts).encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_characters_that_reorder_or_hide_text_are_spelled_out(hostile_page: str) -> None:
    assert "⟨U+202E⟩exe⟨U+202C⟩" in hostile_page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", hostile_page)
    hostile_page.encode("utf-8")
    assert visible("naïve\tمرحبا 👩\u200d👧\n") == "naïve\tمرحبا 👩\u200d👧\n"


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=300), st.integers(1, 200))
def test_text_is_bounded_whatever_it_is(text: str, limit: int) -> None:
    assert len(cut(text, limit)) <= limit + 50
    assert len(line(text, limit)) <= limit + 1
    assert len(line(text, limit).splitlines()) <= 1
    visible(text).encode("utf-8")


def test_long_text_is_cut_with_a_note(hostile_page: str) -> None:
    assert "very " * 401 not in hostile_page
    assert f"(cut; {len(HOSTILE[-1]):,} characters in all)" in hostile_page
    assert TEXT_LIMIT == 2_000


def test_the_page_needs_no_network(hostile_page: str) -> None:
    page = Page(hostile_page)
    links = [v for name, v in page.attributes if name in {"src", "href", "xlink:href"}]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in hostile_page
    assert re.findall(r"url\((?!#)", hostile_page) == []


def test_thousands_of_long_answers_leave_a_page_that_opens() -> None:
    long = ["x" * 4_000 + str(i) for i in range(500)]
    page = render(a_sample_run(long, n=1_000).material())
    assert len(page) < 5_000_000
    assert page.count('<details class="case"') <= ON_A_PAGE + 40
    assert "the largest 100 of" in page


def test_the_files_of_a_run_make_the_page_again(run: SampleRun, tmp_path: Path) -> None:
    desk = run.leave(Storage(str(tmp_path)))
    assert render(read(desk)) == render(run.material())


def test_without_its_dataset_a_run_still_has_a_report(run: SampleRun, tmp_path: Path) -> None:
    desk = run.leave(Storage(str(tmp_path)))
    desk.storage.remove("datasets")
    page = render(read(desk))
    assert "is not where it was" in page
    assert "Leaderboard" in page


def test_a_run_without_a_leaderboard_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"leaderboard\.json"):
        read(Desk(Storage(str(tmp_path)), "r"))


def test_the_largest_disagreements_come_first_and_right_answers_never(run: SampleRun) -> None:
    found = largest(run.material())
    assert [one.row for one in found] == featured(run.board)
    for one in found:
        sizes = [item.size for item in one.items]
        assert sizes == sorted(sizes, reverse=True)
        assert all(item.expected != item.candidate for item in one.items)
        assert len(one.items) == min(one.total, ON_A_PAGE // len(found))


def test_beside_a_ground_truth_file_what_it_expects_is_not_called_productions(
    run: SampleRun, tmp_path: Path
) -> None:
    desk = run.leave(Storage(str(tmp_path)))
    board = dataclasses.replace(run.board, logged=Estimate(0.9, 0.8, 0.95, 100))
    desk.run.write_json("leaderboard.json", board.to_json())
    truth = {r.id: message(content=f"as the file says of {r.id}") for r in run.records}
    desk.run.write_lines(REFERENCES, References(truth, "").rows())
    material = read(desk)
    shown = [item for one in largest(material) for item in one.items]
    assert shown
    assert all(item.expected == f"as the file says of {item.record}" for item in shown)
    page, plain = render(material), render(run.material())
    assert "Expected by the ground-truth file" in page
    assert "that the ground-truth file expects, the largest" in page
    assert "makes the expected tool calls in" in page
    for words in ("Production answered", "where production", "as production's,"):
        assert words not in page
    assert "Production answered" in plain
    assert "makes production&#39;s tool calls in" in plain


def test_answers_that_failed_are_no_disagreement(run: SampleRun) -> None:
    failed = {key: [Completion(r.id, error="timeout") for r in run.records] for key in run.scores}
    material = dataclasses.replace(run.material(), completions=failed)
    assert [one.total for one in largest(material)] == [0] * 4


def test_each_kind_of_mistake_is_counted_and_shown(run: SampleRun) -> None:
    found = {kind.name: kind for kind in kinds(run.material())}
    assert {"no_call", "unparsable_call", "wrong_tool", "wrong_value"} <= found.keys()
    for kind in found.values():
        assert kind.counts == [
            row.result.misses.get(kind.name, {}).get("records", 0) for row in featured(run.board)
        ]
        assert kind.examples
        assert all(kind.name in example.kinds for example in kind.examples)


def test_every_class_has_its_mean_of_every_metric(run: SampleRun) -> None:
    for one in by_class(run.material()):
        assert one.metrics[0] == run.board.metric
        assert sum(means[run.board.metric].n for _, means in one.means) == len(run.records)
        sizes = [means[run.board.metric].n for _, means in one.means]
        assert sizes == sorted(sizes, reverse=True)


def test_of_many_classes_the_small_ones_share_a_row(run: SampleRun) -> None:
    many = {r.id: f"class {i % 40}" for i, r in enumerate(run.records)}
    one = by_class(dataclasses.replace(run.material(), classes=many))[0]
    assert [name for name, _ in one.means][-1] == REST
    assert len(one.means) == 21


def test_precision_recall_and_confusion_are_shown_as_they_were_measured() -> None:
    run = a_sample_run(labels=True)
    material = run.material()
    one = by_class(material)[0]
    table = material.results[one.row.result.key]["classes"]["label_accuracy"]
    (told,) = one.told
    assert [line[0] for line in told.lines] == [line["label"] for line in table["classes"]]
    assert [line[3].value for line in told.lines] == [
        line["recall"]["value"] for line in table["classes"]
    ]
    assert sum(map(sum, told.confusion.counts)) == table["n"]
    page = Page(render(material)).text
    assert "Told apart, by label_accuracy: macro F1 0.50" in page


@given(st.lists(st.lists(st.integers(0, 50), min_size=30, max_size=30), min_size=30, max_size=30))
@settings(max_examples=30)
def test_a_large_confusion_is_bounded_and_loses_no_record(counts: list[list[int]]) -> None:
    found = bounded([f"class {i}" for i in range(29)] + ["(other)"], counts)
    assert len(found.rows) <= SIDES + 1
    assert len(found.columns) <= SIDES + 1
    assert sum(map(sum, found.counts)) == sum(map(sum, counts))


def test_a_load_test_is_shown_with_what_the_slo_bears(run: SampleRun) -> None:
    page = Page(render(run.material())).text
    assert "bears concurrency-8" in page
    assert "first token s 1" in page
    bare = dataclasses.replace(run.material(), results={})
    assert "Under load" not in Page(render(bare)).text


def test_of_many_trials_a_few_are_looked_at_closely(run: SampleRun) -> None:
    rows = [dataclasses.replace(run.board.rows[0], rank=i) for i in range(1, 60)]
    many = [
        dataclasses.replace(
            row,
            result=dataclasses.replace(row.result, trial=Trial(f"c{i}", "m", "base", {}, "d", 0)),
        )
        for i, row in enumerate(rows)
    ]
    board = dataclasses.replace(run.board, rows=many)
    assert len(featured(board)) == FEATURED
    assert "this page looks more closely at 6" in render(run.material(board))


def test_the_funnel_accounts_for_every_line() -> None:
    steps = {step.name: step for step in funnel(MANIFEST)}
    assert steps["log lines"].count == 3_000
    assert steps["records"].lost == "−110 rejected, −1,810 of other workloads"
    assert steps["distinct"].count == 985
    assert steps["distinct"].lost == "−60 exact duplicates, −35 normalised duplicates"
    assert steps["eval"].share == pytest.approx(100 / 30)


def test_a_manifest_of_another_version_is_no_obstacle(run: SampleRun) -> None:
    page = render(run.material(manifest={"lines": 10}))
    assert "Leaderboard" in page
    assert "Leak check" not in page


def test_a_leak_is_said_aloud(run: SampleRun) -> None:
    leaky = {**MANIFEST, "leak_check": {"exact": {"eval-train": 3}}}
    assert "3 requests stand in two splits" in render(run.material(manifest=leaky))


def test_the_charts_take_the_colours_of_the_page(run: SampleRun) -> None:
    svg = pareto(run.board)
    assert svg is not None
    assert "var(--accent)" in svg
    assert "production" in svg
    page = render(run.material())
    assert page.count("<svg") == 5
    assert not re.search("#0102", page)


def test_without_prices_there_is_no_chart_and_the_page_says_why(run: SampleRun) -> None:
    free = [
        dataclasses.replace(
            row, result=dataclasses.replace(row.result, cost=Cost(None, "no price"))
        )
        for row in run.board.rows
    ]
    board = dataclasses.replace(run.board, rows=free, production=None)
    assert pareto(board) is None
    assert "gives no price" in render(run.material(board))


def test_an_untrusted_judge_is_marked_and_none_is_said(run: SampleRun) -> None:
    assert "Not trusted" in render(run.material())
    board = dataclasses.replace(run.board, calibration=None)
    assert "No judge took part." in render(run.material(board))


def test_a_judge_that_gave_no_verdict_still_leaves_a_report(run: SampleRun) -> None:
    silent = {"auc": None, "n": 0, "trusted": False, "mean_same": None, "mean_shuffled": None}
    calibration = {**(run.board.calibration or {}), **silent}
    page = render(run.material(dataclasses.replace(run.board, calibration=calibration)))
    assert "with an AUC of –" in page
    assert "judge AUC –, not trusted" in page


def test_whatever_a_calibration_measured_is_shown(run: SampleRun) -> None:
    more: Json = {"injection": {"attacks": 44, "share_moved": 0.0682}, "position_bias": None}
    board = dataclasses.replace(run.board, calibration={**(run.board.calibration or {}), **more})
    page = Page(render(run.material(board))).text
    for words in ("Injection", "share moved", "0.0682", "position bias"):
        assert words in page


def test_facts_are_bounded_and_readable() -> None:
    data = {
        "a_b": {"c": [0.123456] * 100, "d": True, "e": {"f": {"g": None}}},
        "h": "x" * 10_000,
        "i": 12_345,
        "j": None,
        "judges": [{"model": "a", "auc": 0.9}, {"model": "b"}],
        "empty": {},
        "none": [],
    }
    found = facts(data, without=["j"])
    assert [name for name, _ in found.plain] == ["h", "i"]
    assert dict(found.plain)["i"] == "12,345"
    assert len(dict(found.plain)["h"]) < 300
    ((name, pairs),) = found.groups
    assert name == "a b"
    assert pairs[1:] == [("d", "yes"), ("e: f", "g –")]
    assert pairs[0][1].endswith("and 88 more")
    assert found.tables == [("judges", ["model", "auc"], [["a", "0.9"], ["b", "–"]])]
    assert len(facts({str(i): i for i in range(1_000)}).plain) == 40


def test_a_run_without_any_result_still_has_a_report(run: SampleRun) -> None:
    failed = TrialResult(Trial("m", "m", "base", {}, "d", 0), "failed", "no answer at all")
    for rows in ([], [dataclasses.replace(run.board.rows[-1], result=failed)]):
        page = render(run.material(Leaderboard("exact_match", 0.9, rows)))
        assert "No verdict: no model could be ranked." in page


def test_answers_read_as_text_and_calls() -> None:
    assert shown(message(call("f", '{"a": 1}'), content="ok")) == 'ok\nf {"a": 1}'
    assert shown({"content": None}) == "(empty)"
    assert shown({"tool_calls": ["?"]}) == '(unreadable call) "?"'
    assert shown({"content": "x", "tool_calls": 5}) == "x"
