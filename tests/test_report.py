import dataclasses
import re
from html.parser import HTMLParser

import pytest
from sample_run import MANIFEST, a_sample_run, call, message

from flywheel.leaderboard import Leaderboard
from flywheel.report import TEXT_LIMIT, chart, funnel, render, shown, visible, worst
from flywheel.types import Completion, Cost

HOSTILE = [
    '<script>document.title="owned"</script>',
    '"><img src=x onerror=alert(1)>',
    "</div></article></main></body>",
    "{{ 7 * 7 }}{% for x in y %}",
    "gnp.\u202eexe\u202c and \u2066this\u2069 \ud800 \x1b[31m",
    "very " * 10_000,
]


class Page(HTMLParser):
    """What a browser would find: elements, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def page_of(run, board=None, manifest=MANIFEST):
    return render(
        board or run.board,
        manifest,
        run.experiment,
        completions=run.completions,
        scores=run.scores,
        records=run.records,
    )


@pytest.fixture(scope="module")
def hostile_page():
    return page_of(a_sample_run(HOSTILE))


def test_traffic_stays_text(hostile_page):
    page = Page(hostile_page)
    assert not {"script", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("main") == page.tags.count("body") == 1
    for text in HOSTILE[:4]:
        assert text in page.text


def test_characters_that_reorder_or_hide_text_are_spelled_out(hostile_page):
    assert "⟨U+202E⟩exe⟨U+202C⟩" in hostile_page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", hostile_page)
    hostile_page.encode("utf-8")
    assert visible("naïve\tمرحبا 👩\u200d👧\n") == "naïve\tمرحبا 👩\u200d👧\n"


def test_long_text_is_cut_with_a_note(hostile_page):
    assert "very " * 401 not in hostile_page
    assert f"(cut; {len(HOSTILE[-1]):,} characters in all)" in hostile_page
    assert TEXT_LIMIT == 2_000


def test_the_page_is_small_and_needs_no_network(hostile_page):
    assert len(hostile_page) < 200_000
    page = Page(hostile_page)
    links = [v for name, v in page.attributes if name in {"src", "href", "xlink:href"}]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in hostile_page
    assert re.findall(r"url\((?!#)", hostile_page) == []


def test_the_same_run_gives_the_same_page():
    assert page_of(a_sample_run()) == page_of(a_sample_run())


def test_worst_answers_come_first_and_right_ones_never():
    run = a_sample_run(["wrong for all"])
    found = worst(run.board, run.completions, run.scores, run.records)
    assert len(found) == 10
    assert all(item.production != item.candidate for item in found)
    assert found[0].candidate.startswith("track_order")
    totals = [sum(float(value) for _, value in item.scores) for item in found]
    assert totals == sorted(totals)


def test_answers_that_failed_are_no_disagreement():
    run = a_sample_run()
    key = run.board.best.result.key
    failed = [Completion(r.id, error="timeout") for r in run.records]
    assert worst(run.board, {key: failed}, run.scores, run.records) == []


def test_the_funnel_accounts_for_every_line():
    steps = {step.name: step for step in funnel(MANIFEST)}
    assert steps["log lines"].count == 3_000
    assert steps["records"].lost == "−110 rejected, −1,810 of other workloads"
    assert steps["distinct"].count == 985
    assert steps["distinct"].lost == "−60 exact duplicates, −35 normalised duplicates"
    assert steps["eval"].share == pytest.approx(100 / 30)


def test_a_manifest_of_another_version_is_no_obstacle():
    page = page_of(a_sample_run(), manifest={})
    assert "Leaderboard" in page
    assert "Leak check" not in page


def test_a_leak_is_said_aloud():
    leaky = {**MANIFEST, "leak_check": {"exact": {"eval-train": 3}}}
    assert "3 requests stand in two splits" in page_of(a_sample_run(), manifest=leaky)


def test_the_chart_takes_the_colours_of_the_page():
    svg = chart(a_sample_run().board)
    assert "var(--accent)" in svg
    assert not re.search("#0102", svg)
    assert "production" in svg


def test_without_prices_there_is_no_chart_and_the_page_says_why():
    run = a_sample_run()
    free = [
        dataclasses.replace(
            row, result=dataclasses.replace(row.result, cost=Cost(None, "no price"))
        )
        for row in run.board.rows
    ]
    board = dataclasses.replace(run.board, rows=free, production=None)
    assert chart(board) is None
    assert "gives no price" in page_of(run, board)


def test_an_untrusted_judge_is_marked_and_none_is_said():
    run = a_sample_run()
    assert "Not trusted" in page_of(run)
    board = dataclasses.replace(run.board, calibration=None)
    assert "No judge took part." in page_of(run, board)


def test_a_judge_that_gave_no_verdict_still_leaves_a_report():
    run = a_sample_run()
    silent = {"auc": None, "n": 0, "trusted": False, "mean_same": None, "mean_shuffled": None}
    board = dataclasses.replace(run.board, calibration={**run.board.calibration, **silent})
    page = page_of(run, board)
    assert "with an AUC of –" in page
    assert "judge AUC –, not trusted" in page


def test_a_run_without_any_result_still_has_a_report():
    run = a_sample_run()
    page = page_of(run, Leaderboard("exact_match", 0.9, []))
    assert "No trial could be ranked." in page


def test_answers_read_as_text_and_calls():
    assert shown(message(call("f", '{"a": 1}'), content="ok")) == 'ok\nf {"a": 1}'
    assert shown({"content": None}) == "(empty)"
    assert shown({"tool_calls": ["?"]}) == '(unreadable call) "?"'
    assert shown({"content": "x", "tool_calls": 5}) == "x"
