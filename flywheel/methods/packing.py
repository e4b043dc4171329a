"""Pack training rows into one sequence that holds their common prompt only once.

Rows of one workload start alike: the same system message and tool list, often four fifths of all
tokens. A packed batch is that prefix followed by every row's own remainder; positions restart
after the prefix, and an attention mask lets each remainder see the prefix and itself only. Every
token therefore has exactly the context it would have alone, so loss and gradients are those of the
padded batch (a test compares them) at a fraction of the tokens. The tree-shaped mask is the one of
tree attention (Miao et al., 2023, SpecInfer, arXiv:2305.09781), used here for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    mask: torch.Tensor
    """(1, 1, T, T) true where the row token may attend to the column token."""
    predict_at: torch.Tensor
    """(A,) places in T whose next token is to be learned."""
    targets: torch.Tensor
    """(A,) those next tokens."""

    @property
    def tokens(self) -> int:
        """Tokens computed: T."""
        return int(self.input_ids.shape[1])


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
    rows = [0] * prefix  # which row a token belongs to; 0 is the prefix, seen by all
    predict_at: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(examples, start=1):
        offset = len(ids) - prefix  # token i of this row stands at offset + i
        ids += example.ids[prefix:]
        positions += range(prefix, len(example.ids))
        rows += [row] * (len(example.ids) - prefix)
        predict_at += range(offset + example.answer_start - 1, offset + len(example.ids) - 1)
        targets += example.ids[example.answer_start :]
    row = torch.tensor(rows)
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    visible = causal & ((row[:, None] == row[None, :]) | (row[None, :] == 0))
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        mask=visible[None, None],
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


def _agree(a: list[int], b: list[int], limit: int) -> int:
    """How many leading tokens agree, up to ``limit``."""
    for i in range(min(limit, len(a), len(b))):
        if a[i] != b[i]:
            return i
    return min(limit, len(a), len(b))
