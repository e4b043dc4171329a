"""What a model says where it was trained: the side of parity that needs torch and PEFT.

The model is loaded from what training left on disk and answers greedily, without vLLM. A trainer
does it at its end, while it holds its resources anyway; what it said waits in the trial's folder
for the engine (`flywheel.parity`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flywheel.config import ParityConfig
from flywheel.errors import TrainingError, boundary
from flywheel.parity import LIKELIEST, Generation
from flywheel.rendering import Renderer
from flywheel.types import Record

_TYPES = {"half": "float16", "float": "float32"}
"""vLLM's short names."""


class Base:
    """A base model outside the engine, asked as it is and with one adapter after another.

    It is loaded when it is first asked, and again after an adapter that broke: what that left of it
    is not known.
    """

    def __init__(self, folder: Path, dtype: str | None, threads: int) -> None:
        """Take what all adapters share.

        Args:
            folder: The base model.
            dtype: The engine's, if the experiment file names one.
            threads: CPU threads to compute with.
        """
        self.folder, self.dtype, self.threads = folder, dtype, threads
        self._model: Any = None

    def generate(
        self,
        adapter_folder: Path | None,
        records: Sequence[Record],
        limits: ParityConfig,
        context: float,
    ) -> list[Generation]:
        """Let the model answer the first records that fit.

        Args:
            adapter_folder: A PEFT adapter of it; ``None`` for the base itself.
            records: Where to take prompts from.
            limits: How many to answer, and how far.
            context: Tokens that prompt and answer may have together in the engine.

        Raises:
            TrainingError: No record fits, or model or adapter cannot be loaded.
        """
        renderer = Renderer.load(self.folder)
        asked = _that_fit(renderer, records, limits, context)
        with (
            boundary(TrainingError, f"answering with {adapter_folder or self.folder}"),
            self._adapted(adapter_folder) as model,
        ):
            prompts, adapted = list(asked.values()), adapter_folder is not None
            said = _greedy(model, renderer.tokenizer, prompts, limits.tokens, adapted)
        return [
            Generation(name, prompt, *one)
            for (name, prompt), one in zip(asked.items(), said, strict=True)
        ]

    @contextmanager
    def _adapted(self, adapter_folder: Path | None) -> Iterator[Any]:
        from peft import PeftModel

        base, self._model = self._model or _load(self.folder, self.dtype, self.threads), None
        if adapter_folder is None:
            yield base
        else:
            model: Any = PeftModel.from_pretrained(base, str(adapter_folder))
            yield model.to(base.device).eval()
            base = model.unload()
        self._model = base


def _that_fit(
    renderer: Renderer, records: Sequence[Record], limits: ParityConfig, context: float
) -> dict[str, list[int]]:
    """Token ids of prompts by record."""
    asked: dict[str, list[int]] = {}
    for record in records:
        prompt = renderer.prompt_ids(record.messages, record.tools)
        if len(asked) < limits.records and len(prompt) + limits.tokens <= context:
            asked[record.id] = prompt
    if not asked:
        raise TrainingError(
            f"parity: none of {len(records)} records has room for {limits.tokens} answer tokens in "
            f"a context of {context:g}; lower parity.tokens or raise engine.max_model_len"
        )
    return asked


def _load(folder: Path, dtype: str | None, threads: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    dtype = dtype or ("auto" if cuda else "bfloat16")
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=_TYPES.get(dtype, dtype),
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.to("cuda" if cuda else "cpu").eval()


def _greedy(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], tokens: int, adapted: bool
) -> list[tuple[list[int], list[dict[int, float]], list[float]]]:
    """Each prompt's answer, the likeliest tokens on the way, and how far the adapter moved it.

    One batch, padded on the left.
    """
    import torch
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[end] * (longest - len(p)) + p for p in prompts], device=model.device)
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    # A repository's own generation defaults (penalties, further stops) are not what serving uses.
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_logits=True,
    )
    model.generation_config = plain
    seen = seen.to(model.device)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=seen, generation_config=plain)
        likely = torch.stack(out.logits, 1).float().log_softmax(-1)
        moved = _moved(model, out.sequences, seen, likely) if adapted else None
    values, names = likely.topk(LIKELIEST)
    said = []
    for row, answer in enumerate(out.sequences[:, longest:].tolist()):
        length = answer.index(end) + 1 if end in answer else len(answer)
        places = zip(names[row, :length].tolist(), values[row, :length].tolist(), strict=True)
        likeliest = [{t: round(v, 4) for t, v in zip(*place, strict=True)} for place in places]
        change = [] if moved is None else moved[row, :length].tolist()
        said.append((answer[:length], likeliest, [round(nats, 4) for nats in change]))
    return said


def _moved(model: Any, sequences: Any, seen: Any, likely: Any) -> Any:
    """How much less or more likely each answer token is without the adapter: nats, [rows, tokens].

    Args:
        model: With its adapter.
        sequences: Token ids of prompts and answers, [rows, prompt + answer].
        seen: Which tokens of the prompts are no padding, [rows, prompt].
        likely: Log-probabilities with the adapter, [rows, answer, vocabulary].
    """
    import torch

    answers = sequences[:, seen.shape[1] :]
    mask = torch.cat([seen, torch.ones_like(answers)], 1)
    with model.disable_adapter():
        logits = model(
            input_ids=sequences,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=answers.shape[1] + 1,
        ).logits
    without = logits[:, :-1].float().log_softmax(-1)
    chosen = answers.unsqueeze(-1)
    return (likely.gather(-1, chosen) - without.gather(-1, chosen)).squeeze(-1).abs()
