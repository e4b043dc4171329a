"""How many tokens a few-shot prompt may have, and how many it has.

For weights served here both are exact: the engine's context length, and the candidate's own
tokenizer and chat template. An endpoint's tokenizer is not to be had, so its prompts are counted
by an estimate that errs upwards, against the limit the experiment file gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.errors import EngineError, boundary
from flywheel.rendering import Renderer
from flywheel.types import Json, json_text

_PIECES = re.compile(
    r"(?P<word>[A-Z]?[a-z]+)|(?P<capitals>[A-Z]+)|(?P<digit> ?[0-9])"
    r"|(?P<marks>[!-/:-@\[-`{-~]+)|(?P<other>[^\x00-\x7f])"
)
_PER_TOKEN = {"word": 3, "capitals": 2, "digit": 1, "marks": 2, "other": 0.5}
"""Characters that one token covers at least, by kind of piece."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The tokens that prompt and answer may have together, and how prompts are counted."""

    context: float
    """Infinite where no limit is known."""
    count: Callable[[Json], float]
    """Tokens of a request's prompt; infinite where the chat template refuses it."""
    basis: str
    """``tokenizer``, ``estimate`` or ``no limit``."""


def of_weights(folder: Path, engine: Json, most: int | None) -> Budget:
    """The budget of a model served here.

    Args:
        folder: Its config and tokenizer.
        engine: vLLM's arguments; ``max_model_len`` goes before what the model's config says.
        most: ``max_context_tokens`` of the experiment file.

    Raises:
        TrainingError: The tokenizer or its chat template cannot be loaded.
        EngineError: The model's config cannot be read.
    """
    given = engine.get("max_model_len")
    own = given if isinstance(given, int) and given > 0 else _context_length(folder)
    context = min((limit for limit in (own, most) if limit), default=math.inf)
    return Budget(context, _Rendered(Renderer.load(folder)), "tokenizer")


def of_endpoint(most: int | None) -> Budget:
    """The budget of a model served elsewhere, by `estimate`."""
    if most is None:
        return Budget(math.inf, lambda body: 0, "no limit")
    return Budget(most, estimate, "estimate")


def estimate(body: Json) -> int:
    """Tokens of a request's messages and tools, rather too many than too few.

    One for every three letters of a word begun, two capitals, two punctuation marks, and for each
    digit; two for a character beyond ASCII. It is counted over the JSON text, whose names and
    quotes stand for what a chat template adds. Against the tokenizers of SmolLM2 and Qwen2.5 that
    is 1.4 to 3.6 times the true figure for logged requests and 0.95 to 1 times for digits and hex;
    random letters and emoji alone may have half as many again.
    """
    text = json_text([body["messages"], body.get("tools") or []])
    return sum(
        math.ceil(len(piece[0]) / _PER_TOKEN[piece.lastgroup or ""])
        for piece in _PIECES.finditer(text)
    )


class _Rendered:
    """Counts tokens as the engine will: same template, same tokenizer."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def __call__(self, body: Json) -> float:
        from jinja2 import TemplateError

        try:
            return len(self.renderer.prompt_ids(body["messages"], body.get("tools") or ()))
        except TemplateError:  # the engine would refuse it too, for this record alone
            return math.inf


def _context_length(folder: Path) -> int | None:
    from transformers import AutoConfig

    with boundary(EngineError, f"reading the config of {folder}"):
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        return getattr(config.get_text_config(), "max_position_embeddings", None)
