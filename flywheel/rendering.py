"""One chat template renders a conversation for training and for serving, tools included.

A model's own template is used as it is when it has a place for tools. Where it has none (asked by
rendering with and without), ``tools_prelude.jinja`` is put in front of it: tools become lines of
the system message and calls become ``<tool_call>`` JSON, the Hermes form that vLLM's ``hermes``
parser reads back. The engine is given the same template text, so both sides see the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.errors import TrainingError, boundary
from flywheel.scoring.text import text_of
from flywheel.types import Json, Record

_PROBE_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "probe_tool_name",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Example:
    """A training row: token ids of a conversation, and where its answer starts."""

    record_id: str
    ids: list[int]
    answer_start: int
    """``ids[answer_start:]`` is what the model must learn to say, end-of-turn token included."""


def _shaped(message: Json) -> Json:
    """Shape one OpenAI message for chat templates as vLLM does: text content, arguments as objects.

    Logged arguments are JSON strings; a template would encode them a second time.
    """
    shaped = {**message, "content": text_of(message)}
    if message.get("tool_calls"):
        shaped["tool_calls"] = [_parsed_call(call) for call in message["tool_calls"]]
    return shaped


def query_of(record: Record) -> str:
    """What the user asked last: the query that few-shot search and the judge look at."""
    for message in reversed(record.messages):
        if message.get("role") == "user":
            return text_of(message)
    return ""


class Renderer:
    """A tokenizer with the template that serving uses too."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = _with_tools(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> Renderer:
        """Open the tokenizer of a model folder; remote code stays off.

        Raises:
            TrainingError: There is no usable tokenizer or chat template.
        """
        from transformers import AutoTokenizer

        with boundary(TrainingError, f"loading the tokenizer of {folder}"):
            return cls(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))

    def prompt_ids(self, messages: Sequence[Json], tools: Sequence[Json] = ()) -> list[int]:
        """Token ids of a conversation that waits for the assistant."""
        return self._ids(self._text(messages, tools, waiting=True))

    def example(self, record: Record) -> Example:
        """Render a record as a training row.

        Raises:
            TrainingError: The template changes the prompt once an answer follows, so that no
                boundary between prompt and answer exists.
        """
        prompt = self._text(record.messages, record.tools, waiting=True)
        whole = self._text([*record.messages, record.answer], record.tools, waiting=False)
        if not whole.startswith(prompt):
            raise TrainingError(
                f"record {record.id}: the model's chat template renders the prompt differently "
                "when an answer follows; it cannot be trained on final answers only"
            )
        start = self._ids(prompt)
        answer = self._ids(whole[len(prompt) :])
        return Example(record.id, start + self._up_to_end(answer), len(start))

    def _up_to_end(self, answer: list[int]) -> list[int]:
        """Drop what templates print after the end-of-turn token: serving never generates it."""
        end = self.tokenizer.eos_token_id
        return answer[: len(answer) - answer[::-1].index(end)] if end in answer else [*answer, end]

    def _text(self, messages: Sequence[Json], tools: Sequence[Json], *, waiting: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [_shaped(m) for m in messages],
                tools=list(tools) or None,
                chat_template=self.template,
                add_generation_prompt=waiting,
                tokenize=False,
            )
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _with_tools(tokenizer: Any) -> str:
    own = tokenizer.get_chat_template()
    messages = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(messages, tools=[_PROBE_TOOL], tokenize=False)
    if "probe_tool_name" in rendered:
        return str(own)
    prelude = Path(__file__).with_name("tools_prelude.jinja").read_text(encoding="utf-8")
    return prelude.rstrip("\n") + str(own)


def _parsed_call(call: Json) -> Json:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}
