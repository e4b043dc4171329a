"""The contract with `ray.serve.llm` and vLLM: private names, templates, adapters, verdicts.

One engine of a tiny model serves them all. Two adapters have learned one answer each by heart.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel import inference, latency, scoring
from flywheel.config import JudgeConfig, LoraConfig, ModelConfig, ParityConfig, SloConfig
from flywheel.errors import ConfigError, EngineError
from flywheel.inference import Ask
from flywheel.inference.load import send
from flywheel.judging import Judge, Pair
from flywheel.latency import Timing
from flywheel.methods import base, icl, lora
from flywheel.methods.reference import Base
from flywheel.parity import Generation, Parity, compare
from flywheel.rendering import Renderer
from flywheel.serving import Endpoint, engine, options, probe, tool_parsers
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.testing import TRACK_ORDER, sample_record, text_reply, tiny_model, tool_reply
from flywheel.types import Completion, Json, Record, ScoreStatus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CALL = sample_record("Where is A-1?", tool_reply("track_order", {"order_id": "A-1"}))
TEXT = sample_record("Where is A-1?", text_reply("It is on its way."), tools=[TRACK_ORDER])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own template has no place for tools."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trials(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A folder of trials with the adapters ``call`` and ``text``, and two made of ``call``."""
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
    for copy in ("fresh", "weaker"):
        shutil.copytree(folder / "call", folder / copy)
    config = folder / "weaker" / "adapter" / "adapter_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "lora_alpha": told["lora_alpha"] / 2}))
    return Storage(str(folder))


@pytest.fixture(scope="module")
def served(model: Path, trials: Storage, ray_session: None) -> Iterator[EngineSpec]:
    config = ModelConfig(
        model=str(model), engine={"max_model_len": 2048}, min_replicas=1, max_replicas=2
    )
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


@pytest.mark.usefixtures("served")
def test_nothing_was_started_on_the_way_that_imports_vllm_for_nothing() -> None:
    import ray

    actors = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    assert [name for name in actors if "telemetry" in name] == []
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path.read_text() for path in session.glob("logs/worker-*.err")]
    (replica,) = [log for log in logs if ":actor_name:ServeReplica:tiny:AdapterServer:tiny" in log]
    assert "Started vLLM engine" in replica
    assert "download model files" not in replica


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


def test_a_load_test_hears_every_token_and_shares_no_prompts_with_other_loads(
    served: EngineSpec,
) -> None:
    def timings(salt: str) -> list[Timing]:
        body = {**base.request(TEXT), "temperature": 0.0, "max_tokens": 24, "cache_salt": salt}
        ask = Ask("r", body)
        return send(served.endpoint("text"), [ask] * 4, 60.0, concurrency=2, warmup=[ask])

    found = timings("one")
    assert [timing.error for timing in found] == [""] * 4
    for timing in found:
        assert timing.first_token_s is not None
        assert 0 < timing.first_token_s < timing.total_s
        assert 1 < len(timing.gaps_s) + 1 <= timing.completion_tokens
        assert timing.first_token_s + sum(timing.gaps_s) <= timing.total_s
    one = latency.level("concurrency-2", found, SloConfig(total_s=60))
    assert one.within_slo == 1.0
    assert one.output_tokens_per_second > 0


@pytest.mark.parametrize(("key", "record"), [("call", CALL), ("text", TEXT)])
def test_log_probabilities_are_told_if_asked_for_even_of_calls(
    served: EngineSpec, tmp_path: Path, key: str, record: Record
) -> None:
    body = {**base.request(record), "temperature": 0.0, "max_tokens": 64, "logprobs": True}
    streaming = served.endpoint(key).streaming(60.0)
    told = []
    for name, endpoint in (("whole", served.endpoint(key)), ("streamed", streaming)):
        folder = Storage(str(tmp_path / name))
        (got,) = inference.answer_all(endpoint, [Ask("r", body)], folder, 1, 60.0).completions
        assert got.error == ""
        assert got.mean_logprob is not None
        told.append(got.mean_logprob)
    assert told[0] < 0
    assert told[1] == pytest.approx(told[0], abs=0.05)


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


def test_many_requests_at_once_for_an_adapter_not_loaded_yet_are_all_answered(
    served: EngineSpec,
) -> None:
    import openai

    endpoint = served.endpoint("fresh")

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=endpoint.url, api_key="x", max_retries=0, timeout=60
        ) as client:
            body: Json = {**base.request(CALL), "model": endpoint.model, "max_tokens": 1}
            asks = (client.chat.completions.create(**body) for _ in range(16))
            return await asyncio.gather(*asks, return_exceptions=True)

    assert [got for got in asyncio.run(ask_all()) if isinstance(got, Exception)] == []


