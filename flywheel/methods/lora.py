"""Fine-tune a LoRA adapter on train records: loss on the final assistant turn only.

Records are rendered by the same template that serving uses and trained by the common loop
(`flywheel.methods.training`) with PEFT (Hu et al., 2021, arXiv:2106.09685). What leaves is a PEFT
adapter folder (safetensors) that vLLM loads, and a summary of the training. With ``quantization:
4bit`` the base's weights stand in 4 bits meanwhile (QLoRA: Dettmers et al., 2023,
arXiv:2305.14314); the adapter is served on the unquantised base all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flywheel.errors import TrainingError, boundary
from flywheel.methods import ranks, training
from flywheel.methods.training import Progress
from flywheel.storage import Storage
from flywheel.types import Json, Record

FOLDER = "adapter"
"""Where a trial keeps what `train` writes."""


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
    checkpoints: Storage | None = None,
) -> Json:
    """Train one adapter and write it to ``adapter_folder``.

    Args:
        model_folder: Weights (safetensors), config and tokenizer of the base model.
        train_records: The train split, in its order; ``max_train_records`` takes the first.
        val_records: The val split; the loss on its first 64 records is measured.
        parameters: A trial's parameters, named as in `flywheel.config.LoraConfig`.
        seed: Decides initialisation, order of rows and dropout.
        adapter_folder: Where the PEFT adapter goes.
        threads: CPU threads to compute with; Ray would leave a fractional share just one.
        progress: Told after each optimiser step.
        checkpoints: Where checkpoints are kept, and looked for to go on from; ``None``: nowhere.

    Returns:
        The summary of `flywheel.methods.training.fit`.

    Raises:
        TrainingError: No rows fit, the model has no such layers, 4 bits without a CUDA GPU, or the
            loss is not finite (names step and record ids).
        TrialStoppedError: ``progress`` ended the training.
    """
    preflight(model_folder, parameters)
    rows = training.prepare(model_folder, train_records, val_records, parameters, seed, threads)
    model = _adapted(model_folder, parameters)
    summary = training.fit(model, rows, parameters, seed, checkpoints, progress)
    if ranks.current().rank == 0:
        _save(model, adapter_folder, parameters["base_model"])
    return summary


def preflight(model_folder: Path, parameters: Json) -> None:
    """Refuse what cannot be trained here or served later, before any weights are loaded.

    What the model's architecture does not matter to, `flywheel.config.LoraConfig` has refused.

    Raises:
        TrainingError: 4 bits without a CUDA GPU; target modules that are no linear layers.
    """
    if parameters["quantization"] is not None:
        _require_4bit()
    wanted = parameters["target_modules"]
    if wanted is None:
        return
    there = linear_layers(model_folder)
    missing = ", ".join(sorted(set(wanted) - there))
    if missing:
        raise TrainingError(
            f"methods.lora.target_modules: {missing}: no such linear layer below the head in this "
            f"model; it has: {', '.join(sorted(there))}"
        )


def linear_layers(model_folder: Path) -> set[str]:
    """Names of the linear layers an adapter can stand on, as PEFT takes them; loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with boundary(TrainingError, f"reading the configuration in {model_folder}"):
        config = AutoConfig.from_pretrained(str(model_folder), trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def _require_4bit() -> None:
    from importlib.util import find_spec

    if training.device_name() != "cuda" or find_spec("bitsandbytes") is None:
        raise TrainingError(
            "methods.lora.quantization: 4bit needs a CUDA GPU and the package bitsandbytes, and "
            "this trainer lacks one of them; leave it out to train in bf16"
        )


def _adapted(model_folder: Path, parameters: Json) -> Any:
    """The base model with a fresh adapter, by default on every linear layer but the head."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    dtype = torch.bfloat16 if training.in_bf16(parameters["precision"]) else torch.float32
    device = training.device_name()
    if parameters["quantization"] is None:
        base = training.load_model(model_folder, dtype).to(device)
    else:
        base = training.load_model(
            model_folder, dtype, quantization_config=_in_4bit(dtype), device_map=device
        )
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=parameters["rank"],
        lora_alpha=parameters["alpha_ratio"] * parameters["rank"],
        lora_dropout=parameters["dropout"],
        target_modules=list(parameters["target_modules"] or []) or "all-linear",
        use_rslora=parameters["rslora"],
        init_lora_weights=parameters["init"] if parameters["init"] != "default" else True,
        task_type="CAUSAL_LM",
    )
    with boundary(TrainingError, f"putting an adapter on {model_folder}"):
        return get_peft_model(base, config)


def _in_4bit(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _save(model: Any, folder: Path, base_model: str) -> None:
    """Write the adapter; it names its base by id, not by this machine's path."""
    with boundary(TrainingError, f"writing the adapter to {folder}"):
        model.peft_config["default"].base_model_name_or_path = base_model
        # "auto" would ask the hub what the base's vocabulary is; embeddings are never trained here.
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
