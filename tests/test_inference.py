"""Every ask ends as one Completion, whatever the endpoint does, and is paid for once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock

import pytest

from flywheel.config import CandidateConfig, ClientConfig
from flywheel.errors import ConfigError, EngineError
from flywheel.inference import Answers, Ask, answer_all, read
from flywheel.serving import Endpoint, remote
from flywheel.storage import Storage
from flywheel.testing import Answer, FakeEndpoint, Reply, text_reply, tool_reply, verdict
from flywheel.types import Completion, Json

QUICK = ClientConfig(attempts=3, backoff_s=0.01, outage_s=60, cache=False)


def asks(n: int) -> list[Ask]:
    return [Ask(f"r{i}", {"messages": [{"role": "user", "content": f"{i}"}]}) for i in range(n)]


def asked_for(body: Json) -> str:
    return str(body["messages"][-1]["content"])


def echo(body: Json) -> Json:
    return text_reply(asked_for(body))


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "completions"))


def ask_one(
    answer: Answer, folder: Storage, timeout_s: float = 10.0, client: ClientConfig = QUICK
) -> Completion:
    with FakeEndpoint(answer) as fake:
        answers = answer_all(fake.endpoint(client=client), asks(1), folder, 1, timeout_s)
    return answers.completions[0]


def failing_first(times: int, failure: Reply) -> Answer:
    """Answer properly only after some failures."""
    calls, lock = count(), Lock()

    def answer(body: Json) -> Json | Reply:
        with lock:
            return failure if next(calls) < times else echo(body)

    return answer


def test_completions_stand_in_the_order_of_the_asks_though_answers_overtake(
    folder: Storage,
) -> None:
    def later_ones_first(body: Json) -> Json:
        number, patience = int(asked_for(body)), time.monotonic() + 10
        while number < 5 and time.monotonic() < patience:
            if f"r{number + 1}" in {c.record_id for c in read(folder)}:
                break
            time.sleep(0.01)
        return echo(body)

    with FakeEndpoint(later_ones_first) as fake:
        answers = answer_all(fake.endpoint(), asks(6), folder, 6, 10.0)
    assert [c.record_id for c in answers.completions] == [f"r{i}" for i in range(6)]
    assert [(c.message or {})["content"] for c in answers.completions] == list("012345")
    assert [c.record_id for c in read(folder)] == [f"r{i}" for i in range(5, -1, -1)]


def test_a_completion_carries_message_finish_reason_usage_and_latency(folder: Storage) -> None:
    got = ask_one(lambda body: tool_reply("track_order", {"order_id": "A-1"}), folder)
    assert got.message == tool_reply("track_order", {"order_id": "A-1"})
    assert got.finish_reason == "tool_calls"
    assert got.prompt_tokens > 0
    assert got.completion_tokens > 0
    assert 0 < got.latency_s < 10
    assert got.error == ""


def test_a_request_names_the_model_and_sends_the_body_as_it_is(folder: Storage) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}],
        "temperature": 0.0,
        "max_tokens": 7,
    }
    with FakeEndpoint(lambda body: text_reply("x")) as fake:
        answer_all(fake.endpoint("base:adapter"), [Ask("r", body)], folder, 1, 10.0)
    assert fake.requests[0].body == {"model": "base:adapter", **body}
    assert list(fake.requests[0].body["tools"][0]["function"]["parameters"]) == ["z", "a"]


@pytest.mark.parametrize(
    "failure",
    [
        Reply({"error": {"message": "too slow"}}, 408),
        Reply({"error": {"message": "not now"}}, 409),
        Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"}),
        Reply({"error": {"message": "oops"}}, 500, {"Retry-After-Ms": "10"}),
        Reply(b"<html>bad gateway</html>", 502),
        Reply({}, 418, {"x-should-retry": "true"}),
        Reply(drop=True),
        Reply(b'{"choices": [', cut_after=5),
        Reply(b"<html>rubbish</html>"),
        Reply({"error": {"message": "no replica"}}),
    ],
    ids=["408", "409", "429", "500", "502", "told to", "dropped", "cut", "rubbish", "no choices"],
)
def test_passing_trouble_is_retried_until_it_passes(folder: Storage, failure: Reply) -> None:
    assert ask_one(failing_first(2, failure), folder).message == text_reply("0")


def test_what_does_not_pass_is_given_up_after_so_many_attempts(folder: Storage) -> None:
    with FakeEndpoint(lambda body: Reply(b"overloaded", 503)) as fake:
        answers = answer_all(fake.endpoint(client=QUICK), asks(1), folder, 1, 10.0)
    assert len(fake.requests) == QUICK.attempts
    assert answers.completions[0].error == "HTTP 503: overloaded"


def test_what_does_not_pass_is_given_up_after_so_long(folder: Storage) -> None:
    hasty = QUICK.model_copy(update={"retry_for_s": 0.3, "attempts": 1000})
    failure = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.1"})
    got = ask_one(lambda body: failure, folder, client=hasty)
    assert got.error == "HTTP 429: slow down"
    assert 0.1 < got.latency_s < 2


def test_a_request_at_fault_is_not_sent_again(folder: Storage) -> None:
    with FakeEndpoint(lambda body: Reply({"error": {"message": "too long"}}, 400)) as fake:
        answers = answer_all(fake.endpoint(client=QUICK), asks(9), folder, 1, 10.0)
    assert len(fake.requests) == 9
    assert {c.error for c in answers.completions} == {"HTTP 400: too long"}


def test_retry_after_is_waited_for(folder: Storage) -> None:
    failure = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
    assert ask_one(failing_first(1, failure), folder).latency_s >= 1


@pytest.mark.parametrize("after", ["soon", "nan", "-1", "Thu, 01 Jan 1970 00:00:00 GMT", "1e999"])
def test_a_retry_after_that_is_none_is_not_waited_for(folder: Storage, after: str) -> None:
    failure = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": after})
    assert ask_one(failing_first(1, failure), folder).latency_s < 1


def wrong_shape(**changes: object) -> Reply:
    good = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    choice = {"index": 0, "finish_reason": "stop", "message": text_reply("x")}
    return Reply({**good, "choices": [choice], **changes})


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "context too long"}}, 400), "context too long"),
        (Reply({"error": {"message": "who are you"}}, 401), "who are you"),
        (Reply(b"not found", 404, {"Content-Type": "text/plain"}), "404"),
        (Reply(b"", 308, {"Location": "https://elsewhere/v1"}), "moved to https://elsewhere/v1"),
        (Reply(b"x" * (17 << 20)), "more than 16777216 bytes"),
        (Reply({"error": "no worker"}), "no choices: no worker"),
        (Reply(b"{rubbish"), "no chat completion"),
        (Reply(b""), "no chat completion"),
        (Reply(b"[1, 2]"), "no chat completion"),
        (Reply(b"\xff\xfe\x00"), "no chat completion"),
        (Reply(b"[" * 100_000), "no chat completion"),
        (Reply(b"<html>hello</html>", headers={"Content-Type": "text/html"}), "no chat completion"),
        (Reply({}), "no choices"),
        (wrong_shape(choices=[]), "no choices"),
        (wrong_shape(choices="none"), "no chat completion"),
        (wrong_shape(choices=[{"index": 0}]), "no chat completion"),
        (wrong_shape(choices=[{"message": "hello"}]), "no chat completion"),
        (wrong_shape(choices=[{"message": {"content": {"a": 1}}}]), "no chat completion"),
        (wrong_shape(choices=[{"message": {"tool_calls": "x"}}]), "no chat completion"),
        (wrong_shape(choices=[{"message": {"tool_calls": [{}]}}]), "no chat completion"),
        (wrong_shape(usage={"prompt_tokens": "many"}), "no chat completion"),
        (wrong_shape(usage="much"), "no chat completion"),
    ],
    ids=lambda x: str(getattr(x, "body", ""))[:60],
)
def test_an_answer_that_is_none_is_a_completion_with_an_error(
    folder: Storage, reply: Reply, said: str
) -> None:
    got = ask_one(lambda body: reply, folder)
    assert got.message is None
    assert said in got.error
    assert len(got.error) <= 300
    assert "\n" not in got.error
    assert read(folder) == [got]


def test_one_bad_replica_disturbs_no_answer(folder: Storage) -> None:
    """One of two replicas answers rubbish, and at once: balancers like it."""
    calls = count()

    def answer(body: Json) -> Json | Reply:
        if next(calls) % 2:
            return Reply(b"\x00\xffrubbish")
        time.sleep(0.005)
        return echo(body)

    patient = QUICK.model_copy(update={"attempts": 12})
    with FakeEndpoint(answer) as fake:
        answers = answer_all(fake.endpoint(client=patient), asks(40), folder, 8, 10.0)
    assert [(c.message or {})["content"] for c in answers.completions] == [
        f"{i}" for i in range(40)
    ]


def test_one_bad_answer_disturbs_no_other(folder: Storage) -> None:
    def answer(body: Json) -> Json | Reply:
        return Reply(b"{rubbish") if asked_for(body) == "2" else echo(body)

    with FakeEndpoint(answer) as fake:
        answers = answer_all(fake.endpoint(client=QUICK), asks(5), folder, 2, 10.0)
    assert [c.record_id for c in answers.completions if c.error] == ["r2"]


def test_a_call_without_arguments_has_empty_ones(folder: Storage) -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    got = ask_one(lambda body: message, folder)
    assert (got.message or {})["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "refusal": "I cannot help with that"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": []},
    ],
    ids=["refusal", "empty", "no calls"],
)
def test_an_empty_answer_or_a_refusal_is_an_answer(folder: Storage, message: Json) -> None:
    got = ask_one(lambda body: message, folder)
    assert got.error == ""
    assert got.message is not None
    assert not got.message["content"]
    assert got.message.get("refusal") == message.get("refusal")


def test_an_answer_without_usage_counts_no_tokens(folder: Storage) -> None:
    got = ask_one(lambda body: wrong_shape(usage=None), folder)
    assert (got.prompt_tokens, got.completion_tokens, got.error) == (0, 0, "")


def test_a_request_that_times_out_is_sent_again(folder: Storage) -> None:
    calls = count()

    def slow_at_first(body: Json) -> Json:
        time.sleep(0 if next(calls) else 0.5)
        return echo(body)

    got = ask_one(slow_at_first, folder, timeout_s=0.2)
    assert got.message == text_reply("0")
    assert got.latency_s > 0.2


@pytest.mark.parametrize(
    "message", [text_reply("It is on its way."), tool_reply("track_order", {"order_id": "A-1"})]
)
def test_a_streamed_answer_is_the_same_answer(tmp_path: Path, message: Json) -> None:
    streaming = QUICK.model_copy(update={"first_token_timeout_s": 5.0})
    whole = ask_one(lambda body: message, Storage(str(tmp_path / "whole")))
    streamed = ask_one(lambda body: message, Storage(str(tmp_path / "streamed")), client=streaming)
    assert replace(streamed, latency_s=0) == replace(whole, latency_s=0)


def test_an_answer_that_begins_late_is_asked_for_again(folder: Storage) -> None:
    calls, whole = count(), wrong_shape()

    def answer(body: Json) -> Reply:
        assert body["stream"] is True
        return replace(whole, first_byte_after_s=0 if next(calls) else 1.0)

    impatient = QUICK.model_copy(update={"first_token_timeout_s": 0.2})
    got = ask_one(answer, folder, client=impatient)
    assert got.error == ""
    assert 0.2 < got.latency_s < 0.9
    slow = ask_one(
        lambda body: replace(whole, first_byte_after_s=0.5), folder.at("2"), client=impatient
    )
    assert slow.error == "no token within 0.2 s"


@pytest.mark.parametrize(
    "events",
    [
        b'data: {"choices": [{"index": 0, "delta": {"content": "It is"}}]}\n\n',
        b'data: {"error": {"message": "engine died"}}\n\n',
        b"data: {\n\n",
        b"data: [DONE]\n\n",
        b'data: {"object": "chat.completion.chunk", "choices": [1]}\n\n',
        b'data: {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}]}\n\n',
    ],
)
def test_a_stream_without_its_end_is_no_answer(folder: Storage, events: bytes) -> None:
    streaming = QUICK.model_copy(update={"first_token_timeout_s": 5.0})
    reply = Reply(events, headers={"Content-Type": "text/event-stream"})
    assert "no chat completion" in ask_one(lambda body: reply, folder, client=streaming).error


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(folder: Storage, concurrency: int) -> None:
    def slow(body: Json) -> Json:
        time.sleep(0.02)
        return echo(body)

    with FakeEndpoint(slow) as fake:
        answer_all(fake.endpoint(), asks(12), folder, concurrency, 10.0)
    assert fake.busiest == concurrency


def told(progress: list[tuple[int, int]]) -> Callable[[int, int], None]:
    return lambda done, total: progress.append((done, total))


def test_what_is_on_disk_is_not_asked_again(folder: Storage) -> None:
    progress: list[tuple[int, int]] = []
    with FakeEndpoint(echo) as fake:
        first = answer_all(fake.endpoint(), asks(3), folder, 2, 10.0)
        second = answer_all(fake.endpoint(), asks(5), folder, 2, 10.0, told(progress))
        third = answer_all(fake.endpoint(), asks(5), folder, 2, 10.0)
    assert sorted(asked_for(r.body) for r in fake.requests) == list("01234")
    assert (first.asked, second.asked, third.asked) == (3, 2, 0)
    assert second.completions[:3] == first.completions
    assert third.completions == second.completions
    assert progress == [(3, 5), (4, 5), (5, 5)]


def test_what_failed_is_asked_again_by_a_later_session(folder: Storage) -> None:
    with FakeEndpoint(failing_first(2, Reply({"error": {"message": "who are you"}}, 401))) as fake:
        first = answer_all(fake.endpoint(client=QUICK), asks(4), folder, 1, 10.0)
        second = answer_all(fake.endpoint(client=QUICK), asks(4), folder, 1, 10.0)
    assert [bool(c.error) for c in first.completions] == [True, True, False, False]
    assert [c.error for c in second.completions] == [""] * 4
    assert second.asked == 2
    assert sorted(c.record_id for c in read(folder) if not c.error) == ["r0", "r1", "r2", "r3"]


def test_a_session_cut_off_keeps_what_it_has(folder: Storage) -> None:
    class CutOffError(Exception):
        pass

    def cut_off(done: int, total: int) -> None:
        if done == 37:
            raise CutOffError

    with FakeEndpoint(echo) as fake:
        with pytest.raises(CutOffError):
            answer_all(fake.endpoint(), asks(60), folder, 4, 10.0, cut_off)
        kept = {c.record_id for c in read(folder)}
        again = answer_all(fake.endpoint(), asks(60), folder, 4, 10.0)
    assert 37 <= len(kept) <= 41
    assert again.asked == 60 - len(kept)
    assert isinstance(again, Answers)
    assert 0 < again.wall_s < 30


def test_an_answer_is_on_disk_before_its_place_is_taken(folder: Storage) -> None:
    def look(body: Json) -> Json:
        assert len(read(folder)) >= int(asked_for(body)) - 2
        return echo(body)

    with FakeEndpoint(look) as fake:
        answers = answer_all(fake.endpoint(client=QUICK), asks(40), folder, 3, 10.0)
    assert {c.error for c in answers.completions} == {""}


def test_an_endpoint_that_is_down_ends_the_session_and_keeps_what_it_got(folder: Storage) -> None:
    asked = count()

    def dies(body: Json) -> Json | Reply:
        return echo(body) if next(asked) < 20 else Reply(drop=True)

    rules = ClientConfig(outage_s=0.8, backoff_s=0.01, cache=False)
    with FakeEndpoint(dies) as fake:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"127.0.0.1.* has not answered for .*kept"):
            answer_all(fake.endpoint(client=rules), asks(1000), folder, 8, 10.0)
        assert time.monotonic() - began < 5
    assert len(fake.requests) < 20 + 8 + 20, "while it is down it is asked once in a while"
    assert len([c for c in read(folder) if not c.error]) == 20


def test_an_endpoint_that_comes_back_is_asked_on(folder: Storage) -> None:
    began = time.monotonic()

    def away_for_a_while(body: Json) -> Json | Reply:
        away = 0.1 < time.monotonic() - began < 0.9
        return Reply(b"restarting", 503) if away else echo(body)

    rules = ClientConfig(outage_s=8, backoff_s=0.05, cache=False)
    with FakeEndpoint(away_for_a_while) as fake:
        answers = answer_all(fake.endpoint(client=rules), asks(400), folder, 4, 10.0)
    assert {c.error for c in answers.completions} == {""}


def test_nobody_listening_is_an_outage(folder: Storage) -> None:
    with FakeEndpoint(echo) as fake:
        endpoint = fake.endpoint(client=ClientConfig(outage_s=0.4, backoff_s=0.01))
    with pytest.raises(EngineError, match="has not answered"):
        answer_all(endpoint, asks(100), folder, 4, 10.0)
    assert read(folder) == []


def test_an_endpoint_that_wants_too_long_a_rest_is_left_alone(folder: Storage) -> None:
    quota = Reply({"error": {"message": "daily quota"}}, 429, {"Retry-After": "3600"})
    with (
        FakeEndpoint(lambda body: quota) as fake,
        pytest.raises(EngineError, match=r"wants 3600 s of rest .*daily quota"),
    ):
        answer_all(fake.endpoint(client=QUICK), asks(9), folder, 2, 10.0)
    assert len(fake.requests) <= 2


def test_requests_a_minute_are_kept_to(folder: Storage) -> None:
    calm = QUICK.model_copy(update={"requests_per_minute": 1200.0})
    with FakeEndpoint(echo) as fake:
        answer_all(fake.endpoint(client=calm), asks(11), folder, 8, 10.0)
    times = [request.at for request in fake.requests]
    assert max(times) - min(times) >= 10 * 0.05 - 0.03


def test_refusals_bring_the_requests_in_flight_down_to_what_is_borne(folder: Storage) -> None:
    busy, lock = 0, Lock()

    def at_most_four(body: Json) -> Json | Reply:
        nonlocal busy
        with lock:
            if busy >= 4:
                return Reply({"error": {"message": "slow down"}}, 429)
            busy += 1
        time.sleep(0.02)
        with lock:
            busy -= 1
        return echo(body)

    with FakeEndpoint(at_most_four) as fake:
        answers = answer_all(fake.endpoint(client=QUICK), asks(200), folder, 32, 10.0)
    assert {c.error for c in answers.completions} == {""}
    assert len(fake.requests) < 2 * 200, "most requests were borne at once"


def test_azure_is_asked_by_its_query_and_its_header(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "azure-key")
    with FakeEndpoint(echo) as fake:
        base = fake.url.removesuffix("/v1")
        config = CandidateConfig(
            model="gpt",
            endpoint=f"{base}/openai/deployments/gpt?api-version=2024-10-21",
            api_key_env="SHOP_KEY",
            client=ClientConfig(api_key_header="api-key"),
        )
        answer_all(remote(config), asks(1), folder, 1, 10.0)
    (request,) = fake.requests
    assert request.path == "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
    assert request.headers["api-key"] == "azure-key"
    assert "authorization" not in request.headers


SURE = {"temperature": 0.0}


def paid(fake: FakeEndpoint, **client: object) -> Endpoint:
    return fake.endpoint(client=ClientConfig(backoff_s=0.01, **client))


def with_body(n: int, **body: object) -> list[Ask]:
    return [Ask(ask.record_id, {**ask.body, **body}) for ask in asks(n)]


@pytest.mark.parametrize("body", [SURE, {"temperature": 1.0, "seed": 0}])
def test_what_was_paid_for_is_not_paid_for_again(tmp_path: Path, body: Json) -> None:
    one, two, cache = (Storage(str(tmp_path / name)) for name in ("one", "two", "cache"))
    with FakeEndpoint(echo) as fake:
        first = answer_all(paid(fake), with_body(5, **body), one, 2, 10.0, cache=cache)
        second = answer_all(paid(fake), with_body(7, **body), two, 2, 10.0, cache=cache)
    assert (first.asked, second.asked) == (5, 2)
    assert len(fake.requests) == 7
    assert second.completions[:5] == first.completions
    assert sorted(c.record_id for c in read(two)) == [f"r{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("body", "client"),
    [({"temperature": 0.7}, {}), ({}, {}), (SURE, {"cache": False})],
    ids=["a draw", "a draw by default", "not wanted"],
)
def test_draws_are_drawn_anew(tmp_path: Path, body: Json, client: Json) -> None:
    one, two, cache = (Storage(str(tmp_path / name)) for name in ("one", "two", "cache"))
    with FakeEndpoint(echo) as fake:
        for folder in (one, two):
            answer_all(paid(fake, **client), with_body(3, **body), folder, 2, 10.0, cache=cache)
    assert len(fake.requests) == 6
    assert cache.names() == []


def test_another_place_model_or_request_is_another_answer(tmp_path: Path) -> None:
    cache = Storage(str(tmp_path / "cache"))
    with FakeEndpoint(echo) as fake, FakeEndpoint(echo) as other:
        endpoints = [paid(fake), paid(other), replace(paid(fake), model="m2"), paid(fake)]
        bodies = [SURE, SURE, SURE, {**SURE, "max_tokens": 5}]
        for n, (endpoint, body) in enumerate(zip(endpoints, bodies, strict=True)):
            folder = Storage(str(tmp_path / f"{n}"))
            assert answer_all(endpoint, with_body(1, **body), folder, 1, 9.0, cache=cache).asked


def test_failures_are_not_kept_for_other_runs_and_rubbish_in_the_cache_is_none(
    tmp_path: Path,
) -> None:
    one, two, three, cache = (Storage(str(tmp_path / name)) for name in ("1", "2", "3", "cache"))
    with FakeEndpoint(failing_first(1, Reply(b"no", 400))) as fake:
        assert answer_all(paid(fake), with_body(1, **SURE), one, 1, 9.0, cache=cache).asked == 1
        assert answer_all(paid(fake), with_body(1, **SURE), two, 1, 9.0, cache=cache).asked == 1
        (kept,) = (tmp_path / "cache").rglob("*.json")
        kept.write_bytes(b'{"message": ')
        third = answer_all(paid(fake), with_body(1, **SURE), three, 1, 9.0, cache=cache)
    assert (third.asked, third.completions[0].message) == (1, text_reply("0"))


def test_hundreds_are_in_flight_at_a_time(folder: Storage) -> None:
    def slow(body: Json) -> Json:
        time.sleep(0.5)
        return echo(body)

    with FakeEndpoint(slow) as fake:
        answers = answer_all(fake.endpoint(), asks(600), folder, 300, 30.0)
    assert fake.busiest > 200
    assert {c.error for c in answers.completions} == {""}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_key_goes_out_as_bearer_and_stays_in_no_file(
    tmp_path: Path, folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-secret-1")

    def telltale(body: Json) -> Json | Reply:
        if asked_for(body) == "0":
            message = "Incorrect API key provided: sk-secret-1"
            return Reply({"error": {"message": message}}, 401)
        return echo(body)

    with FakeEndpoint(telltale) as fake:
        answers = answer_all(fake.endpoint("m", "SHOP_KEY"), asks(2), folder, 1, 10.0)
    assert "sk-secret-1" not in repr(fake.endpoint("m", "SHOP_KEY"))
    assert {r.headers["authorization"] for r in fake.requests} == {"Bearer sk-secret-1"}
    assert "Incorrect API key" in answers.completions[0].error
    assert files(tmp_path)
    assert not any(b"sk-secret-1" in content for content in files(tmp_path).values())


def test_a_missing_key_is_told_before_anything_is_asked(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with FakeEndpoint(echo) as fake:
        with pytest.raises(ConfigError, match="SHOP_KEY"):
            answer_all(fake.endpoint("m", "SHOP_KEY"), asks(1), folder, 1, 10.0)
        assert fake.requests == []


def test_settings_of_openais_own_client_do_not_leak_in(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with FakeEndpoint(echo) as fake:
        answers = answer_all(fake.endpoint(), asks(1), folder, 1, 10.0)
    assert answers.completions[0].message == text_reply("0")
    assert "of-somebody" not in str(fake.requests[0].headers)


def test_a_remote_models_endpoint_is_its_url_without_closing_slash() -> None:
    config = CandidateConfig(model="m", endpoint="https://x/v1/", api_key_env="K")
    assert remote(config) == Endpoint("https://x/v1", "m", "K")


def test_the_fakes_verdict_is_a_judges_answer(folder: Storage) -> None:
    assert ask_one(lambda body: verdict(7), folder).message == text_reply('{"score": 7}')


def test_a_fake_that_raises_says_why(folder: Storage) -> None:
    def broken(body: Json) -> Json:
        raise KeyError("no such answer")

    assert "KeyError: 'no such answer'" in ask_one(broken, folder).error
