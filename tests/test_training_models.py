"""Training holds for causal models of many kinds: packed where that is exact, else padded."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel.methods.lora import linear_layers
from flywheel.methods.padding import choose, packed, pad, padded
from flywheel.methods.training import summed_loss
from flywheel.rendering import Example

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "granite": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
PADDED: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 8},
    "bloom": {},
    "mamba": {"state_size": 4},
}
WINDOWS: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 8}}

ROWS = [
    Example("a", [*range(10, 30), 31, 32, 33], 20),
    Example("b", [*range(10, 30), 41, 42], 21),
    Example("c", [*range(10, 25), *range(50, 70), 43], 32),
    Example("d", [*range(70, 80), 44, 45], 10),
]


def model_of(kind: str, changes: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    import torch

    names, learning = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, learning, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize(
    ("kind", "changes", "layout"),
    [
        *((kind, changes, packed) for kind, changes in PACKED.items()),
        *((kind, changes, padded) for kind, changes in PADDED.items()),
        *((kind, changes, padded) for kind, changes in WINDOWS.items()),
    ],
    ids=[*PACKED, *PADDED, *(f"{kind} with a window" for kind in WINDOWS)],
)
def test_loss_and_gradients_are_those_of_each_row_alone(
    kind: str, changes: dict[str, Any], layout: Any
) -> None:
    import torch

    model = model_of(kind, changes)
    alone = sum(summed_loss(model, pad([row]), "cpu") for row in ROWS)
    wanted = gradients(model, alone)
    chosen = choose(model, ROWS, "cpu")
    assert chosen is layout
    together = sum(summed_loss(model, batch, "cpu") for batch in chosen(ROWS, 80))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    got = gradients(model, together)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=1e-4)


def test_padded_batches_hold_every_row_once_with_little_padding() -> None:
    rows = [Example(str(n), list(range(n)), n - 2) for n in (4, 30, 5, 29, 6, 28)]
    parts = padded(rows, 90)
    assert [part.input_ids.shape for part in parts] == [(3, 30), (3, 6)]
    assert sum(len(part.targets) for part in parts) == 12


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("gpt2", "c_attn c_fc c_proj"),
    ],
)
def test_linear_layers_are_found_without_weights(kind: str, layers: str, tmp_path: Any) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **{**SMALL, **PACKED[kind]})
    config.save_pretrained(tmp_path)
    assert linear_layers(tmp_path) == set(layers.split())
