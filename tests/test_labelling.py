"""A judged run without a cluster: its files, what people say of its pairs, what that changes."""

from __future__ import annotations

import csv
import http.client
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pyarrow as pa
import pytest
from rich.console import Console

from flywheel import cli
from flywheel.config import Experiment, dump
from flywheel.errors import RequestError
from flywheel.folders import read_scores
from flywheel.judging import Labels, Session, human
from flywheel.judging.labels import Label, sample
from flywheel.judging.pairs import Pair
from flywheel.labelling import Pool, sheet, terminal
from flywheel.labelling.page import LabelServer
from flywheel.leaderboard import Leaderboard, rank, table, to_markdown
from flywheel.serving import remote
from flywheel.statistics import estimate
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, likely_verdict, sample_record, text_reply, verdict
from flywheel.types import Completion, Json, Score, Trial, TrialResult

DATASET = "f00d"
HOSTILE = "<script>alert(1)</script>\u202e[red]\x1b[2J"
RECORDS = [sample_record(f"question {i}", text_reply(f"answer {i}")) for i in range(40)]


def said(number: int) -> Json:
    """Every second answer is production's; one is hostile, some say nothing."""
    if number == 7:
        return text_reply(HOSTILE)
    return text_reply(f"answer {number}" if number % 2 else f"nothing {number}")


def judge(body: Json) -> Json:
    """Knows its mind where answers are alike, wavers where the question ends in 4."""
    reference, candidate = (
        part.split(">>>")[0] for part in body["messages"][-1]["content"].split("<<<")[-2:]
    )
    if reference.endswith("4"):
        return likely_verdict({6: 0.6, 2: 0.4})
    return verdict(10 if reference == candidate else 2)


JUDGE = {"model": "rater", "calibration_pairs": 6}


def experiment(storage: Path, url: str, **changes: Any) -> Experiment:
    rater = {**JUDGE, "endpoint": url}
    return Experiment.model_validate(
        {
            "name": "shop",
            "logs": "logs",
            "workload": "shop.router",
            "storage": str(storage),
            "candidates": [{"model": "org/a"}],
            "methods": {"base": {}},
            "judge": rater,
            **changes,
        }
    )


