"""Fine-tune all weights of a small model: loss on the final assistant turn only.

The same rows and the same loop as `flywheel.methods.lora`, with nothing frozen. Weights learn in
float32 (bf16 would swallow small updates) and leave in the dtype they came in, as a model folder of
their own: safetensors, config, tokenizer, chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flywheel.errors import TrainingError, boundary
from flywheel.methods import ranks, training
from flywheel.methods.training import Progress
from flywheel.storage import Storage
from flywheel.types import Json, Record

FOLDER = "model"
"""Where a trial keeps what `train` writes."""


def train(
    model_folder: Path,
    train_records: Sequence[Record],
    val_records: Sequence[Record],
    parameters: Json,
    seed: int,
    weights_folder: Path,
    threads: int,
    progress: Progress = lambda done, total, val_loss: None,
    *,
    checkpoints: Storage | None = None,
) -> Json:
    """Train all weights and write a model folder to ``weights_folder``.

    Args:
        model_folder: Weights (safetensors), config and tokenizer to start from.
        train_records: The train split, in its order; ``max_train_records`` takes the first.
        val_records: The val split; the loss on its first 64 records is measured.
        parameters: A trial's parameters, named as in `flywheel.config.FullConfig`.
        seed: Decides the order of rows, and dropout where the model has any.
        weights_folder: Where the model goes.
        threads: CPU threads to compute with.
        progress: Told after each optimiser step.
        checkpoints: Where checkpoints are kept, and looked for to go on from; ``None``: nowhere.

    Returns:
        The summary of `flywheel.methods.training.fit`.

    Raises:
        TrainingError: No rows fit, or the loss is not finite (names step and record ids).
        TrialStoppedError: ``progress`` ended the training.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    rows = training.prepare(model_folder, train_records, val_records, parameters, seed, threads)
    dtype = AutoConfig.from_pretrained(str(model_folder), trust_remote_code=False).dtype
    model = training.load_model(model_folder, torch.float32).to(training.device_name())
    summary = training.fit(model, rows, parameters, seed, checkpoints, progress)
    if ranks.current().rank:
        return summary
    with boundary(TrainingError, f"writing the model to {weights_folder}"):
        model.to(dtype or torch.float32).save_pretrained(str(weights_folder))
        tokenizer = AutoTokenizer.from_pretrained(str(model_folder), trust_remote_code=False)
        tokenizer.save_pretrained(str(weights_folder))
    return summary
