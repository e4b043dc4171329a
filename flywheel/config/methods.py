"""What is tried with a candidate: base, few-shot and fine-tuning, and where they are searched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flywheel.config.section import Section
from flywheel.spaces import Searched, Space, extremes

SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks vLLM has kernels for."""

Count = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
SystemPrompt = Space[str | None]
"""A text file whose content replaces the system message; ``null`` leaves production's."""


class BaseConfig(Section, Searched):
    """Replay production's prompt, unchanged but for what is said here."""

    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message; ``null`` leaves production's."""


class IclConfig(Section, Searched):
    """Few-shot prompting with training records. A list is a grid: one trial per combination."""

    examples: Space[Count] = 3
    """How many stand in a prompt; fewer where that many do not fit the context window."""
    min_examples: Annotated[int, Field(ge=0, le=64)] = 1
    """Results count the records whose prompts have room for fewer than this."""
    selection: Space[Literal["semantic_similarity", "lexical", "uniform_distribution"]] = (
        "semantic_similarity"
    )
    """Examples are the training records whose queries lie nearest by an embedding model's cosine,
    or by BM25, which needs none; or each class gets equally many, whatever the query."""
    embedding_model: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    """For ``semantic_similarity``; with ``null`` that is ``lexical``."""
    relevance_ratio: Space[Share] = 1.0
    """Share of the examples that are simply the nearest. The rest show classes not shown yet, each
    by its own nearest record: 0.7 of 3 are the 2 nearest and 1 of another class. Not for
    ``uniform_distribution``, which knows no nearest."""
    order: Space[Literal["nearest_last", "nearest_first"]] = "nearest_last"
    """Which example stands beside the query."""
    max_context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that prompt and answer may have together. Default: what the engine takes, for weights
    served here; no limit for endpoints, whose prompts are counted by a cautious estimate."""
    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message; ``null`` leaves production's."""

    @model_validator(mode="after")
    def _consistent(self) -> IclConfig:
        fewest = min(extremes(self.examples))
        if self.min_examples > fewest:
            raise ValueError(f"min_examples {self.min_examples} is more than examples ({fewest})")
        only_uniform = set(extremes(self.selection)) == {"uniform_distribution"}
        if only_uniform and extremes(self.relevance_ratio) != [1.0]:
            raise ValueError("uniform_distribution knows no nearest; relevance_ratio is not for it")
        return self

    @property
    def semantic(self) -> bool:
        """Whether any trial needs the embedding model."""
        wanted = "semantic_similarity" in extremes(self.selection)
        return wanted and self.embedding_model is not None


Rank = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class TrainerConfig(Section, Searched):
    """What methods with weights to learn have in common."""

    epochs: Space[Positive] = 2.0
    steps: Space[Annotated[int, Field(ge=1)] | None] = None
    """Optimiser steps, in place of ``epochs``."""
    schedule: Space[Literal["linear", "cosine", "constant"]] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_ratio: Space[Annotated[float, Field(ge=0, lt=1)]] = 0.1
    weight_decay: Space[Annotated[float, Field(ge=0)]] = 0.0
    max_train_records: Space[Annotated[int, Field(ge=1)] | None] = None
    """Train on at most this many records."""
    class_balance: Space[Literal["natural", "equal"]] = "natural"
    """``equal``: as many rows of each class, those of rare classes repeated; the number of rows
    stays."""
    curriculum: Space[Literal["none", "short_first"]] = "none"
    """``short_first``: the first epoch sees short examples before long ones."""
    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message, in training and in eval; ``null``
    leaves production's."""
    batch_records: Space[Annotated[int, Field(ge=1)]] = 16
    """Training examples per optimiser step."""
    batch_tokens: Space[Annotated[int, Field(ge=16)] | None] = None
    """Tokens of the rows of one optimiser step, in place of ``batch_records``."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longer training examples are left out and counted."""
    pack_tokens: Annotated[int, Field(ge=16)] = 1024
    """Tokens computed at a time; a step's gradient accumulates over as many packs as it takes."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """``auto`` computes in bf16 where the device can."""
    validations: Annotated[int, Field(ge=1)] = 4
    """How often the validation loss is measured, evenly over the training, at its end too. Where a
    scheduler goes by it and this says nothing else, 9 times."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without a lower loss, and keep the weights of the lowest;
    ``null``: train to the end and keep the last."""
    checkpoint_every_s: Annotated[float, Field(ge=0)] | None = 60.0
    """Seconds between checkpoints, from which a killed training goes on; ``null`` writes none."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    accelerator: str | None = None
    """Ray accelerator type to insist on, e.g. ``A100``."""


_UNSERVABLE = {
    "use_dora": "vLLM cannot serve DoRA; use plain LoRA, or rslora",
    "modules_to_save": "vLLM serves adapters only, no copies of whole modules; the method `full` "
    "trains everything",
    "lora_bias": "vLLM serves no adapters with biases",
    "layer_replication": "vLLM serves no replicated layers",
    "init_lora_weights": "say init",
}
"""PEFT options that would train well and then not be served, each with why."""


class LoraConfig(TrainerConfig):
    """LoRA fine-tuning (Hu et al., 2021, arXiv:2106.09685). A list is a grid."""

    rank: Space[Rank] = 16
    alpha_ratio: Space[Positive] = 2.0
    """alpha = alpha_ratio x rank, whatever rank a trial has."""
    dropout: Space[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    learning_rate: Space[Positive] = 1e-3
    target_modules: tuple[str, ...] | None = None
    """Names of the linear layers to adapt (``q_proj``, ...); default: all but the head."""
    rslora: Space[bool] = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski, 2023,
    arXiv:2312.03732)."""
    init: Space[str] = "default"
    """``default``, ``gaussian`` or ``orthogonal``."""
    quantization: Literal["4bit"] | None = None
    """QLoRA: hold the base's weights in 4 bits while training; needs a CUDA GPU, bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _no_unservable_option(cls, data: Any) -> Any:
        for name, reason in _UNSERVABLE.items():
            if isinstance(data, dict) and data.get(name):
                raise ValueError(f"{name}: {reason}")
        return data

    @model_validator(mode="after")
    def _can_be_trained(self) -> LoraConfig:
        for init in extremes(self.init):
            if init not in ("default", "gaussian", "orthogonal"):
                raise ValueError(
                    f"init {init!r}: allowed are default, gaussian, orthogonal; vLLM serves no "
                    "initialisation that changes the base's weights (PiSSA, OLoRA, CorDA, LoftQ)"
                )
        if self.quantization and self.gpus == 0:
            raise ValueError("quantization: 4bit needs a GPU, and gpus is 0")
        return self

    @model_validator(mode="after")
    def _servable(self) -> LoraConfig:
        for rank in extremes(self.rank):
            if rank not in SERVABLE_RANKS:
                allowed = ", ".join(map(str, SERVABLE_RANKS))
                raise ValueError(f"rank {rank} cannot be served by vLLM; allowed: {allowed}")
        return self


class FullConfig(TrainerConfig):
    """Fine-tuning of all weights of a small model. A list is a grid."""

    learning_rate: Space[Positive] = 5e-5


class MethodsConfig(Section):
    """Which methods to try; leave one out to skip it."""

    base: BaseConfig | None = None
    icl: IclConfig | None = None
    lora: LoraConfig | None = None
    full: FullConfig | None = None

    @model_validator(mode="after")
    def _any(self) -> MethodsConfig:
        if not self.chosen:
            raise ValueError("name at least one method: base, icl, lora or full")
        return self

    @property
    def chosen(self) -> list[str]:
        """Names of the methods to try."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]
