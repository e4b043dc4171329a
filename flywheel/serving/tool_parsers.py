"""Which of vLLM's tool parsers reads what a model family writes.

The chat template tells: it shows the model earlier calls in the same form in which the model makes
new ones, and fine-tuned models keep their family's template.
"""

from __future__ import annotations

FALLBACK = "hermes"
"""Reads what ``tools_prelude.jinja`` asks for, and is the form most families share."""
MARKS = (
    ("<|python_start|>", "llama4_pythonic"),
    ("<|channel|>", "openai"),
    ("<|START_ACTION|>", "cohere_command3"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call>", "seed_oss"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|action_start|>", "internlm"),
    ("<start_function_call>", "functiongemma"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_calls>", "jamba"),
    ("<|tool_call|>", "granite"),
    ("functools[", "phi4_mini_json"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ("<|start_header_id|>", "llama3_json"),
)
"""What a family's template holds, and its parser's name; the first that is there decides."""


def parser_of(template: str) -> str:
    """The name of the parser for models with this chat template."""
    return next((parser for mark, parser in MARKS if mark in template), FALLBACK)