class Bench:
    """A run with one trial that has answers."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder))
        self.run = self.storage.at("runs", "shop-1")
        self.trial = self.run.at("trials", "t1")
        rows = pa.Table.from_pylist([record.to_row() for record in RECORDS])
        self.storage.at("datasets", DATASET).write_table("eval/part.parquet", rows)
        answers = [asdict(Completion(r.id, said(i))) for i, r in enumerate(RECORDS)]
        self.trial.at("completions").write_lines("00000-a.jsonl", answers)
        self.run.write_json("run.json", {"run": "shop-1", "dataset": DATASET, "started_at": "1"})

    def session(self, one: Experiment) -> Session:
        self.run.write_bytes("experiment.yaml", dump(one).encode())
        return Session(one, self.run, RECORDS, Labels(self.storage, DATASET))

    def judged(self, one: Experiment) -> Json:
        """Judge what is not judged yet, as the pipeline does."""
        session = self.session(one)
        if not (session.judged(self.trial) and session.calibrated):
            for rater in session.judges:
                endpoint = remote(rater.config)
                if not session.calibrated:
                    session.ask_probes(rater, endpoint, lambda what, done, total: None)
                session.ask(rater, endpoint, self.trial, lambda done, total: None)
            session.write(self.trial)
        return session.close({"t1": self.trial})

    def pool(self) -> Pool:
        return Pool(self.storage, self.run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with FakeEndpoint(judge) as fake:
        Bench(folder).judged(experiment(folder, fake.url))
    return folder


@pytest.fixture
def bench(finished: Path, tmp_path: Path) -> Bench:
    """A copy of the judged run."""
    there = Storage(str(finished))
    for name in there.names():
        Storage(str(tmp_path)).copy_from(there, name)
    made = Bench.__new__(Bench)
    made.storage = Storage(str(tmp_path))
    made.run = made.storage.at("runs", "shop-1")
    made.trial = made.run.at("trials", "t1")
    return made


# -- a session


def test_judges_leave_scores_verdicts_and_a_calibration(bench: Bench) -> None:
    calibration = bench.run.read_json("calibration.json")
    assert calibration["metric"] == "similarity"
    assert calibration["by_metric"]["similarity"]["auc"] == calibration["auc"]
    assert calibration["injection"]["asked"] == 52
    scores = read_scores(bench.trial)
    assert {s.metric for s in scores} == {"similarity", "similarity_plain"}
    assert {s.judge for s in scores} == {calibration["identity"]}
    rows = list(bench.trial.at("verdicts").read_lines("similarity.jsonl"))
    assert [row["record_id"] for row in rows] == [record.id for record in RECORDS]
    assert all(set(row["judges"]) == {calibration["identity"]} for row in rows)


def test_the_same_judge_is_asked_nothing_again_and_a_changed_prompt_everything(
    tmp_path: Path,
) -> None:
    prompt = tmp_path / "own.yaml"
    prompt.write_text("{metric: similarity, kind: rating, instruction: Rate it.}")
    with FakeEndpoint(judge) as fake:
        one = experiment(tmp_path, fake.url)
        assert one.judges
        rater = one.judges[0].model_copy(update={"prompt": str(prompt)})
        one = one.model_copy(update={"judge": rater})
        made = Bench(tmp_path)
        first = made.judged(one)
        asked = len(fake.requests)
        assert made.judged(one) == first
        assert len(fake.requests) == asked
        prompt.write_text("{metric: similarity, kind: rating, instruction: Rate it well.}")
        session = made.session(one)
        assert not session.calibrated
        assert not session.judged(made.trial)
        assert made.judged(one)["identity"] != first["identity"]
    assert {s.judge for s in read_scores(made.trial)} != {first["identity"]}


def test_a_calibration_taken_from_another_run_is_not_paid_for_again(tmp_path: Path) -> None:
    with FakeEndpoint(judge) as fake:
        one = experiment(tmp_path, fake.url)
        made = Bench(tmp_path)
        calibration = made.judged(one)
        made.run.remove("judge")
        made.trial.remove("scores")
        del fake.requests[:]
        assert made.judged(one) == calibration
    assert len(fake.requests) == len(RECORDS)


def test_scores_without_a_judges_name_are_not_this_judges(bench: Bench, finished: Path) -> None:
    rows = [asdict(Score(record.id, "similarity", 1.0)) for record in RECORDS]
    bench.trial.at("scores").write_lines("similarity.jsonl", rows)
    one = experiment(finished, "http://127.0.0.1:1/v1")
    assert not bench.session(one).judged(bench.trial)


def test_several_judges_and_metrics_leave_a_calibration_each(tmp_path: Path) -> None:
    with FakeEndpoint(judge) as fake, FakeEndpoint(lambda body: verdict(9)) as kind:
        base = {"endpoint": fake.url, "calibration_pairs": 5, "injection_suite": False}
        one = experiment(
            tmp_path,
            fake.url,
            judge=[
                {"model": "strict", **base},
                {"model": "kind", **base, "endpoint": kind.url},
                {"model": "chooser", **base, "prompt": "preference"},
            ],
        )
        calibration = Bench(tmp_path).judged(one)
    both, chooser = (calibration["by_metric"][name] for name in ("similarity", "preference"))
    assert both["judge"] == "strict + kind"
    assert [alone["auc"] for alone in both["judges"]] == [pytest.approx(0.94, abs=0.06), 0.5]
    assert both["agreement"]["n"] == len(RECORDS)
    assert both["agreement"]["alpha"] < 0.2
    assert (chooser["auc"], chooser["trusted"], chooser["agreement"]) == (None, False, {})
    assert (chooser["n"], chooser["unscored"]) == (0, 10)


# -- the order in which people look


def test_pairs_come_by_turns_the_most_doubtful_and_the_next_at_random(bench: Bench) -> None:
    pool = bench.pool()
    order = pool.order()
    assert [drawn for _, drawn in order[:6]] == ["informative", "random"] * 3
    doubts = [item.doubt for item, drawn in order if drawn == "informative"]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[0] > doubts[-1]
    keys = [item.key for item, drawn in order if drawn == "random"]
    assert keys == sorted(keys)
    assert {item.key for item, _ in order} == pool.items.keys()
    for item, drawn in order:
        assert pool.next() == (item, drawn)
        pool.label({item.key: (True, drawn)})
    assert pool.next() is None
    assert pool.order() == []


def labels_of(*spoken: tuple[int, bool | None, Any]) -> dict[str, Label]:
    found = [Label(Pair("q", "r", str(n)), f"r{n}", good, drawn) for n, good, drawn in spoken]
    return {label.key: label for label in found}


def row(record_id: str, pair: str, value: float | None, *, judged: bool = True) -> Json:
    """What matters of a line of ``verdicts/<metric>.jsonl``."""
    judges = {"judge": {"value": value}} if judged else {}
    return {"record_id": record_id, "pair": pair, "value": value, "judges": judges}


def test_only_the_beginning_of_the_random_order_is_a_sample() -> None:
    keys = sorted(Pair("q", "r", str(n)).key for n in range(6))
    number = {Pair("q", "r", str(n)).key: n for n in range(6)}
    at = [number[key] for key in keys]
    labels = labels_of(
        (at[0], True, "informative"),
        (at[1], None, "random"),
        (at[2], False, "random"),
        (at[3], True, "informative"),  # labelled for being informative, nothing random behind it
        (at[5], True, "informative"),
    )
    assert sample(keys, labels) == {keys[0]: True, keys[2]: False}
    assert sample(keys, {}) == {}


def test_judges_are_compared_with_people_on_the_sample() -> None:
    labels = labels_of(*((n, n % 4 != 0, "random") for n in range(24)))
    rows = {"t": [row(f"r{n}", Pair("q", "r", str(n)).key, float(n % 2)) for n in range(24)]}
    found = human(labels, rows, 0.5)
    assert (found["labels"], found["drawn"], found["n"]) == (24, 24, 24)
    assert found["true_positive_rate"] == pytest.approx(12 / 18)
    assert found["false_positive_rate"] == 0.0
    assert found["kappa"] == pytest.approx(0.5)
    corrected = found["corrected"]["t"]
    assert corrected["value"] == pytest.approx(0.75)
    assert corrected["low"] < 0.75 < corrected["high"]


@pytest.mark.parametrize("good", [True, False])
def test_labels_that_say_one_thing_and_verdicts_that_say_the_same_have_no_kappa(good: bool) -> None:
    labels = labels_of(*((n, good, "random") for n in range(5)))
    rows = [row(key, key, float(good)) for key in labels]
    found = human(labels, {"t": rows}, 0.5)
    assert found["kappa"] is None
    assert found["true_positive_rate"] == (1.0 if good else None)
    assert found["corrected"] == {}


def test_pairs_without_a_verdict_are_not_compared() -> None:
    labels = labels_of((0, True, "random"), (1, False, "random"))
    values = [None, 0.0]
    rows = [row(key, key, value) for key, value in zip(labels, values, strict=True)]
    found = human(labels, {"t": rows}, 0.5)
    assert (found["labels"], found["overall"]["n"]) == (2, 1)


def test_what_a_program_settled_counts_for_the_mean_and_not_for_the_judge() -> None:
    labels = labels_of(*((n, n % 2 == 0, "random") for n in range(20)))
    rows = [row(key, key, float(n % 2), judged=n < 5) for n, key in enumerate(labels)]
    found = human(labels, {"t": rows}, 0.5)
    assert (found["labels"], found["drawn"]) == (20, 20)
    assert (found["n"], found["overall"]["n"]) == (5, 5)
    assert found["corrected"]["t"]["value"] == pytest.approx(0.5)


def test_labels_of_pairs_nobody_rated_say_nothing() -> None:
    assert human(labels_of((0, True, "random")), {"t": []}, 0.5) == {}


# -- what labels change


def right(pool: Pool) -> dict[str, bool]:
    return {key: item.pair.reference == item.pair.candidate for key, item in pool.items.items()}


def test_labels_stand_in_the_runs_files_and_on_its_board(bench: Bench) -> None:
    trial = Trial("a", "org/a", "base", {}, DATASET, 0)
    scores = read_scores(bench.trial)
    calibration = bench.run.read_json("calibration.json")
    metrics = {"similarity": estimate([s for s in scores if s.metric == "similarity"])}
    result = TrialResult(trial, "succeeded", metrics=metrics)
    config = experiment(Path(bench.storage.url), "http://127.0.0.1:1/v1")
    board = rank([result], {trial.key: scores}, config.ranking, calibration=calibration)
    bench.run.write_json("leaderboard.json", board.to_json())
    bench.storage.at("runs", "shop-1", "trials", trial.key).copy_from(bench.trial, "completions")
    bench.storage.at("runs", "shop-1", "trials", trial.key).copy_from(bench.trial, "verdicts")
    bench.run.write_bytes("report.html", b"as it was before")
    pool = bench.pool()
    pool.label({key: (good, "random") for key, good in right(pool).items()})
    found = pool.close()["similarity"]
    assert found["drawn"] == len(RECORDS)
    assert found["kappa"] > 0.5
    assert bench.run.read_json("calibration.json")["human"] == found
    after = Leaderboard.from_json(bench.run.read_json("leaderboard.json"))
    corrected = found["corrected"][trial.key]
    shown = f"by people {corrected['value']:.2f} [{corrected['low']:.2f}, {corrected['high']:.2f}]"
    assert any(shown in cell for row in table(after)[1] for cell in row)
    assert shown in bench.run.read_bytes("report.html").decode()
    assert shown in to_markdown(after)


def test_labels_of_a_run_that_is_not_ranked_yet_make_no_report(bench: Bench) -> None:
    pool = bench.pool()
    pool.label({next(iter(pool.items)): (True, "random")})
    assert pool.close()["similarity"]["labels"] == 1
    assert not bench.run.exists("report.html")


def test_labels_hold_in_another_run_and_a_later_word_counts(bench: Bench) -> None:
    pool = bench.pool()
    (key, *_) = pool.items
    pool.label({key: (True, "random")})
    pool.label({key: (False, "informative")})
    (label,) = Labels(bench.storage, DATASET).by_pair.values()
    assert (label.key, label.good, label.drawn) == (key, False, "random")
    assert label.pair == pool.items[key].pair
    assert Labels(bench.storage, "other").by_pair == {}


def test_answers_that_people_called_as_good_are_paraphrases_for_the_next_calibration(
    bench: Bench,
) -> None:
    pool = bench.pool()
    pool.label(dict.fromkeys(list(pool.items)[:6], (True, "random")))
    found = Labels(bench.storage, DATASET).paraphrases
    assert found
    assert all(pair.reference != pair.candidate for pair in found)


def test_a_run_without_a_judge_has_nothing_to_label(tmp_path: Path) -> None:
    made = Bench(tmp_path)
    with pytest.raises(RequestError, match="no judge has rated anything"):
        made.pool()
    made.run.write_json("calibration.json", {"auc": 0.9, "trusted": True})
    with pytest.raises(RequestError, match="earlier version"):
        made.pool()


# -- a spreadsheet


def test_labels_travel_by_csv(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    pool = bench.pool()
    assert sheet.write(pool, file) == len(pool.items)
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert {row["label"] for row in rows} == {""}
    for row, word in zip(rows, ("good", "BAD ", "unsure"), strict=False):
        row["label"] = word
    with file.open("w", newline="", encoding="utf-8-sig") as out:  # as spreadsheets save it
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert sheet.read(pool, file) == 3
    found = [(pool.labels.by_pair[row["pair"]].good, row["drawn"]) for row in rows[:3]]
    assert [good for good, _ in found] == [True, False, None]
    assert [pool.labels.by_pair[row["pair"]].drawn for row in rows[:3]] == [d for _, d in found]
    again = tmp_path / "again.csv"
    sheet.write(pool, again)
    kept = [r["label"] for r in csv.DictReader(io.StringIO(again.read_text(encoding="utf-8")))]
    assert kept[-3:] == ["good", "bad", "unsure"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pair,label\n{key},great\n", "line 2: label 'great'; allowed: good, bad, unsure"),
        ("pair,label\n{key},good\nnope,bad\n", "no pair 'nope'"),
        ("a,b\n1,2\n", "needs the columns pair and label"),
        ("", "needs the columns pair and label"),
    ],
)
def test_a_wrong_csv_is_told_and_nothing_of_it_kept(
    bench: Bench, tmp_path: Path, text: str, problem: str
) -> None:
    pool = bench.pool()
    file = tmp_path / "labels.csv"
    file.write_text(text.format(key=next(iter(pool.items))))
    with pytest.raises(RequestError, match=re.escape(problem)):
        sheet.read(pool, file)
    assert pool.labels.by_pair == {}


def test_no_cell_of_the_csv_is_a_formula(bench: Bench, tmp_path: Path) -> None:
    pool = bench.pool()
    (key, *_) = pool.items
    item = pool.items[key]
    pool.items[key] = replace(item, pair=replace(item.pair, candidate="=HYPERLINK(1)"))
    pool.labels.by_pair[key] = Label(item.pair, item.record_id, True, "random")
    sheet.write(pool, tmp_path / "labels.csv")
    assert "'=HYPERLINK(1)" in (tmp_path / "labels.csv").read_text(encoding="utf-8")


def test_the_command_takes_a_csv_and_prints_what_it_changed(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.csv"
    where = ["shop-1", "--storage", bench.storage.url]
    cli.app(["label", *where, "--write-csv", str(file)], standalone_mode=False)
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(",informative,,", ",informative,good,"), encoding="utf-8")
    capsys.readouterr()
    cli.app(["label", *where, "--read-csv", str(file), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)["similarity"]
    assert (found["labels"], found["drawn"]) == (20, 0)
    assert found["overall"]["n"] == 20
    assert bench.run.read_json("calibration.json")["human"] == found


# -- a terminal


def typed(*keys: str) -> Callable[[str], str]:
    answers = iter(keys)

    def answer(question: str) -> str:
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    return answer


@pytest.mark.parametrize(
    ("keys", "given"),
    [(("g", "b", "u", "q"), 3), (("x", "", "good"), 1), ((), 0), (("q",), 0), (("b",) * 99, 40)],
)
def test_a_terminal_takes_keys_until_one_has_had_enough(
    bench: Bench, keys: Sequence[str], given: int
) -> None:
    shown = Console(file=io.StringIO(), width=100)
    pool = bench.pool()
    assert terminal.ask(pool, shown, typed(*keys)) == given == len(pool.labels.by_pair)


def test_a_terminal_gets_no_markup_and_no_control_characters(bench: Bench) -> None:
    written = io.StringIO()
    terminal.ask(bench.pool(), Console(file=written, width=100), typed(*"g" * 99))
    assert "<script>alert(1)</script>[red][2J" in written.getvalue()
    assert not any(c in written.getvalue() for c in "\x1b\u202e")


# -- a page


@contextmanager
def served(pool: Pool) -> Iterator[LabelServer]:
    server = LabelServer(pool)
    thread = Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        if not server.stopped:
            sent(server, {"label": "stop"})
        thread.join(10)
        assert not thread.is_alive()


def sent(server: LabelServer, form: dict[str, str]) -> str:
    return httpx.post(server.url, data=form, timeout=5).raise_for_status().text


def got(server: LabelServer) -> tuple[str, Any]:
    response = httpx.get(server.url, timeout=5).raise_for_status()
    return response.text, response.headers


def fields(page: str) -> dict[str, str]:
    return dict(re.findall(r'name="(pair|drawn)" value="([^"]*)"', page))


def test_a_page_takes_labels_one_by_one(bench: Bench) -> None:
    pool = bench.pool()
    with served(pool) as server:
        page, headers = got(server)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "0 of 40" in page
        first = fields(page)
        page = sent(server, {**first, "label": "bad"})
        assert "1 of 40" in page
        assert fields(page)["pair"] != first["pair"]
        assert "Stopped." in sent(server, {"label": "stop"})
    assert server.given == 1
    label = pool.labels.by_pair[first["pair"]]
    assert (label.good, label.drawn) == (False, "informative")


def test_a_page_shows_traffic_as_text_and_ends_when_all_is_labelled(bench: Bench) -> None:
    pool = bench.pool()
    pages = []
    with served(pool) as server:
        page, _ = got(server)
        while fields(page):
            pages.append(page)
            page = sent(server, {**fields(page), "label": "good"})
        assert "nothing left" in page or "Stopped" in page
    whole = "".join(pages)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in whole
    assert not any(mark in whole for mark in ("<script", "\u202e", "\x1b"))
    assert server.given == len(pool.items)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/", {}, "", 404),
        ("GET", "/{token}x/", {}, "", 404),
        ("GET", "/{token}/", {"Host": "evil.example"}, "", 403),
        ("POST", "/{token}/", {"Origin": "http://evil.example"}, "label=stop", 403),
        ("POST", "/guess/", {}, "label=stop", 404),
        ("POST", "/{token}/", {}, "label=great&pair=x&drawn=random", 400),
        ("POST", "/{token}/", {}, "label=good&pair=x&drawn=random", 400),
        ("POST", "/{token}/", {}, "label=good&pair={pair}&drawn=always", 400),
        ("POST", "/{token}/", {}, "x" * 5000, 413),
        ("PUT", "/{token}/", {}, "", 501),
    ],
)
def test_a_page_is_for_one_person_and_takes_only_its_own_forms(
    bench: Bench, method: str, path: str, headers: Json, body: str, status: int
) -> None:
    pool = bench.pool()
    with served(pool) as server:
        token = server.url.rstrip("/").rsplit("/", 1)[-1]
        pair = next(iter(pool.items))
        connection = http.client.HTTPConnection(server.host, timeout=5)
        text = body.format(pair=pair) if body else None
        connection.request(method, path.format(token=token), text, {"Host": server.host, **headers})
        assert connection.getresponse().status == status
        connection.close()
    assert pool.labels.by_pair == {}
    assert server.host.startswith("127.0.0.1:")