LIMITS = ParityConfig(tokens=24)


def outside(model: Path, trials: Storage, adapter: str, dtype: str | None = None) -> Any:
    """What an adapter, or the base, says without vLLM."""
    folder = Path(trials.url) / adapter / "adapter" if adapter else None
    records = [CALL, TEXT]
    return Base(model, dtype, threads=1).generate(folder, records, LIMITS, 2048)


def parity(model: Path, trained: list[Generation], endpoint: Endpoint) -> Parity:
    got = probe.generate(endpoint, [CALL, TEXT], LIMITS.tokens, 60.0)
    return compare(trained, got, LIMITS, Renderer.load(model).tokenizer.decode)


@pytest.mark.parametrize("adapter", ["", "call", "text"])
def test_a_served_model_does_what_it_did_outside_the_engine(
    served: EngineSpec, model: Path, trials: Storage, adapter: str
) -> None:
    found = parity(model, outside(model, trials, adapter), served.endpoint(adapter))
    assert (found.passed, found.first_difference) == (True, "")
    assert found.answer_tokens > 2
    if adapter:
        assert found.same_answers == 2


@pytest.mark.parametrize("instead", ["", "text", "weaker"])
def test_another_adapter_than_the_trained_one_is_noticed(
    served: EngineSpec, model: Path, trials: Storage, instead: str
) -> None:
    found = parity(model, outside(model, trials, "call"), served.endpoint(instead))
    assert not found.passed
    assert found.first_difference.startswith(f"record {CALL.id}: answer token "), found


def test_another_template_than_in_training_is_noticed(
    served: EngineSpec, model: Path, trials: Storage, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>{{", "<|im_start|> {{"))
    found = parity(model, outside(tmp_path / "other", trials, "call"), served.endpoint("call"))
    assert not found.passed
    assert found.first_difference.startswith(f"record {CALL.id}: prompts differ from token 2 on")


def test_a_record_longer_than_the_models_context_is_unscored_not_failed(
    served: EngineSpec, tmp_path: Path
) -> None:
    long = sample_record("Where is A-1? " * 2000, tool_reply("track_order", {"order_id": "A-1"}))
    (got,) = answers(served.endpoint("call"), [long], tmp_path)
    assert got.message is None
    scores = scoring.score(long, got)
    assert {(s.status, s.reason, s.value) for s in scores} == {
        (ScoreStatus.UNSCORED, "context_length", None)
    }


def test_a_probe_of_what_is_not_served_is_an_engine_error(served: EngineSpec) -> None:
    with pytest.raises(EngineError, match="asking tiny:nowhere for token ids"):
        probe.generate(served.endpoint("nowhere"), [CALL], 4, 60.0)


def test_every_tool_parser_that_can_be_told_is_one_of_vllms() -> None:
    from vllm.tool_parsers import ToolParserManager

    known = set(ToolParserManager.list_registered())
    assert {parser for _, parser in tool_parsers.MARKS} - known == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_modle_len": 512}, "max_modle_len: vLLM has no such engine argument; did you mean "
         "max_model_len?"),
        ({"max_model_len": "4096 tokens"}, "max_model_len: Input should be a valid integer"),
        ({"dtype": "bf17"}, "dtype: Input should be 'auto', 'half', 'float16', 'bfloat16'"),
        ({"compilation_config": {"moode": 3}}, "compilation_config: moode: Unexpected keyword"),
        ({"served_model_name": "x"}, "served_model_name: is not for the experiment file"),
    ],
)  # fmt: skip
def test_wrong_engine_arguments_are_told_before_anything_starts(arguments: Json, said: str) -> None:
    (problem,) = options.problems({"judge.engine": arguments})
    assert problem.startswith(f"judge.engine.{said}")


def test_engine_arguments_that_vllm_takes_pass_and_others_are_named_by_their_field() -> None:
    good = {"max_model_len": 4096, "quantization": None, "speculative_config": {"method": "ngram"}}
    options.check({"candidates.0.engine": good, "judge.engine": {}})
    with pytest.raises(ConfigError, match=r"candidates\.1\.engine\.dtyp: .* did you mean dtype"):
        options.check({"candidates.0.engine": good, "candidates.1.engine": {"dtyp": "half"}})


def test_a_judges_verdicts_all_parse_even_from_a_model_that_knows_nothing(
    served: EngineSpec, tmp_path: Path
) -> None:
    judge = Judge(JudgeConfig(model="tiny"), Storage(str(tmp_path)))
    pairs = [Pair("q", f"answer {i}", f"other {i * i}") for i in range(12)]
    rated = judge.rate(served.endpoint(), pairs)
    assert [verdict.reason for verdict in rated] == [""] * 12
    assert all(verdict.plain is not None for verdict in rated)
