"""What a model says outside the engine, and what is asked of an engine, token by token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flywheel.config import ParityConfig
from flywheel.errors import EngineError, TrainingError
from flywheel.methods.reference import Base
from flywheel.parity import LIKELIEST, Generation
from flywheel.rendering import Renderer
from flywheel.serving import probe
from flywheel.testing import FakeEndpoint, sample_record, text_reply, tiny_model
from flywheel.types import Record

RECORDS = [sample_record(text) for text in ("Hi?", "Where is order A-1? " * 3, "Send it back.")]
LIMITS = ParityConfig(records=3, tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def generate(
    model: Path,
    records: list[Record],
    limits: ParityConfig = LIMITS,
    context: float = 4096,
    adapter: Path | None = None,
) -> list[Generation]:
    return Base(model, "float", threads=1).generate(adapter, records, limits, context)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32),
        LoraConfig(
            r=4,
            init_lora_weights=False,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(str(folder))
    return folder


def test_answers_do_not_depend_on_what_else_is_in_the_batch(model: Path) -> None:
    together = generate(model, RECORDS)
    for record, got in zip(RECORDS, together, strict=True):
        (alone,) = generate(model, [record])
        assert (got.record_id, got.prompt, got.answer) == (record.id, alone.prompt, alone.answer)
        for mine, other in zip(got.likeliest, alone.likeliest, strict=True):
            assert mine == pytest.approx(other, abs=2e-4)


def test_log_probabilities_are_those_of_a_plain_forward_pass(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    (got,) = generate(model, RECORDS[:1])
    assert got.prompt == Renderer.load(model).prompt_ids(RECORDS[0].messages, RECORDS[0].tools)
    plain = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    with torch.inference_mode():
        logits = plain(torch.tensor([got.prompt + got.answer])).logits[0]
    expected = logits[len(got.prompt) - 1 :].log_softmax(-1)
    for token, place, values in zip(got.answer, got.likeliest, expected, strict=False):
        assert token == int(values.argmax())
        assert len(place) == LIKELIEST
        assert place == pytest.approx({t: float(values[t]) for t in place}, abs=2e-4)


def test_how_far_an_adapter_moves_its_answers_is_told(model: Path, adapter: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert all(one.moved == [] for one in generate(model, RECORDS))
    plain = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    for got in generate(model, RECORDS, adapter=adapter):
        with torch.inference_mode():
            logits = plain(torch.tensor([got.prompt + got.answer])).logits[0]
        without = logits[len(got.prompt) - 1 :].log_softmax(-1)
        places = zip(got.answer, got.likeliest, without, strict=False)
        expected = [abs(place[token] - float(values[token])) for token, place, values in places]
        assert got.moved == pytest.approx(expected, abs=1e-3)
        assert max(got.moved) > 1e-3


def test_one_model_is_asked_with_one_adapter_after_another(model: Path, adapter: Path) -> None:
    base = Base(model, "float", threads=1)
    loaded = [base.generate(one, RECORDS, LIMITS, 4096) for one in (adapter, None, adapter)]
    assert loaded[0] == loaded[2] == generate(model, RECORDS, adapter=adapter)
    assert loaded[1] == generate(model, RECORDS)
    assert loaded[0] != loaded[1]


def test_an_adapter_that_breaks_leaves_the_next_one_as_it_was(
    model: Path, adapter: Path, tmp_path: Path
) -> None:
    """It breaks when the model has taken its layers in: weights of another shape."""
    broken = shutil.copytree(adapter, tmp_path / "broken")
    told = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps({**told, "r": 8}))
    base = Base(model, "float", threads=1)
    with pytest.raises(TrainingError, match=r"while answering with .*broken"):
        base.generate(broken, RECORDS, LIMITS, 4096)
    assert base.generate(adapter, RECORDS, LIMITS, 4096) == generate(
        model, RECORDS, adapter=adapter
    )


def test_records_that_do_not_fit_the_engine_make_room_for_others(model: Path) -> None:
    context = len(generate(model, RECORDS[2:])[0].prompt) + LIMITS.tokens
    got = generate(model, RECORDS, context=context)
    assert [one.record_id for one in got] == [RECORDS[0].id, RECORDS[2].id]
    one = generate(model, RECORDS, ParityConfig(records=1, tokens=6))
    assert [o.record_id for o in one] == [RECORDS[0].id]


def test_no_record_that_fits_is_told_with_the_way_out(model: Path) -> None:
    with pytest.raises(TrainingError, match=r"none of 3 records has room for 6 .*parity\.tokens"):
        generate(model, RECORDS, context=10)


def test_a_server_that_tells_no_token_ids_is_an_engine_error() -> None:
    with (
        FakeEndpoint(lambda body: text_reply("hi")) as fake,
        pytest.raises(EngineError, match="asking fake for token ids"),
    ):
        probe.generate(fake.endpoint(), RECORDS[:1], 4, 10.0)
