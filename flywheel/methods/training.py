"""The training loop that every method with weights to learn shares.

`fit` takes a model some of whose parameters learn, and rows; it follows the plan of `batches` with
AdamW, measures the validation loss now and then, stops early where that is asked, and keeps
checkpoints from which a killed training goes on along the same curve. What is learned, and how it
is saved, is the methods' part (`lora`, `full`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flywheel.errors import TrainingError, boundary
from flywheel.methods import batches, padding, ranks
from flywheel.methods.batches import Rows
from flywheel.methods.checkpoints import Checkpoints, Tensors
from flywheel.rendering import Example, Renderer
from flywheel.storage import Storage
from flywheel.types import Json, Record, content_hash

Progress = Callable[[int, int, float | None], None]
"""Called after each optimiser step with steps done, steps in all, and the latest validation loss
(``None`` before the first). It may raise `TrialStoppedError`, which ends the training."""

_MAX_GRADIENT = 1.0
"""Norm to which gradients are clipped."""


@dataclass(slots=True)
class Curve:
    """How far a training is and what it has seen; a checkpoint holds it as JSON."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Nats per answer token, by step."""
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    """Step and nats per answer token."""
    tokens: int = 0
    """As if nothing were shared or padded."""
    computed_tokens: int = 0
    seconds: float = 0.0
    """In optimiser steps: no loading, no validation."""
    resumed: int = 0
    """How often the training was taken up from a checkpoint."""

    @property
    def val_loss(self) -> float | None:
        """The latest."""
        return self.val_losses[-1][1] if self.val_losses else None

    @property
    def best_step(self) -> int:
        """The step with the lowest validation loss, the earliest of equals; 0 without any."""
        return min(self.val_losses, key=lambda at: at[1])[0] if self.val_losses else 0

    def stale(self) -> int:
        """Validations since the best."""
        return sum(step > self.best_step for step, _ in self.val_losses)


def prepare(
    model_folder: Path,
    train_records: Sequence[Record],
    val_records: Sequence[Record],
    parameters: Json,
    seed: int,
    threads: int,
) -> Rows:
    """What comes before any weights: seeds, threads, rows.

    Raises:
        TrainingError: No row fits, or the tokenizer cannot be used.
    """
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with boundary(TrainingError, f"reading the configuration in {model_folder}"):
        config = AutoConfig.from_pretrained(str(model_folder), trust_remote_code=False)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    renderer = Renderer.load(model_folder)
    return batches.rows_of(renderer, train_records, val_records, parameters, context)


