"""Every ask ends as one Completion, whatever the endpoint does, and is paid for once."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Lock

import pytest

from flywheel.errors import ConfigError
from flywheel.inference import SHARD, Answers, Ask, answer_all, read
from flywheel.serving import Endpoint, remote
from flywheel.storage import Storage
from flywheel.testing import Answer, FakeEndpoint, Reply, text_reply, tool_reply, verdict
from flywheel.types import Completion, Json


def asks(n: int) -> list[Ask]:
    return [Ask(f"r{i}", {"messages": [{"role": "user", "content": f"{i}"}]}) for i in range(n)]


def asked_for(body: Json) -> str:
    return str(body["messages"][-1]["content"])


def echo(body: Json) -> Json:
    return text_reply(asked_for(body))


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "completions"))


def ask_one(answer: Answer, folder: Storage, timeout_s: float = 10.0) -> Completion:
    with FakeEndpoint(answer) as fake:
        answers = answer_all(fake.endpoint(), asks(1), folder, 1, timeout_s)
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
        time.sleep(0.02 * (6 - int(asked_for(body))))
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
        Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"}),
        Reply({"error": {"message": "oops"}}, 500, {"Retry-After-Ms": "10"}),
        Reply(b"<html>bad gateway</html>", 502, {"Retry-After-Ms": "10"}),
        Reply(drop=True),
    ],
    ids=["429", "500", "502", "dropped"],
)
def test_passing_trouble_is_retried_until_it_passes(folder: Storage, failure: Reply) -> None:
    assert ask_one(failing_first(2, failure), folder).message == text_reply("0")


def test_retry_after_is_waited_for(folder: Storage) -> None:
    failure = Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
    assert ask_one(failing_first(1, failure), folder).latency_s >= 1


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


def test_one_bad_answer_disturbs_no_other(folder: Storage) -> None:
    def answer(body: Json) -> Json | Reply:
        return Reply(b"{rubbish") if asked_for(body) == "2" else echo(body)

    with FakeEndpoint(answer) as fake:
        answers = answer_all(fake.endpoint(), asks(5), folder, 2, 10.0)
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


def test_a_session_cut_off_keeps_what_it_has(folder: Storage) -> None:
    class CutOffError(Exception):
        pass

    def cut_off(done: int, total: int) -> None:
        if done == SHARD + 5:
            raise CutOffError

    with FakeEndpoint(echo) as fake:
        with pytest.raises(CutOffError):
            answer_all(fake.endpoint(), asks(SHARD + 20), folder, 4, 10.0, cut_off)
        kept = {c.record_id for c in read(folder)}
        again = answer_all(fake.endpoint(), asks(SHARD + 20), folder, 4, 10.0)
    assert len(kept) >= SHARD + 5
    assert again.asked == SHARD + 20 - len(kept)


def test_answers_lie_in_shards_of_a_fixed_size(folder: Storage) -> None:
    with FakeEndpoint(echo) as fake:
        answers = answer_all(fake.endpoint(), asks(2 * SHARD + 1), folder, 8, 10.0)
    assert folder.names() == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    assert [len(list(folder.read_lines(name))) for name in folder.names()] == [SHARD, SHARD, 1]
    assert isinstance(answers, Answers)
    assert 0 < answers.wall_s < 30


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
    from flywheel.config import CandidateConfig

    config = CandidateConfig(model="m", endpoint="https://x/v1/", api_key_env="K")
    assert remote(config) == Endpoint("https://x/v1", "m", "K")


def test_the_fakes_verdict_is_a_judges_answer(folder: Storage) -> None:
    assert ask_one(lambda body: verdict(7), folder).message == text_reply('{"score": 7}')


def test_a_fake_that_raises_says_why(folder: Storage) -> None:
    def broken(body: Json) -> Json:
        raise KeyError("no such answer")

    assert "KeyError: 'no such answer'" in ask_one(broken, folder).error
