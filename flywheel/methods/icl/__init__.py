"""Few-shot prompting: each prompt gets training records as examples, as many as have room.

Examples come from the train split only. `orders` ranks that pool for each eval record, `choose`
walks along each ranking within the candidate's context window, `request` puts what was chosen into
the prompt, and `account` tells for how many prompts there was too little room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from flywheel.errors import EngineError
from flywheel.methods import base
from flywheel.methods.icl import selection, similarity
from flywheel.methods.icl.budget import Budget, of_endpoint, of_weights
from flywheel.methods.icl.embeddings import Vectors, embed
from flywheel.methods.icl.prompt import request
from flywheel.methods.icl.selection import Order, Size, Walk
from flywheel.rendering import query_of
from flywheel.storage import Storage
from flywheel.types import Json, Record

__all__ = [
    "Budget",
    "Pool",
    "Rule",
    "Vectors",
    "account",
    "choose",
    "embed",
    "of_endpoint",
    "of_weights",
    "orders",
    "request",
]

_PROBE = Record(
    0.0,
    "",
    "",
    {"messages": [{"role": "user", "content": "?"}]},
    {"choices": [{"message": {"role": "assistant", "content": "!"}}]},
)
"""The shortest conversation; what a prompt of it gains by an example is the example's size."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a trial chooses, named as in `flywheel.config.IclConfig`."""

    examples: int
    selection: str
    style: str
    """``turns`` or ``system``."""
    order: str = "nearest_last"
    min_examples: int = 1
    relevance_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """What examples are chosen from: the train split, in order of ids, with each record's class."""

    records: Sequence[Record]
    classes: Sequence[str]

    @classmethod
    def read(cls, dataset: Storage) -> Pool:
        """Read a dataset's train split."""
        rows = dataset.read_table("train").to_pylist()
        return cls([Record.from_row(row) for row in rows], [row["class"] for row in rows])


def orders(
    records: Sequence[Record],
    pool: Pool,
    rule: Rule,
    seed: int,
    embed: Callable[[list[str]], Vectors],
) -> Iterator[Order]:
    """For each record, the positions in the pool from the best to the worst.

    Args:
        records: The eval records.
        pool: What there is.
        rule: Its ``selection`` decides what is best.
        seed: For ``uniform_distribution``.
        embed: Gives texts' vectors, for ``semantic_similarity``; not called for others.
    """
    if rule.selection == "uniform_distribution":
        ids = [record.id for record in pool.records]
        return selection.dealt([record.id for record in records], ids, pool.classes, seed)
    asked, there = ([query_of(record) for record in side] for side in (records, pool.records))
    if rule.selection == "lexical":
        return map(selection.by_score, similarity.bm25(asked, there))
    vectors = embed([*asked, *there])
    near = similarity.cosine(vectors[: len(asked)], vectors[len(asked) :])
    return map(selection.by_score, near)


def choose(
    records: Sequence[Record],
    pool: Pool,
    rule: Rule,
    orders: Iterable[Order],
    budget: Budget,
    reserved: Sequence[int],
) -> list[list[Record]]:
    """For each record its examples, best first: at most ``rule.examples``, and what has room.

    Args:
        records: The eval records.
        pool: What there is.
        rule: How many, and how similar.
        orders: From `orders`.
        budget: The candidate's.
        reserved: Tokens that each record's answer may need.

    Raises:
        EngineError: Not one example fits anywhere: the trial would be ``base`` by another name.
    """
    choice = _Choice(pool, rule, budget)
    chosen = [choice.of(*one) for one in zip(records, orders, reserved, strict=True)]
    if not any(chosen):
        raise EngineError(
            f"not one of {len(records)} prompts has room for an example in {budget.context:g} "
            "tokens, or the model's chat template takes none; raise engine.max_model_len or "
            "methods.icl.max_context_tokens, or lower sampling.max_tokens"
        )
    return chosen


def account(chosen: Sequence[Sequence[Record]], rule: Rule, budget: Budget) -> Json:
    """How many examples the prompts have, and why not more."""
    counts = [len(examples) for examples in chosen]
    return {
        "context_tokens": None if math.isinf(budget.context) else budget.context,
        "counted_by": budget.basis,
        "examples_per_record": sum(counts) / len(counts),
        "fewer_than_examples": sum(n < rule.examples for n in counts),
        "fewer_than_min_examples": sum(n < rule.min_examples for n in counts),
    }


class _Choice:
    """Chooses for one record after the other; remembers how large examples are."""

    def __init__(self, pool: Pool, rule: Rule, budget: Budget) -> None:
        self.pool, self.rule, self.budget = pool, rule, budget
        self.size = _sizes(pool, rule.style, budget)

    def of(self, record: Record, order: Order, reserved: int) -> list[Record]:
        """Sizes add up only roughly: the whole prompt is counted, what is over makes less room."""
        limit = self.budget.context - reserved
        room = limit - self.budget.count(base.request(record))
        while room > 0:
            examples = [self.pool.records[position] for position in self._walk(order, room)]
            over = self.budget.count(request(record, examples, self.rule.style)) - limit
            if not examples or over <= 0:
                return examples
            room -= over
        return []

    def _walk(self, order: Order, room: float) -> list[int]:
        walk = Walk(order, self.pool.classes, self.size, room)
        if self.rule.selection == "uniform_distribution":
            return selection.uniform(walk, self.rule.examples)
        return selection.similar(walk, self.rule.examples, self.rule.relevance_ratio)


def _sizes(pool: Pool, style: str, budget: Budget) -> Size:
    def count(*examples: Record) -> float:
        return budget.count(request(_PROBE, examples, style))

    alone = count(_PROBE)

    @cache
    def size(position: int) -> float:
        return count(pool.records[position], _PROBE) - alone

    return size
