"""Packed rows are trained exactly as each would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flywheel.errors import TrainingError
from flywheel.methods.packing import attend, attention, pack, shared_prefix, split_rows
from flywheel.methods.training import summed_loss
from flywheel.rendering import Example
from flywheel.testing import tiny_model

VOCABULARY = 400
TOKENS = st.integers(3, VOCABULARY - 1)


def row(ids: Sequence[int], answer_start: int) -> Example:
    return Example("r", list(ids), answer_start)


@st.composite
def rows_of_a_batch(draw: st.DrawFn) -> list[Example]:
    """Rows with a common beginning, often like real ones, sometimes identical or unalike."""
    common = draw(st.lists(TOKENS, max_size=12))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        own = draw(st.lists(TOKENS, min_size=1, max_size=6))
        answer = draw(st.lists(TOKENS, min_size=1, max_size=6))
        rows.append(row([*common, *own, *answer], len(common) + len(own)))
    return [*rows, rows[0]] if draw(st.booleans()) else rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model in float32, with a LoRA adapter that does something, and its embeddings."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(base, config)
    adapted.get_input_embeddings().weight.requires_grad_(True)
    return adapted


def loss_alone(model: Any, one: Example) -> Any:
    """The textbook way: one row, causal attention, loss on the answer's tokens."""
    import torch

    model.get_base_model().set_attn_implementation("sdpa")
    ids = torch.tensor([one.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    predicted = logits[one.answer_start - 1 : -1].float()
    return torch.nn.functional.cross_entropy(predicted, ids[0, one.answer_start :], reduction="sum")


def gradients(model: Any, loss: Any) -> list[Any]:
    import torch

    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_a_batch(), limit=st.sampled_from([1, 16, 1024]))
@example(rows=[row([5, 6, 7, 8], 2)] * 3, limit=1024)
@example(rows=[row([5, 9], 1), row([6, 9], 1)], limit=1024)
def test_loss_and_gradients_are_those_of_the_rows_alone(
    model: Any, rows: list[Example], limit: int
) -> None:
    import torch

    model.get_base_model().set_attn_implementation(attention())
    packed = sum(summed_loss(model, pack(part), "cpu") for part in split_rows(rows, limit))
    alone = sum(loss_alone(model, one) for one in rows)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(gradients(model, packed), gradients(model, alone), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_a_common_prompt_is_computed_once() -> None:
    rows = [row([*range(10, 60), tail, 3, 4], 51) for tail in (7, 8, 9)]
    assert shared_prefix(rows) == 50
    assert pack(rows).tokens == 50 + 3 * 3


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([row([5, 6, 7, 8], 3)], 2),
        ([row([5, 6, 7, 8], 3)] * 2, 2),
        ([row([5, 6, 7], 2), row([6, 6, 7], 2)], 0),
        ([row([5, 6, 7, 8, 9], 4), row([5, 6, 7], 2)], 1),
        ([row([5, 6, 7, 8], 3), row([5, 1, 7, 8], 3), row([5, 6, 2, 8], 3)], 1),
        ([row([5, 6], 1), row([5, 7], 1)], 0),
    ],
    ids=["single", "identical", "unalike", "short prompt", "three", "prompts of one token"],
)
def test_the_shared_prefix_ends_before_the_last_prompt_token(
    rows: list[Example], length: int
) -> None:
    assert shared_prefix(rows) == length


def test_positions_restart_after_the_prefix_and_targets_are_the_answers() -> None:
    batch = pack([row([5, 6, 7, 11, 12], 3), row([5, 6, 8, 13], 3)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 11, 12, 8, 13]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.predict_at.tolist() == [2, 3, 5]
    assert batch.targets.tolist() == [11, 12, 13]


@settings(deadline=None)
@given(rows=rows_of_a_batch(), groups=st.sampled_from([1, 2, 4]))
def test_a_row_sees_the_prefix_and_itself_only(rows: list[Example], groups: int) -> None:
    import torch

    batch = pack(rows)
    owner = torch.tensor(
        [0] * batch.prefix + [r for r, n in enumerate(batch.rows, 1) for _ in range(n)]
    )
    seen = (owner[:, None] == owner) | (owner == 0)
    query = torch.randn(1, 4, batch.tokens, 8)
    key, value = torch.randn(2, 1, groups, batch.tokens, 8)
    got, _ = attend(None, query, key, value, None, batch=batch)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen.tril(), enable_gqa=True
    )
    torch.testing.assert_close(got, wanted.transpose(1, 2))


@pytest.mark.parametrize("kind", [{"softcap": 50.0}, {"s_aux": object()}, {"sliding_window": 3}])
def test_attention_of_another_kind_is_refused(kind: dict[str, object]) -> None:
    import torch

    batch = pack([row([5, 6, 7, 11], 3), row([5, 6, 8, 12], 3)])
    some = torch.randn(1, 1, batch.tokens, 8)
    with pytest.raises(TrainingError, match="does not cover"):
        attend(None, some, some, some, None, batch=batch, **kind)


@settings(deadline=None)
@given(rows=rows_of_a_batch(), limit=st.integers(1, 40))
def test_packs_hold_every_row_in_order_and_no_more_than_fits(
    rows: list[Example], limit: int
) -> None:
    packs = split_rows(rows, limit)
    assert [one for part in packs for one in part] == rows
    assert all(pack(part).tokens <= limit or len(part) == 1 for part in packs)


def test_a_row_longer_than_a_pack_is_one_by_itself() -> None:
    long, short = row(range(100, 150), 48), row([1, 2, 3], 2)
    assert split_rows([short, long, short], 20) == [[short], [long], [short]]


def test_a_tiny_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    weights = [
        (tiny_model(tmp_path / str(i), seed=seed) / "model.safetensors").read_bytes()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert weights[0] == weights[1] != weights[2]
