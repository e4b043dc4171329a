"""What a load test sends, when, and what its times say; against an endpoint of known times."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from threading import Semaphore

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import latency, loadtest, planning
from flywheel.config import ClientConfig, LatencyConfig, SloConfig, validate
from flywheel.errors import ConfigError, EngineError
from flywheel.folders import Desk
from flywheel.inference import Ask
from flywheel.inference.load import Stopwatch, send
from flywheel.latency import LONGEST_S, Timing, arrivals, level, load_test, loads
from flywheel.storage import Storage
from flywheel.testing import (
    FakeEndpoint,
    Reply,
    paced_reply,
    sample_record,
    text_reply,
    tool_reply,
)
from flywheel.types import Json, LoadTest, Trial

ONCE = ClientConfig(cache=False, outage_s=60)
LATE_S = 0.15
"""By so much a busy machine may be late."""


def asks(n: int) -> list[Ask]:
    return [Ask(f"r{i}", {"messages": [{"role": "user", "content": f"{i}"}]}) for i in range(n)]


def test_times_are_those_of_the_service() -> None:
    with FakeEndpoint(lambda body: paced_reply(["a", "b", "c", "d"], 0.1, 0.02)) as fake:
        found = send(fake.endpoint(client=ONCE), asks(12), 5, concurrency=4)
    one = level("concurrency-4", found, SloConfig())
    assert (one.requests, one.failed) == (12, 0)
    assert one.first_token_s
    assert one.inter_token_s
    assert one.per_output_token_s
    assert one.total_s
    assert 0.1 <= one.first_token_s.p50 < 0.1 + LATE_S  # the role came at once, and is no token
    assert 0.015 <= one.inter_token_s.p50 < 0.02 + LATE_S
    assert 0.019 <= one.per_output_token_s.p50 < 0.02 + LATE_S
    assert 0.16 <= one.total_s.p50 <= one.total_s.p95 <= one.total_s.p99 < 0.16 + 3 * LATE_S
    assert fake.requests[0].body["stream"] is True


def test_a_slow_tail_is_in_the_upper_percentiles_alone() -> None:
    def answer(body: Json) -> Reply:
        slow = body["messages"][0]["content"] in ("0", "1")
        return paced_reply(["a"], 0.6 if slow else 0.05)

    with FakeEndpoint(answer) as fake:
        found = send(fake.endpoint(client=ONCE), asks(20), 5, concurrency=5)
    one = level("x", found, SloConfig(total_s=0.5))
    assert one.total_s is not None
    assert one.total_s.p50 < 0.05 + LATE_S
    assert one.total_s.p95 >= 0.6
    assert one.within_slo == 0.9


def test_throughput_is_what_the_service_bears_not_what_was_sent() -> None:
    places = Semaphore(2)

    def answer(body: Json) -> Json:
        with places:
            time.sleep(0.05)
        return text_reply("Yes.")

    with FakeEndpoint(answer) as fake:
        found = send(fake.endpoint(client=ONCE), asks(24), 5, concurrency=8)
    one = level("x", found, SloConfig())
    assert fake.busiest == 8
    assert 10 < one.requests_per_second <= 40  # two at a time, 50 ms each


def test_a_replay_sends_when_requests_are_due_and_counts_their_waiting() -> None:
    places = Semaphore(1)

    def answer(body: Json) -> Json:
        with places:
            time.sleep(0.3)
        return text_reply("Yes.")

    due_s = [0.0, 0.0, 0.0, 1.2]
    with FakeEndpoint(answer) as fake:
        found = send(fake.endpoint(client=ONCE), asks(4), 5, concurrency=1, due_s=due_s)
        came = [request.at - fake.requests[0].at for request in fake.requests]
    assert [round(timing.sent_s, 3) for timing in found] == due_s
    assert came == pytest.approx(due_s, abs=LATE_S)
    took = sorted(timing.total_s for timing in found[:3])
    assert took == pytest.approx([0.3, 0.6, 0.9], abs=LATE_S)
    assert found[3].total_s == pytest.approx(0.3, abs=LATE_S)


def test_warming_up_is_not_timed() -> None:
    with FakeEndpoint(lambda body: text_reply("Yes.")) as fake:
        found = send(fake.endpoint(client=ONCE), asks(3), 5, concurrency=2, warmup=asks(9)[4:])
    assert [t.record_id for t in sorted(found, key=lambda t: t.record_id)] == ["r0", "r1", "r2"]
    assert len(fake.requests) == 8


def test_a_failed_request_is_not_tried_again_and_not_within_the_slo() -> None:
    def answer(body: Json) -> Json | Reply:
        return Reply(status=500) if body["messages"][0]["content"] == "1" else text_reply("Yes.")

    with FakeEndpoint(answer) as fake:
        found = send(fake.endpoint(client=ONCE), asks(4), 5, concurrency=1)
    one = level("x", found, SloConfig())
    assert (one.requests, one.failed, one.within_slo, len(fake.requests)) == (4, 1, 0.75, 4)


def test_an_endpoint_that_is_down_ends_the_load_test() -> None:
    with (
        FakeEndpoint(lambda body: Reply(drop=True)) as fake,
        pytest.raises(EngineError, match="has not answered"),
    ):
        send(fake.endpoint(client=ClientConfig(outage_s=0.4)), asks(20), 5, concurrency=4)


def test_an_answer_that_is_not_streamed_has_its_first_token_at_its_end() -> None:
    with FakeEndpoint(lambda body: Reply(_whole())) as fake:
        (one,) = send(fake.endpoint(client=ONCE), asks(1), 5, concurrency=1)
    assert one.first_token_s == one.total_s
    assert one.per_output_token_s is None


def _whole() -> Json:
    return {"choices": [{"message": text_reply("Yes."), "finish_reason": "stop"}]}


@settings(deadline=None)
@given(st.lists(st.integers(1, 40)))
def test_pieces_are_counted_alike_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reply = paced_reply(["one", "two", "three"])
    assert isinstance(reply.body, bytes)
    data = reply.body + b"".join(part for _, part in reply.more)
    watch, at = Stopwatch(), 0
    for cut in [*cuts, len(data)]:
        watch(data[at : at + cut])
        at += cut
    assert len(watch.times) == 3


@pytest.mark.parametrize(
    "line", [b"data: 1", b"data: {}", b'data: {"choices": 3}', b'data: {"choices": [[]]}', b"no"]
)
def test_rubbish_in_a_stream_is_no_piece_of_an_answer(line: bytes) -> None:
    watch = Stopwatch()
    watch(line + b"\n")
    assert watch.times == []


# -- arrivals ----------------------------------------------------------------------------------


def test_the_busiest_stretch_of_the_log_is_replayed_at_its_own_pace() -> None:
    log = [1000.0, 1100.0, 1200.0, 1201.0, 1203.0, 1300.0]
    assert arrivals(log, 3, 1.0) == [0.0, 1.0, 3.0]
    assert arrivals(log, 3, 2.0) == [0.0, 0.5, 1.5]


def test_what_is_due_after_ten_minutes_is_not_sent() -> None:
    assert arrivals([0.0, 500.0, 1000.0], 3, 1.0) == [0.0, 500.0]
    assert arrivals([0.0, 500.0, 1000.0], 3, 2.0) == [0.0, 250.0, 500.0]


@settings(deadline=None)
@given(
    st.lists(st.floats(1e9, 2e9), min_size=1, max_size=50),
    st.integers(1, 60),
    st.floats(0.01, 1e6),
)
def test_arrivals_come_in_order_from_zero_on(log: list[float], n: int, pace: float) -> None:
    due = arrivals(log, n, pace)
    assert due == sorted(due)
    assert (due[0], due[-1] <= LONGEST_S, 1 <= len(due) <= min(n, len(log))) == (0.0, True, True)


# -- levels ------------------------------------------------------------------------------------


def timing(i: int, total_s: float = 1.0, **fields: object) -> Timing:
    return Timing(f"r{i}", float(i), total_s, **fields)  # type: ignore[arg-type]


def test_each_limit_of_the_slo_counts() -> None:
    one = timing(0, 2.0, first_token_s=0.5, gaps_s=[0.5, 1.0], completion_tokens=3)
    for limits, kept in [
        ({}, True),
        ({"first_token_s": 0.5, "per_output_token_s": 0.75, "total_s": 2.0}, True),
        ({"first_token_s": 0.4}, False),
        ({"per_output_token_s": 0.7}, False),
        ({"total_s": 1.9}, False),
    ]:
        assert latency.within(one, SloConfig(**limits)) is kept


def test_several_tokens_in_one_piece_share_its_time() -> None:
    one = timing(0, gaps_s=[0.3, 0.3], completion_tokens=7)
    assert one.per_output_token_s == pytest.approx(0.1)


def test_the_load_at_the_slo_is_the_borne_one_of_the_highest_throughput() -> None:
    slo = SloConfig(total_s=1.0, share=0.9)
    fast = level("concurrency-1", [Timing("a", float(i), 0.5) for i in range(10)], slo)
    busy = level("concurrency-8", [Timing("a", i / 10, 0.9) for i in range(10)], slo)
    over = level("concurrency-32", [Timing("a", i / 20, 1.1) for i in range(10)], slo)
    found = load_test([fast, busy, over], slo)
    assert found.at_slo == "concurrency-8"
    assert found.borne is busy
    assert load_test([over], slo).borne is None
    assert LoadTest.from_json(asdict(found)) == found


@settings(deadline=None)
@given(
    st.lists(st.floats(0.001, 100), min_size=1, max_size=30), st.floats(0.01, 50), st.floats(0, 50)
)
def test_a_wider_limit_never_leaves_out_more(
    seconds: list[float], limit: float, more: float
) -> None:
    timings = [timing(i, total_s) for i, total_s in enumerate(seconds)]
    tight, wide = (
        level("x", timings, SloConfig(total_s=limit + extra)).within_slo for extra in (0, more)
    )
    assert tight <= wide


# -- a trial -----------------------------------------------------------------------------------


def a_trial(tmp_path: Path, url: str | None, **changes: Json) -> tuple[Trial, Desk]:
    records = [sample_record(f"Where is order A-{i}?", timestamp=1e9 + i / 10) for i in range(20)]
    records.sort(key=lambda record: record.id)
    storage = Storage(str(tmp_path))
    for split, part in (("eval", records[:12]), ("val", records[12:15]), ("train", records[15:])):
        rows = pa.Table.from_pylist([record.to_row() for record in part])
        storage.at("datasets", "f").write_table(f"{split}/00000.parquet", rows)
    candidate: Json = {"model": "m", **({"endpoint": url} if url else {})}
    experiment = validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "candidates": [candidate],
            "methods": {"base": {}},
            "judge": None,
            **changes,
        },
        "t.yaml",
    )
    (trial,) = planning.plan(experiment, "f")
    return trial, Desk(storage, "run")


def silent(done: int, total: int, val_loss: float | None = None, /) -> None:
    """Nobody watches."""


CONFIG = LatencyConfig(requests=8, warmup=2, concurrency=(1, 4), replay=(10,))


def test_every_load_sends_the_same_sample_and_leaves_its_times(tmp_path: Path) -> None:
    with FakeEndpoint(lambda body: paced_reply(["a", "b"], 0.01, 0.01)) as fake:
        trial, desk = a_trial(tmp_path, fake.url)
        loadtest.measure(trial, desk, fake.endpoint(client=ONCE), CONFIG, silent)
    folder = desk.folder(trial)
    found = loadtest.timings(folder)
    assert list(found) == [one.name for one in loads(CONFIG)]
    assert {tuple(sorted(t.record_id for t in of)) for of in found.values()} == {
        tuple(sorted(t.record_id for t in found["concurrency-1"]))
    }
    assert len(fake.requests) == 3 * (8 + 2)
    told = loadtest.read(folder, CONFIG, SloConfig())
    assert told is not None
    assert [one.requests for one in told.levels] == [8, 8, 8]
    assert "cache_salt" not in fake.requests[0].body


def test_a_load_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    with FakeEndpoint(lambda body: text_reply("Yes.")) as fake:
        trial, desk = a_trial(tmp_path, fake.url)
        endpoint, folder = fake.endpoint(client=ONCE), desk.folder(trial)
        loadtest.measure(trial, desk, endpoint, CONFIG, silent)
        before = folder.at("latency").read_bytes("concurrency-1.jsonl")
        folder.remove(loadtest.MARKER)  # as if a kill had come before it,
        folder.at("latency").remove("concurrency-4.jsonl")  # while this load was measured
        asked = len(fake.requests)
        loadtest.measure(trial, desk, endpoint, CONFIG, silent)
        loadtest.measure(trial, desk, endpoint, CONFIG, silent)
    assert len(fake.requests) - asked == 10
    assert folder.at("latency").read_bytes("concurrency-1.jsonl") == before


def test_another_slo_needs_no_other_measurement_and_other_loads_do(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json("rule.json", loadtest.rule(CONFIG))
    strict = CONFIG.model_copy(update={"slo": SloConfig(total_s=0.001)})
    more = CONFIG.model_copy(update={"concurrency": (1, 8)})
    assert loadtest.rule(strict) == storage.read_json("rule.json") != loadtest.rule(more)


def test_an_engine_of_ours_answers_no_load_from_the_cache_of_another(tmp_path: Path) -> None:
    with FakeEndpoint(lambda body: text_reply("Yes.")) as fake:
        trial, desk = a_trial(tmp_path, None)
        loadtest.measure(trial, desk, fake.endpoint(client=ONCE), CONFIG, silent)
    salts = [request.body["cache_salt"] for request in fake.requests]
    assert len(set(salts)) == 3


@pytest.mark.parametrize(
    ("latency", "said"),
    [
        ({"concurrency": [], "replay": []}, "name a load"),
        ({"concurrency": [64], "requests": 32}, "never reach a concurrency of 64"),
        ({"slo": {"share": 1.5}}, "latency.slo.share"),
    ],
)
def test_a_load_test_that_cannot_be_is_refused(tmp_path: Path, latency: Json, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        a_trial(tmp_path, None, latency=latency)


def test_tool_calls_are_part_of_an_answer() -> None:
    reply = tool_reply("track_order", {"order_id": "A-1"})
    with FakeEndpoint(lambda body: reply) as fake:
        (one,) = send(fake.endpoint(client=ONCE), asks(1), 5, concurrency=1)
    assert one.first_token_s is not None
    assert one.first_token_s <= one.total_s
    assert one.error == ""
