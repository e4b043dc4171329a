"""Pack training rows into one sequence that holds their common prompt only once.

Rows of one workload start alike: the same system message and tool list, often four fifths of all
tokens. A packed batch is that prefix followed by every row's own remainder; positions restart
after the prefix, and attention lets each remainder see the prefix and itself only. Every token
therefore has exactly the context it would have alone, so loss and gradients are those of the
padded batch (a test compares them) at a fraction of the tokens. It is the tree attention of
Miao et al., 2023, SpecInfer, arXiv:2305.09781, for a tree of one branching, used for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from flywheel.errors import TrainingError
from flywheel.rendering import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed sequence of T tokens holding several rows; leading dimension 1 throughout."""

    input_ids: torch.Tensor
    """(1, T) token ids."""
    position_ids: torch.Tensor
    """(1, T) each token's position in its own row."""
    prefix: int
    """Tokens that all rows share, at the front."""
    rows: tuple[int, ...]
    """Each row's own tokens after the prefix, at least one each."""
    predict_at: torch.Tensor
    """(A,) places in T whose next token is to be learned."""
    targets: torch.Tensor
    """(A,) those next tokens."""

    @property
    def tokens(self) -> int:
        """Tokens computed: T."""
        return int(self.input_ids.shape[1])

    def logits(self, model: Any, device: Any) -> torch.Tensor:
        """(A, vocabulary) what the model expects at the places to learn.

        The head is computed nowhere else: with a vocabulary of tens of thousands and mostly prompt
        tokens, computing it everywhere would cost more than the layers.
        """
        return model(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            batch=self,
            logits_to_keep=self.predict_at.to(device),
            use_cache=False,
        ).logits[0]


def shared_prefix(examples: Sequence[Example]) -> int:
    """Length of the longest prompt prefix that all rows share; it ends before any answer."""
    first = examples[0].ids
    length = min(e.answer_start for e in examples) - 1
    for example in examples[1:]:
        while example.ids[:length] != first[:length]:
            length = _agree(first, example.ids, length)
    return max(length, 0)


def pack(examples: Sequence[Example]) -> Batch:
    """Build the packed sequence of these rows (at least one)."""
    import torch

    prefix = shared_prefix(examples)
    ids = list(examples[0].ids[:prefix])
    positions = list(range(prefix))
    predict_at: list[int] = []
    targets: list[int] = []
    for example in examples:
        offset = len(ids) - prefix  # token i of this row stands at offset + i
        ids += example.ids[prefix:]
        positions += range(prefix, len(example.ids))
        predict_at += range(offset + example.answer_start - 1, offset + len(example.ids) - 1)
        targets += example.ids[example.answer_start :]
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        prefix=prefix,
        rows=tuple(len(example.ids) - prefix for example in examples),
        predict_at=torch.tensor(predict_at),
        targets=torch.tensor(targets),
    )


def split_rows(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Cut a step's rows into packs of at most ``max_tokens`` tokens; a lone longer row is one."""
    packs: list[list[Example]] = []
    size = 0
    prefix = shared_prefix(examples)
    for example in examples:
        own = len(example.ids) - prefix
        if not packs or size + own > max_tokens:
            packs.append([])
            size = prefix
        packs[-1].append(example)
        size += own
    return packs


def attention(seen: list[Any] | None = None) -> str:
    """The name under which transformers finds `attend`; its callers are put into ``seen``."""
    from transformers import AttentionInterface

    name = "flywheel_packed"
    AttentionInterface.register(name, attend if seen is None else partial(attend, seen=seen))
    return name


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch: Batch,
    dropout: float = 0.0,
    scaling: float | None = None,
    seen: list[Any] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed batch, in the form transformers calls.

    The prefix attends to itself; all rows together, padded to the longest, attend to the prefix
    and each to itself. A masked square over all T tokens would compute mostly what it then hides.

    Args:
        module: The layer.
        query: (1, heads, T, width).
        key: (1, groups, T, width): each serves heads / groups heads.
        value: As ``key``.
        attention_mask: Not used; ``batch`` says who sees whom.
        batch: What the T tokens are.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the logits; by default 1 / sqrt(width).
        seen: Where to put ``module``, for whoever wants to know.
        others: What a model's attention may want besides.

    Returns:
        (1, T, heads, width), and no attention weights.

    Raises:
        TrainingError: The model's attention is of a kind that this is not.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.nn.utils.rnn import pad_sequence

    if seen is not None:
        seen.append(module)
    window = others.get("sliding_window")
    longest = max(batch.rows)
    if any(others.get(name) is not None for name in ("softcap", "s_aux")) or (
        window is not None and batch.prefix + longest > window
    ):
        raise TrainingError(
            f"{type(module).__name__}: packing does not cover soft caps, sinks, or a window "
            "shorter than a training row"
        )
    repeats = query.shape[1] // key.shape[1]
    q, k, v = query[0], *(x[0].repeat_interleave(repeats, 0) for x in (key, value))
    at = batch.prefix
    common = scaled_dot_product_attention(
        q[None, :, :at], k[None, :, :at], v[None, :, :at], None, dropout, True, scale=scaling
    )

    def own(x: torch.Tensor) -> torch.Tensor:
        rows = x[:, at:].transpose(0, 1).split(batch.rows)
        return pad_sequence(rows, batch_first=True).transpose(1, 2)  # (rows, heads, longest, width)

    def with_prefix(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[None, :, :at].expand(len(batch.rows), -1, -1, -1), own(x)], dim=2)

    visible = torch.ones(longest, at + longest, dtype=torch.bool, device=q.device).tril(at)
    rows = scaled_dot_product_attention(
        own(q), with_prefix(k), with_prefix(v), visible, dropout, scale=scaling
    )
    parts = [row[:, :length] for row, length in zip(rows, batch.rows, strict=True)]
    return torch.cat([common[0], *parts], dim=1).transpose(0, 1)[None].contiguous(), None


def _agree(a: list[int], b: list[int], limit: int) -> int:
    """How many leading tokens agree, up to ``limit``."""
    for i in range(min(limit, len(a), len(b))):
        if a[i] != b[i]:
            return i
    return min(limit, len(a), len(b))
