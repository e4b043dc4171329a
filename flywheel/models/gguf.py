"""GGUF file -> model folder in safetensors (bf16), with what transformers' reader loses put back.

Runs as ``python -m flywheel.models.gguf FILE FOLDER``. What is restored, by the tokenizer family
that the file names (``tokenizer.ggml.pre``):

- how text is cut before byte-pair merging, and its Unicode normalisation: the reader falls back to
  GPT-2's rule, which cuts white space before digits differently (read off the published
  ``tokenizer.json`` of SmolLM2 and Qwen2.5);
- every token that ends an answer: a GGUF file has room for one, Qwen2.5 publishes two;
- the context length in the tokenizer's configuration;
- tied embeddings: Qwen2.5-0.5B publishes one matrix for input and output; the GGUF file carries it
  twice, quantised differently. The more precise one, the output's, is used for both.

The rounding of quantisation itself stays: these are not the published weights to the last bit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flywheel.types import Json

TIED = 0.2
"""Two matrices that differ by less than this share of their mean size are one, rounded twice."""


@dataclass(frozen=True)
class Family:
    """What a GGUF file only names of a tokenizer, in the terms of ``tokenizer.json``."""

    stops: tuple[str, ...]
    pieces: tuple[Json, ...]
    use_regex: bool
    normalizer: Json | None = field(default=None)

    def restore(self, tokenizer: Json) -> Json:
        """The tokenizer with its normaliser and pre-tokenizer put back."""
        bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        pieces = [*self.pieces, {**bytelevel, "use_regex": self.use_regex}]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": pieces}
        return {**tokenizer, "normalizer": self.normalizer, "pre_tokenizer": pre_tokenizer}


_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FAMILIES = {
    "smollm": Family(
        stops=("<|im_end|>",),
        pieces=({"type": "Digits", "individual_digits": True},),
        use_regex=True,
    ),
    "qwen2": Family(
        stops=("<|im_end|>", "<|endoftext|>"),
        pieces=(
            {
                "type": "Split",
                "pattern": {"Regex": _QWEN_SPLIT},
                "behavior": "Isolated",
                "invert": False,
            },
        ),
        use_regex=False,
        normalizer={"type": "NFC"},
    ),
}


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer, chat template included, into ``folder``.

    Raises:
        KeyError: The file's tokenizer family is not in `FAMILIES`.
    """
    from gguf import GGUFReader

    family = FAMILIES[GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()]
    tokenizer = _save_tokenizer(gguf, folder, family)
    _save_model(gguf, folder, [tokenizer.convert_tokens_to_ids(stop) for stop in family.stops])


def _save_tokenizer(gguf: Path, folder: Path, family: Family) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    restored = family.restore(json.loads(path.read_bytes()))
    path.write_text(json.dumps(restored, ensure_ascii=False), encoding="utf-8")
    return tokenizer


def _save_model(gguf: Path, folder: Path, stops: list[int]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    _tie(model)
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.save_pretrained(folder)


def _tie(model: Any) -> None:
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is embedding.weight:
        return
    difference = (output.weight - embedding.weight).abs().mean()
    if difference < TIED * output.weight.abs().mean():
        embedding.weight = output.weight
        model.config.tie_word_embeddings = True
        model.tie_weights()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
