"""The contract with `ray.serve.llm` and vLLM: private names, templates, adapters, verdicts.

One engine of a tiny model serves them all. Two adapters have learned one answer each by heart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel import inference
from flywheel.config import JudgeConfig, LoraConfig, ModelConfig
from flywheel.inference import Ask
from flywheel.judging import Judge, Pair
from flywheel.methods import base, icl, lora
from flywheel.rendering import Renderer
from flywheel.serving import Endpoint, engine
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.testing import TRACK_ORDER, sample_record, text_reply, tiny_model, tool_reply
from flywheel.types import Completion, Json, Record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CALL = sample_record("Where is A-1?", tool_reply("track_order", {"order_id": "A-1"}))
TEXT = sample_record("Where is A-1?", text_reply("It is on its way."), tools=[TRACK_ORDER])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own template has no place for tools."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trials(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A folder of trials with the adapters ``call`` and ``text``."""
    folder = tmp_path_factory.mktemp("trials")
    parameters = LoraConfig(rank=16, learning_rate=1e-2, epochs=120, batch_records=1).model_dump()
    for key, record in (("call", CALL), ("text", TEXT)):
        lora.train(
            model,
            [record],
            [],
            {**parameters, "base_model": "tiny"},
            seed=0,
            adapter_folder=folder / key / "adapter",
            threads=1,
        )
    return Storage(str(folder))


@pytest.fixture(scope="module")
def served(model: Path, trials: Storage, ray_session: None) -> Iterator[EngineSpec]:
    config = ModelConfig(model=str(model), engine={"max_model_len": 2048})
    spec = EngineSpec("tiny", config, cpus=1.5, gpus=0, adapters_url=trials.url)
    try:
        with engine.serve(spec, local=True) as running:
            yield running
    finally:
        engine.stop_if_idle()


def answers(endpoint: Endpoint, records: list[Record], folder: Path) -> list[Completion]:
    asks = [Ask(f"{i}", {**base.request(r), "temperature": 0.0, "max_tokens": 64})
            for i, r in enumerate(records)]  # fmt: skip
    return inference.answer_all(endpoint, asks, Storage(str(folder)), 8, 60.0).completions


def test_the_base_model_answers_many_at_once(served: EngineSpec, tmp_path: Path) -> None:
    got = answers(served.endpoint(), [CALL] * 8, tmp_path)
    assert [completion.error for completion in got] == [""] * 8
    assert all(completion.completion_tokens for completion in got)
    assert all(completion.message not in (CALL.answer, TEXT.answer) for completion in got)


@pytest.mark.parametrize(("key", "record"), [("call", CALL), ("text", TEXT)])
def test_each_adapter_says_what_it_has_learned(
    served: EngineSpec, tmp_path: Path, key: str, record: Record
) -> None:
    (got,) = answers(served.endpoint(key), [record], tmp_path)
    assert got.error == ""
    assert got.message is not None
    assert [call["function"] for call in got.message.get("tool_calls", [])] == [
        call["function"] for call in record.answer.get("tool_calls", [])
    ]
    assert (got.message["content"] or "").strip() == (record.answer["content"] or "")
    assert got.finish_reason == ("tool_calls" if key == "call" else "stop")


def test_a_missing_adapter_is_an_error_and_the_engine_goes_on(
    served: EngineSpec, tmp_path: Path
) -> None:
    import openai

    endpoint = served.endpoint("nowhere")
    started = time.monotonic()
    with (
        openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0, timeout=60) as client,
        pytest.raises(openai.APIStatusError),
    ):
        client.chat.completions.create(model=endpoint.model, messages=[], max_tokens=1)
    assert time.monotonic() - started < 30
    (got,) = answers(served.endpoint(), [CALL], tmp_path)
    assert got.error == ""


PARTS = [{"type": "text", "text": "Sind Sie "}, {"type": "text", "text": "sicher? 😀"}]
HISTORY = [
    *CALL.messages,
    CALL.answer,
    {"role": "tool", "tool_call_id": "call_0", "content": "on its way"},
    {"role": "user", "content": PARTS},
]
CONVERSATIONS: dict[str, Json] = {
    "tools": base.request(CALL),
    "no tools": base.request(sample_record("Hello?", text_reply("Hi."))),
    "no system message": base.request(sample_record(system="")),
    "history of calls, content in parts": {"messages": HISTORY, "tools": [TRACK_ORDER]},
    "examples as turns": icl.request(CALL, [CALL, TEXT], "turns"),
    "examples as text": icl.request(CALL, [CALL, TEXT], "system"),
}


def served_prompt(endpoint: Endpoint, body: Json) -> list[int]:
    """Ask for one token and for the ids of the prompt that the engine saw."""
    import openai

    extra: Any = {"return_token_ids": True}
    with openai.OpenAI(base_url=endpoint.url, api_key="x", timeout=60) as client:
        reply = client.chat.completions.create(
            model=endpoint.model, **body, max_tokens=1, extra_body=extra
        )
    ids: list[int] = reply.model_dump()["prompt_token_ids"]
    return ids


@pytest.mark.parametrize("body", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_serving_sees_the_tokens_that_training_renders(
    served: EngineSpec, model: Path, body: Json
) -> None:
    rendered = Renderer.load(model).prompt_ids(body["messages"], body.get("tools", []))
    assert served_prompt(served.endpoint(), body) == rendered
    assert served_prompt(served.endpoint("call"), body) == rendered


def test_a_judges_verdicts_all_parse_even_from_a_model_that_knows_nothing(
    served: EngineSpec, tmp_path: Path
) -> None:
    judge = Judge(JudgeConfig(model="tiny"), served.endpoint(), Storage(str(tmp_path)))
    rated = judge.rate([Pair("q", f"answer {i}", f"other {i * i}") for i in range(12)])
    assert [reason for _, reason in rated] == [""] * 12
