"""Few-shot prompting: each prompt gets the training records whose queries lie nearest to its own.

Examples come from the train split only. They stand either as earlier turns of the conversation
(``turns``, for models served here) or as text in the system message (``system``, for endpoints:
OpenAI's protocol refuses a tool call in the history that no tool answered).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flywheel.errors import EngineError, boundary
from flywheel.methods import base
from flywheel.rendering import query_of
from flywheel.scoring.text import text_of
from flywheel.types import Json, Record

_HEADER = (
    "You are a helpful assistant that can answer questions and help with tasks.\n"
    "Here are some examples of how you should respond to different types of requests:"
)


def nearest(
    queries: Sequence[Record], pool: Sequence[Record], count: int, model_folder: Path
) -> list[list[Record]]:
    """For each query record, the ``count`` pool records nearest by cosine of embedded queries.

    Ties fall to the pool's order, so the same inputs give the same examples.

    Raises:
        EngineError: The embedding model cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import semantic_search

    with boundary(EngineError, f"embedding with {model_folder}"):
        model = SentenceTransformer(str(model_folder), device="cpu", trust_remote_code=False)
        embed = [
            model.encode([query_of(r) for r in records], show_progress_bar=False)
            for records in (queries, pool)
        ]
        hits = semantic_search(*embed, top_k=count)
    return [[pool[int(hit["corpus_id"])] for hit in found] for found in hits]


def request(record: Record, examples: Sequence[Record], style: str) -> Json:
    """The record's request with examples, nearest last so that it stands beside the query.

    Args:
        record: The eval record.
        examples: Training records, nearest first.
        style: ``turns`` or ``system``.
    """
    body = base.request(record)
    ordered = list(reversed(examples))
    build = _as_turns if style == "turns" else _as_system
    return {**body, "messages": build(record.messages, ordered)}


def _as_turns(messages: Sequence[Json], examples: Sequence[Record]) -> list[Json]:
    lead = [m for m in messages[:1] if m["role"] in {"system", "developer"}]
    turns: list[Json] = []
    for example in examples:
        turns += [{"role": "user", "content": query_of(example)}, _bare(example.answer)]
    return [*lead, *turns, *messages[len(lead) :]]


def _as_system(messages: Sequence[Json], examples: Sequence[Record]) -> list[Json]:
    text = "\n\n".join([_HEADER, *(_as_text(example) for example in examples)])
    if messages[0]["role"] in {"system", "developer"}:
        first = {**messages[0], "content": f"{text}\n\n{text_of(messages[0])}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _as_text(example: Record) -> str:
    seen = "".join(f"{m['role']}: {text_of(m)}\n\n" for m in example.messages)
    said = f"{example.answer.get('role', 'assistant')}: {text_of(example.answer)}"
    text = f"For example, if the conversation looks like this:\n{seen}\nThen you'll respond with:\n"
    calls = example.answer.get("tool_calls")
    return text + said + (f"\nTool calls:\n{json.dumps(calls, indent=2)}" if calls else "")


def _bare(answer: Json) -> Json:
    kept = {name: answer[name] for name in ("content", "tool_calls") if answer.get(name)}
    return {"role": "assistant", "content": None, **kept}
