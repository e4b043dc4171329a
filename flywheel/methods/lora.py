"""Fine-tune a LoRA adapter on train records: loss on the final assistant turn only.

Records are rendered by the same template that serving uses, packed so that their common prompt is
computed once (`flywheel.methods.packing`), and trained with PEFT and AdamW. What leaves is a PEFT
adapter folder (safetensors) that vLLM loads, and a summary of the training.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flywheel.errors import TrainingError, boundary
from flywheel.methods.packing import Batch, attention, pack, split_rows
from flywheel.rendering import Example, Renderer
from flywheel.types import Json, Record

Progress = Callable[[int, int, float | None], None]
"""Called with steps done, steps in all, and the latest validation loss (nats per answer token; none
before the first). It may raise `TrialStoppedError` to end the training."""

_PACK_TOKENS = 1024
_MAX_VAL_RECORDS = 64


def train(
    model_folder: Path,
    train_records: Sequence[Record],
    val_records: Sequence[Record],
    parameters: Json,
    seed: int,
    adapter_folder: Path,
    threads: int,
    progress: Progress = lambda done, total, val_loss: None,
    *,
    evaluations: int = 0,
) -> Json:
    """Train one adapter and write it to ``adapter_folder``.

    Args:
        model_folder: Weights (safetensors), config and tokenizer of the base model.
        train_records: The train split, in its order; ``max_train_records`` takes the first.
        val_records: The val split; the loss on its first 64 records is reported.
        parameters: A trial's parameters, named as in `flywheel.config.LoraConfig`.
        seed: Decides initialisation, order of rows and dropout.
        adapter_folder: Where the PEFT adapter goes.
        threads: CPU threads to compute with; Ray would leave a fractional share just one.
        progress: Told after each optimiser step.
        evaluations: How often validation loss is computed on the way, for schedulers; it costs a
            forward pass of the val records each time and changes nothing in the adapter.

    Returns:
        Summary: ``losses`` per step and ``val_loss`` (nats per answer token), ``rows``,
        ``rows_too_long``, ``steps``, ``tokens`` (as if nothing were shared), ``computed_tokens``,
        ``seconds``.

    Raises:
        TrainingError: No rows fit, or the loss is not finite (names step and record ids).
        TrialStoppedError: ``progress`` raised it.
    """
    import torch

    torch.set_num_threads(threads)
    random.seed(seed)
    torch.manual_seed(seed)
    renderer = Renderer.load(model_folder)
    rows, too_long = _rows(renderer, train_records[: parameters["max_train_records"]], parameters)
    if not rows:
        raise TrainingError(
            f"none of {len(train_records)} training records has at most "
            f"{parameters['max_tokens']} tokens; raise methods.lora.max_tokens"
        )
    val_rows, _ = _rows(renderer, val_records[:_MAX_VAL_RECORDS], parameters)
    model = _adapted(model_folder, parameters)
    device = next(model.parameters()).device

    steps = max(1, math.ceil(parameters["epochs"] * len(rows) / parameters["batch_records"]))
    optimizer, schedule = _optimizer(model, parameters, steps)
    every = math.ceil(steps / (evaluations + 1)) if evaluations and val_rows else steps
    val_loss: float | None = None
    losses: list[float] = []
    computed = tokens = 0
    started = time.monotonic()
    model.train()
    for step, batch_rows in zip(range(steps), _batches(rows, parameters, seed), strict=False):
        loss, seen = _backward(model, batch_rows, device)
        if not math.isfinite(loss):
            ids = ", ".join(row.record_id for row in batch_rows)
            raise TrainingError(f"loss is {loss} at step {step + 1} of {steps}; records: {ids}")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss, 4))
        computed += seen
        tokens += sum(len(row.ids) for row in batch_rows)
        if (step + 1) % every == 0 and step + 1 < steps:
            val_loss = _mean_loss(model, val_rows, device)
            model.train()
        progress(step + 1, steps, val_loss)
    seconds = time.monotonic() - started
    val_loss = _mean_loss(model, val_rows, device) if val_rows else None
    _save(model, adapter_folder, parameters["base_model"])
    return {
        "losses": losses,
        "val_loss": val_loss,
        "rows": len(rows),
        "rows_too_long": too_long,
        "steps": steps,
        "tokens": tokens,
        "computed_tokens": computed,
        "seconds": round(seconds, 1),
    }


def _rows(
    renderer: Renderer, records: Sequence[Record], parameters: Json
) -> tuple[list[Example], int]:
    rendered = [renderer.example(record) for record in records]
    fitting = [row for row in rendered if len(row.ids) <= parameters["max_tokens"]]
    return fitting, len(rendered) - len(fitting)


def _adapted(model_folder: Path, parameters: Json) -> Any:
    """The base model in bf16 with a fresh adapter on every linear layer but the head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with boundary(TrainingError, f"loading {model_folder} for training"):
        base = AutoModelForCausalLM.from_pretrained(
            str(model_folder),
            dtype=torch.bfloat16,
            attn_implementation=attention(),
            trust_remote_code=False,
            use_safetensors=True,
        )
        config = LoraConfig(
            r=parameters["rank"],
            lora_alpha=parameters["alpha_ratio"] * parameters["rank"],
            lora_dropout=parameters["dropout"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return get_peft_model(base, config).to(device)


def _optimizer(model: Any, parameters: Json, steps: int) -> tuple[Any, Any]:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=parameters["learning_rate"],
        weight_decay=parameters["weight_decay"],
    )
    warmup = math.ceil(parameters["warmup_ratio"] * steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def _batches(rows: list[Example], parameters: Json, seed: int) -> Iterator[list[Example]]:
    """Endless batches: every epoch sees each row once, in a new order."""
    order = random.Random(seed)
    short_first = parameters.get("curriculum") == "short_first"
    queue: list[Example] = sorted(rows, key=lambda row: len(row.ids)) if short_first else []
    while True:
        while len(queue) < parameters["batch_records"]:
            queue += order.sample(rows, len(rows))
        yield queue[: parameters["batch_records"]]
        queue = queue[parameters["batch_records"] :]


def _backward(model: Any, rows: Sequence[Example], device: Any) -> tuple[float, int]:
    """Accumulate the gradient of the mean loss per answer token; return loss and tokens."""
    answers = sum(len(row.ids) - row.answer_start for row in rows)
    total = 0.0
    computed = 0
    for part in split_rows(rows, _PACK_TOKENS):
        batch = pack(part)
        loss = summed_loss(model, batch, device) / answers
        loss.backward()
        total += float(loss.detach())
        computed += batch.tokens
    return total, computed


def summed_loss(model: Any, batch: Batch, device: Any) -> Any:
    """Cross entropy summed over the batch's answer tokens (a scalar tensor, nats).

    The head is computed only where an answer token is predicted: with a vocabulary of tens of
    thousands and mostly prompt tokens, computing it everywhere would cost more than the layers.
    """
    import torch

    logits = model(
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        batch=batch,
        logits_to_keep=batch.predict_at.to(device),
        use_cache=False,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits[0].float(), batch.targets.to(device), reduction="sum"
    )


def _mean_loss(model: Any, rows: Sequence[Example], device: Any) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        parts = split_rows(rows, _PACK_TOKENS)
        total = sum(float(summed_loss(model, pack(part), device)) for part in parts)
    return round(total / sum(len(row.ids) - row.answer_start for row in rows), 4)


def _save(model: Any, folder: Path, base_model: str) -> None:
    """Write the adapter; it names its base by id, not by this machine's path."""
    with boundary(TrainingError, f"writing the adapter to {folder}"):
        model.peft_config["default"].base_model_name_or_path = base_model
        # "auto" would ask the hub what the base's vocabulary is; embeddings are never trained here.
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
