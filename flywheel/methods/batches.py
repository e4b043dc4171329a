"""Which rows a training sees, in which order, step by step: decided before it starts.

Records are rendered to rows; rows that do not fit are left out and counted. The plan of all steps
follows from rows, parameters and seed alone, so a resumed training continues it where it was.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from flywheel.errors import TrainingError
from flywheel.rendering import Example, Renderer
from flywheel.types import Json, Record

_MAX_VAL_RECORDS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned from, and what the validation loss is measured on."""

    train: list[Example]
    val: list[Example]
    too_long: int
    """Training rows left out."""


def rows_of(
    renderer: Renderer,
    train: Sequence[Record],
    val: Sequence[Record],
    parameters: Json,
    context: int | None,
) -> Rows:
    """Render both splits.

    Args:
        renderer: The model's own.
        train: ``max_train_records`` takes the first.
        val: The first 64 are used.
        parameters: Those of a trial.
        context: Tokens the model has positions for, where it says.

    Raises:
        TrainingError: Not one training row fits, or early stopping has nothing to go by.
    """
    limit = min(parameters["max_tokens"], context or parameters["max_tokens"])
    rendered = [renderer.example(r) for r in train[: parameters["max_train_records"]]]
    fitting = [row for row in rendered if len(row.ids) <= limit]
    if not fitting:
        raise TrainingError(
            f"none of {len(train)} training records has at most {limit} tokens; raise max_tokens, "
            "as far as the model's own context allows"
        )
    held_out = [renderer.example(record) for record in val[:_MAX_VAL_RECORDS]]
    held_out = [row for row in held_out if len(row.ids) <= limit]
    if parameters["patience"] is not None and not held_out:
        raise TrainingError(
            "patience stops on validation loss, and no validation record fits; raise "
            "dataset.val_ratio or leave patience out"
        )
    return Rows(fitting, held_out, len(rendered) - len(fitting))


def plan(rows: Sequence[Example], parameters: Json, seed: int) -> list[list[Example]]:
    """The rows of each optimiser step. Every epoch sees each row once, in a new order.

    A step takes ``batch_records`` rows or, where ``batch_tokens`` is set, as many as have that many
    tokens together (a longer row is a step of its own). ``steps`` ends the plan in place of
    ``epochs``. With ``curriculum: short_first`` the first epoch goes from short rows to long ones.
    """
    order = _endless(rows, seed)
    if parameters.get("curriculum") == "short_first":
        order = chain(sorted(rows, key=lambda row: len(row.ids)), order)
    if parameters["steps"] is not None:
        return list(islice(_steps(order, parameters), parameters["steps"]))
    seen = max(1, round(parameters["epochs"] * len(rows)))
    return list(_steps(islice(order, seen), parameters))


def rate(step: int, steps: int, warmup_ratio: float, schedule: str) -> float:
    """Share of the learning rate at a step, counted from 0.

    It rises over the warm-up, then falls to 0 (``linear``, or ``cosine``: half a wave) or stays
    (``constant``).
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - warmup) / max(1, steps - warmup)
    return {
        "linear": 1 - gone,
        "cosine": 0.5 * (1 + math.cos(math.pi * gone)),
        "constant": 1.0,
    }[schedule]


def _endless(rows: Sequence[Example], seed: int) -> Iterator[Example]:
    order = random.Random(seed)
    while True:
        yield from order.sample(rows, len(rows))


def _steps(rows: Iterator[Example], parameters: Json) -> Iterator[list[Example]]:
    most_rows = parameters["batch_records"] if parameters["batch_tokens"] is None else math.inf
    most_tokens = parameters["batch_tokens"] or math.inf
    batch: list[Example] = []
    tokens = 0
    for row in rows:
        if batch and (len(batch) == most_rows or tokens + len(row.ids) > most_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.ids)
    if batch:
        yield batch