def load_model(model_folder: Path, dtype: Any, **options: Any) -> Any:
    """The model's weights, on the CPU unless ``options`` say otherwise.

    Raises:
        TrainingError: They cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    with boundary(TrainingError, f"loading {model_folder} for training"):
        return AutoModelForCausalLM.from_pretrained(
            str(model_folder),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )


def device_name() -> str:
    """Where to train: ``cuda`` or ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def in_bf16(precision: str) -> bool:
    """Whether to compute in bfloat16: ``auto`` asks the device."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fit(
    model: Any,
    rows: Rows,
    parameters: Json,
    seed: int,
    folder: Storage | None,
    progress: Progress,
) -> Json:
    """Train the parameters of ``model`` that require a gradient.

    Args:
        model: A causal language model, plain or PEFT's, where it is to be trained.
        rows: What from.
        parameters: Those of a trial, named as in `flywheel.config.TrainerConfig`.
        seed: Decides the order of rows.
        folder: Where checkpoints go; ``None`` keeps none.
        progress: Told after each step; its `TrialStoppedError` passes through.

    Returns:
        Summary: the fields of `Curve`, ``val_loss`` of the weights that were kept, ``rows``,
        ``rows_too_long``, ``steps`` done, ``steps_planned``, ``best_step``, ``layout``, and
        ``checkpoint_error`` where the last checkpoint could not be written.

    Raises:
        TrainingError: The loss or its gradient is not finite (names step and record ids), or the
            validation loss is not.
    """
    steps = batches.plan(rows.train, parameters, seed)
    owner = content_hash([parameters, seed, [row.ids for row in rows.train]])
    checkpoints = Checkpoints(folder, owner, parameters["checkpoint_every_s"])
    run = _Run(model, rows, parameters, len(steps), seed)
    if (found := checkpoints.restore()) is not None:
        run.restore(*found)
    while run.curve.step < len(steps) and not run.stopped:
        run.step(steps[run.curve.step])
        if run.validates:
            run.validate()
        done = run.curve.step
        progress(done, done if run.stopped else len(steps), run.curve.val_loss)
        if run.ranks.rank == 0:
            checkpoints.save(run.state)
    run.keep_best()
    error = {"checkpoint_error": checkpoints.error} if checkpoints.error else {}
    return {**run.summary(), **error}


class _Run:
    """One training: the model, its optimiser and the curve so far."""

    def __init__(self, model: Any, rows: Rows, parameters: Json, steps: int, seed: int) -> None:
        import torch

        self.model, self.rows, self.parameters, self.steps = model, rows, parameters, steps
        self.curve = Curve()
        self.ranks = ranks.current()
        if self.ranks.rank:  # every rank drops out its own; rank 0 as if it were alone
            torch.manual_seed(seed + self.ranks.rank)
        self.best: Tensors = {}
        self.learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.learning.values())).device
        self.bf16 = in_bf16(parameters["precision"])
        self.optimizer = torch.optim.AdamW(
            self.learning.values(),
            lr=parameters["learning_rate"],
            weight_decay=parameters["weight_decay"],
            fused=True,
        )
        if parameters["gradient_checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.eval()
        with self._computing():
            self.layout = padding.choose(model, rows.train, self.device)

    @property
    def stopped(self) -> bool:
        """Whether validation has not become better for too long."""
        patience = self.parameters["patience"]
        return patience is not None and self.curve.stale() >= patience

    @property
    def validates(self) -> bool:
        """Whether the validation loss is due: evenly over the training, and at its end."""
        step, times = self.curve.step, self.parameters["validations"]
        return bool(self.rows.val) and step * times // self.steps > (step - 1) * times // self.steps

    def step(self, rows: Sequence[Example]) -> None:
        """One optimiser step on the mean loss per answer token of these rows."""
        import torch

        began = time.monotonic()
        self.model.train()
        loss, computed = self._backward(rows)
        norm = torch.nn.utils.clip_grad_norm_(self.learning.values(), _MAX_GRADIENT)
        self._require_finite(loss, float(norm), rows)
        told = self.parameters
        share = batches.rate(self.curve.step, self.steps, told["warmup_ratio"], told["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = told["learning_rate"] * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        curve = self.curve
        curve.step += 1
        curve.losses.append(round(loss, 4))
        curve.tokens += sum(len(row.ids) for row in rows)
        curve.computed_tokens += computed
        curve.seconds += time.monotonic() - began

    def validate(self) -> None:
        """Add the mean loss per answer token of the validation rows to the curve."""
        import torch

        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for batch in self._batches(self.rows.val):
                with self._computing():
                    total += float(summed_loss(self.model, batch, self.device))
        (total,) = self.ranks.total([total], self.device)
        loss = total / _answers(self.rows.val)
        if not math.isfinite(loss):
            raise TrainingError(f"validation loss is {loss} after step {self.curve.step}")
        self.curve.val_losses.append((self.curve.step, round(loss, 4)))
        if self.parameters["patience"] is not None and self.curve.best_step == self.curve.step:
            self.best = {name: p.detach().clone() for name, p in self.learning.items()}

    def keep_best(self) -> None:
        """Where training may stop early, the weights with the lowest validation loss are kept."""
        for name, tensor in self.best.items():
            self.learning[name].data.copy_(tensor)

    def state(self) -> tuple[Tensors, Json]:
        """Everything that the rest of the training depends on."""
        moments = {
            f"optimizer.{i}.{key}": tensor
            for i, state in self.optimizer.state_dict()["state"].items()
            for key, tensor in state.items()
        }
        weights = {f"weights.{name}": tensor for name, tensor in self.learning.items()}
        best = {f"best.{name}": tensor for name, tensor in self.best.items()}
        return {**weights, **best, **moments}, asdict(self.curve)

    def restore(self, tensors: Tensors, notes: Json) -> None:
        """Go on where `state` was taken."""
        val_losses = [(step, loss) for step, loss in notes["val_losses"]]
        self.curve = Curve(**{**notes, "val_losses": val_losses, "resumed": notes["resumed"] + 1})
        moments: dict[int, Tensors] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "weights":
                self.learning[rest].data.copy_(tensor)
            elif kind == "best":
                self.best[rest] = tensor.to(self.device)
            else:
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def summary(self) -> Json:
        """What `fit` returns."""
        curve = self.curve
        kept = {"val_loss": dict(curve.val_losses)[curve.best_step]} if self.best else {}
        return {
            **asdict(curve),
            "seconds": round(curve.seconds, 1),
            "val_loss": curve.val_loss,
            **kept,
            "best_step": curve.best_step,
            "rows": len(self.rows.train),
            "rows_too_long": self.rows.too_long,
            "steps": curve.step,
            "steps_planned": self.steps,
            "layout": self.layout.__name__,
        }

    def _backward(self, rows: Sequence[Example]) -> tuple[float, int]:
        """Accumulate the gradient batch by batch; return loss and tokens computed, of all ranks."""
        import torch

        answers = _answers(rows)
        total = 0.0
        computed = 0
        for batch in self._batches(rows):
            with self._computing():
                loss = summed_loss(self.model, batch, self.device) / answers
                loss.backward()
            total += float(loss.detach())
            computed += batch.tokens
        for parameter in self.learning.values():  # a rank without rows has none
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.add(parameter.grad for parameter in self.learning.values())
        loss_of_all, tokens = self.ranks.total([total, computed], self.device)
        return loss_of_all, int(tokens)

    def _batches(self, rows: Sequence[Example]) -> Sequence[Any]:
        """The part of the rows for this rank, laid out; of fewer rows than ranks none."""
        mine = self.ranks.share(rows)
        return self.layout(mine, self.parameters["pack_tokens"]) if mine else []

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Matrix products in bf16 where that is wanted; weights that learn stay in float32.

        PEFT would compute its adapters in float32, casting every activation there and back, and
        serving does not.
        """
        import torch
        from peft.helpers import disable_input_dtype_casting

        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
            disable_input_dtype_casting(self.model, active=self.bf16),
        ):
            yield

    def _require_finite(self, loss: float, norm: float, rows: Sequence[Example]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        ids = ", ".join(row.record_id for row in rows)
        raise TrainingError(f"{what} at step {self.curve.step + 1} of {self.steps}; records: {ids}")


def summed_loss(model: Any, batch: Any, device: Any) -> Any:
    """Cross entropy summed over a batch's answer tokens (a scalar tensor, nats)."""
    import torch

    logits = batch.logits(model, device).float()
    return torch.nn.functional.cross_entropy(logits, batch.targets.to(device), reduction="sum")


def _answers(rows: Sequence[Example]) -> int:
    return sum(len(row.ids) - row.answer_start for row in rows)
