"""How much memory a model needs at least, to refuse what cannot fit before anything is started.

Estimates from the model's own ``config.json`` and the size of its weights. They leave out what
cannot be known beforehand (kernels' workspaces, fragmentation), for which a tenth is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flywheel.config import SERVABLE_RANKS

GIB = 2**30
_REST = 1.1
"""What the parts are multiplied with, for what is not counted."""
_STEP = 10e9
_BF16 = 2
_ADAM = 4 + 4 + 4 + 4
"""Bytes of a trained parameter: itself, its gradient and Adam's two moments, in fp32."""

GPU_GIB: Mapping[str, int] = {
    "V100": 16,
    "P100": 16,
    "T4": 16,
    "P4": 8,
    "A10G": 24,
    "L4": 24,
    "L40S": 48,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
"""Memory by Ray's name of the accelerator; the smallest there is where a name has several."""


@dataclass(frozen=True, slots=True)
class Size:
    """What of a model decides its memory."""

    weight_bytes: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    """Key heads times their width: what a token keeps per layer, for keys and again for values."""
    context: int
    """Tokens it can read at most."""

    @classmethod
    def of(cls, config: Mapping[str, Any], weight_bytes: int) -> Size:
        """From ``config.json`` and the bytes of all weight files."""
        text = config.get("text_config", config)
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        width = text.get("head_dim") or hidden // heads
        return cls(
            weight_bytes,
            text["num_hidden_layers"],
            hidden,
            text.get("intermediate_size") or 4 * hidden,
            (text.get("num_key_value_heads") or heads) * width,
            text.get("max_position_embeddings") or 4096,
        )

    def kv_bytes(self, tokens: int) -> int:
        """The cache of so many tokens, in bf16."""
        return 2 * self.layers * self.kv_width * tokens * _BF16

    def adapter_parameters(self, rank: int) -> int:
        """Of an adapter on every linear layer: four of attention, three of the MLP."""
        attention = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.kv_width)
        mlp = 3 * (self.hidden + self.intermediate)
        return self.layers * rank * (attention + mlp)

    def engine(self, context: int | None, adapters: int, rank: int) -> dict[str, float]:
        """GiB that serving needs at least, by part: one request of full length in its cache."""
        allowed = [r for r in SERVABLE_RANKS if r >= rank] or [rank]
        return _gib(
            weights=self.weight_bytes,
            adapters=adapters * self.adapter_parameters(allowed[0]) * _BF16,
            kv_cache=self.kv_bytes(min(context or self.context, self.context)),
        )

    def trainer(self, rank: int) -> dict[str, float]:
        """GiB that LoRA training needs at least, by part; activations come on top."""
        return _gib(weights=self.weight_bytes, adapter=self.adapter_parameters(rank) * _ADAM)


def token_bytes(weight_bytes: float, gpus: int) -> float:
    """What a step of decoding takes, as bytes that each GPU reads.

    Its share of the weights, and a constant for all else (some 5 ms at 2 TB/s).
    """
    return weight_bytes / max(1, gpus) + _STEP


def needed(parts: Mapping[str, float]) -> float:
    """GiB of all parts, and a tenth for the rest."""
    return _REST * sum(parts.values())


def told(parts: Mapping[str, float]) -> str:
    """``weights 15.0, kv cache 1.0``, in GiB."""
    return ", ".join(f"{name.replace('_', ' ')} {gib:.1f}" for name, gib in parts.items() if gib)


def _gib(**parts: float) -> dict[str, float]:
    return {name: size / GIB for name, size in parts.items()}
