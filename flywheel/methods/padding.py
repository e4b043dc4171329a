"""The textbook way to train on several rows: side by side, padded to the longest.

It needs nothing of a model but that it is causal, so it serves the models for which packing
(`flywheel.methods.packing`) does not hold: attention with soft caps, sinks or short windows, and
layers that are no attention at all. `choose` finds out by asking the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flywheel.errors import TrainingError
from flywheel.methods import packing
from flywheel.methods.packing import Batch
from flywheel.rendering import Example

if TYPE_CHECKING:
    import torch

Layout = Callable[[Sequence[Example], int], "Sequence[Batch | PaddedBatch]"]
"""Lays rows out as batches of at most so many tokens; a lone longer row is one."""

_AGREE = 0.1
"""Logits may differ by this share of their spread: noise of bf16 is far below."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """N rows of at most L tokens side by side."""

    input_ids: torch.Tensor
    """(N, L) token ids, padding last."""
    attention_mask: torch.Tensor
    """(N, L) 1 for tokens, 0 for padding."""
    predict_row: torch.Tensor
    """(A,) rows of the places whose next token is to be learned."""
    predict_at: torch.Tensor
    """(A,) those places."""
    targets: torch.Tensor
    """(A,) the next tokens."""

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included: N x L."""
        return int(self.input_ids.numel())

    def logits(self, model: Any, device: Any) -> torch.Tensor:
        """(A, vocabulary) what the model expects at the places to learn."""
        import torch

        first = int(self.predict_at.min())
        kept: Any = {"logits_to_keep": torch.arange(first, self.input_ids.shape[1], device=device)}
        if "logits_to_keep" not in inspect.signature(_base(model).forward).parameters:
            first, kept = 0, {}
        logits = model(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            use_cache=False,
            **kept,
        ).logits
        return logits[self.predict_row.to(device), (self.predict_at - first).to(device)]


def pad(examples: Sequence[Example]) -> PaddedBatch:
    """Lay these rows (at least one) side by side."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(example.ids) for example in examples]
    places = [
        (row, at)
        for row, example in enumerate(examples)
        for at in range(example.answer_start - 1, len(example.ids) - 1)
    ]
    return PaddedBatch(
        input_ids=pad_sequence(ids, batch_first=True),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        predict_row=torch.tensor([row for row, _ in places]),
        predict_at=torch.tensor([at for _, at in places]),
        targets=torch.cat([torch.tensor(e.ids[e.answer_start :]) for e in examples]),
    )


def packed(examples: Sequence[Example], max_tokens: int) -> list[Batch]:
    """Packs of rows that begin alike: sorted by their tokens, so that neighbours share most."""
    rows = sorted(examples, key=lambda example: example.ids)
    return [packing.pack(part) for part in packing.split_rows(rows, max_tokens)]


def padded(examples: Sequence[Example], max_tokens: int) -> list[PaddedBatch]:
    """Batches of rows of like length, so that there is little padding."""
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        if not parts or len(parts[-1][0].ids) * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
        parts[-1].append(example)
    return [pad(part) for part in parts]


def choose(model: Any, examples: Sequence[Example], device: Any) -> Layout:
    """`packed` where this model answers packed rows as it answers them alone, else `padded`.

    The longest and the shortest row are asked both ways, and every layer must have used the packed
    attention: one that mixes tokens by other means would let rows see each other. Leaves the model
    with the attention that the choice needs.

    Args:
        model: A causal language model, plain or PEFT's, in evaluation mode.
        examples: The training rows, at least one.
        device: Where the model is.
    """
    import torch

    pair = [max(examples, key=_length), min(examples, key=_length)]
    base = _base(model)
    own = base.config._attn_implementation
    layers: list[Any] = []
    with torch.no_grad():
        alone = pad(pair).logits(model, device).float()
        try:
            base.set_attn_implementation(packing.attention(layers))
            together = packing.pack(pair).logits(model, device).float()
        except (TrainingError, AttributeError, KeyError, TypeError, ValueError):
            layers.clear()  # its attention cannot be replaced, or not by this one
    packing.attention()
    every = base.config.get_text_config().num_hidden_layers
    if len(set(map(id, layers))) == every and _agree(together, alone):
        return packed
    base.set_attn_implementation(own)
    return padded


def _agree(together: torch.Tensor, alone: torch.Tensor) -> bool:
    return bool((together - alone).abs().mean() <= _AGREE * alone.std())


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _length(example: Example) -> int:
    return len(example.ids)
