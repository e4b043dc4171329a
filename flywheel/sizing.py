"""How much memory a model needs at least, and how long a sweep of it takes at best.

Memory is estimated from the model's own ``config.json`` and the size of its weights, to refuse what
cannot fit before anything is started. That leaves out what cannot be known beforehand (kernels'
workspaces, fragmentation), for which a tenth is added. Times follow from what a GPU computes and
reads per second (`GPUS`) and the share of that which is assumed to be reached; they serve to plan a
cluster (``cluster/README.md``), and nothing else counts on them.
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

PACK_TOKENS = 1024
"""Tokens that a trainer computes at a time, by default."""
COMPUTING = 0.35
"""Assumed share of a GPU's peak that training and reading prompts reach."""
READING = 0.6
"""Assumed share of its memory's bandwidth that writing answers reaches."""

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
class Gpu:
    """How fast a GPU is at most, as its maker says."""

    tflops: float
    """10^12 dense bf16 operations a second."""
    gb_per_s: float
    """10^9 bytes of its memory read a second."""


GPUS: Mapping[str, Gpu] = {
    "L4": Gpu(121, 300),
    "L40S": Gpu(362, 864),
    "A100-80G": Gpu(312, 2039),
    "H100": Gpu(989, 3350),
    "B200": Gpu(2250, 7700),
}
"""By Ray's name of the accelerator, from NVIDIA's data sheets (SXM where there are several)."""


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
        """GiB that LoRA training needs at least, by part; activations come on top.

        The weights count in full even if they are trained upon in 4 bits: the same process then
        answers with them as they are, for the parity check.
        """
        return _gib(weights=self.weight_bytes, adapter=self.adapter_parameters(rank) * _ADAM)

    def activations(self, *, checkpointing: bool = False, tokens: int = PACK_TOKENS) -> float:
        """GiB that LoRA training keeps of a pack for its way back, in bf16.

        Of each layer that is what its operations read: eight times the model's width (norms,
        attention, residuals) and four times the MLP's (gate, up, activation, product). With
        gradient checkpointing it is each layer's input, and all of one layer at a time.
        """
        layer = 8 * self.hidden + 4 * self.intermediate
        kept = self.layers * self.hidden + layer if checkpointing else self.layers * layer
        return kept * tokens * _BF16 / GIB

    def training_tokens_per_s(self, gpu: Gpu, *, checkpointing: bool = False) -> float:
        """Tokens a LoRA trainer learns from a second on one GPU.

        A token costs 2 operations per weight forward and 2 back; the gradients of frozen weights,
        2 more (Kaplan et al., 2020, arXiv:2001.08361, section 2.1), are not computed. Gradient
        checkpointing goes forward twice.
        """
        operations = 6 if checkpointing else 4
        return COMPUTING * gpu.tflops * 1e12 / (operations * self.weight_bytes / _BF16)

    def prompt_tokens_per_s(self, gpu: Gpu, gpus: int) -> float:
        """Prompt tokens an engine on so many GPUs reads a second: 2 operations per weight."""
        return COMPUTING * gpus * gpu.tflops * 1e12 / (2 * self.weight_bytes / _BF16)

    def answer_tokens_per_s(self, gpu: Gpu, gpus: int, in_flight: int) -> float:
        """Tokens it writes a second: all weights are read once for one token of each request."""
        return in_flight * READING * gpus * gpu.gb_per_s * 1e9 / self.weight_bytes


def token_bytes(weight_bytes: float, gpus: int) -> float:
    """What a step of decoding takes, as bytes that each GPU reads.

    Its share of the weights, and a constant for all else (some 5 ms at 2 TB/s).
    """
    return weight_bytes / max(1, gpus) + _STEP


def needed(parts: Mapping[str, float]) -> float:
    """GiB of all parts, and a tenth for the rest."""
    return _REST * sum(parts.values())


def gpus_for(parts: Mapping[str, float], kind: str) -> int:
    """How many GPUs of a kind hold an engine in the 0.9 of memory that vLLM takes; a power of 2."""
    count = 1
    while count * 0.9 * GPU_GIB[kind] < needed(parts):
        count *= 2
    return count


def told(parts: Mapping[str, float]) -> str:
    """``weights 15.0, kv cache 1.0``, in GiB."""
    return ", ".join(f"{name.replace('_', ' ')} {gib:.1f}" for name, gib in parts.items() if gib)


def _gib(**parts: float) -> dict[str, float]:
    return {name: size / GIB for name, size in parts.items()}
