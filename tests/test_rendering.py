"""One template for training and serving: tools reach a model whose own template has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import TrainingError
from flywheel.rendering import Renderer, query_of
from flywheel.scoring.text import text_of
from flywheel.testing import TRACK_ORDER, sample_record, text_reply, tiny_model, tool_reply
from flywheel.types import Json, Record

CALL = '<tool_call>\n{"name": "track_order", "arguments": {"order_id": "A-1"}}\n</tool_call>'


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """A model whose template has no place for tools."""
    return Renderer.load(tiny_model(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """A model whose template renders tools itself."""
    return Renderer.load(tiny_model(tmp_path_factory.mktemp("able"), tools=True))


def said(renderer: Renderer, messages: list[Json], tools: list[Json] | None = None) -> str:
    return str(renderer.tokenizer.decode(renderer.prompt_ids(messages, tools or [])))


def user(text: Any) -> Json:
    return {"role": "user", "content": text}


def tool(name: str, **fields: Any) -> Json:
    return {"type": "function", "function": {"name": name, **fields}}


def test_a_template_with_a_place_for_tools_is_used_as_it_is(able: Renderer) -> None:
    assert able.template == able.tokenizer.get_chat_template()
    text = said(able, [user("hi")], [TRACK_ORDER])
    assert '"name": "track_order"' in text
    assert "To call a tool" not in text


def test_a_template_without_gets_the_tools_as_lines_of_a_system_message(plain: Renderer) -> None:
    assert said(plain, [user("hi")], [TRACK_ORDER]) == (
        "<|im_start|>system\n"
        "Tools:\n"
        "- track_order(order_id, speed?: fast|slow, days?: integer (to look back))"
        " - Say where an order is\n"
        "To call a tool, answer with:\n<tool_call>\n"
        '{"name": "tool", "arguments": {"argument": "value"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("role", ["system", "developer"])
def test_tools_follow_what_the_system_message_says(plain: Renderer, role: str) -> None:
    messages = [{"role": role, "content": "Be brief."}, user("hi")]
    text = said(plain, messages, [TRACK_ORDER])
    assert text.startswith("<|im_start|>system\nBe brief.\n\nTools:\n- track_order(")
    assert text.count("Be brief.") == 1


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (tool("f"), "- f()"),
        (tool("f", description="Do it"), "- f() - Do it"),
        (tool("f", parameters=None), "- f()"),
        (tool("f", parameters={"type": "object"}), "- f()"),
        (tool("f", parameters={"properties": {"a": {}}, "required": ["a"]}), "- f(a)"),
        (tool("f", parameters={"properties": {"a": {"type": "string"}}}), "- f(a?)"),
        (tool("f", parameters={"properties": {"a": {"type": "array"}}}), "- f(a?: array)"),
        (tool("f", parameters={"properties": {"a": {"enum": [1, 2]}}}), "- f(a?: 1|2)"),
        (
            tool("f", parameters={"properties": {"a": {"type": ["string", "null"]}}}),
            "- f(a?: string|null)",
        ),
        (tool("f", parameters={"properties": {"z": {}, "a": {}}}), "- f(z?, a?)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_tool_is_one_line(plain: Renderer, one: Json, line: str) -> None:
    assert f"Tools:\n{line}\nTo call" in said(plain, [user("hi")], [one])


def test_without_tools_the_models_own_template_speaks_alone(plain: Renderer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("hi")]
    own = plain.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert said(plain, messages) == own
    assert "Tools" not in own


def test_earlier_calls_and_their_results_are_plain_turns(plain: Renderer) -> None:
    messages = [
        user("Where is A-1?"),
        tool_reply("track_order", {"order_id": "A-1"}),
        {"role": "tool", "tool_call_id": "call_0", "content": "on its way"},
    ]
    assert said(plain, messages, [TRACK_ORDER]).endswith(
        f"<|im_start|>assistant\n{CALL}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\non its way\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_call_after_text_stands_on_its_own_line(plain: Renderer) -> None:
    message = {**tool_reply("track_order", {"order_id": "A-1"}), "content": "Let me look."}
    assert f"Let me look.\n{CALL}<|im_end|>" in said(plain, [user("hi"), message], [TRACK_ORDER])


def test_logged_arguments_are_not_encoded_twice(plain: Renderer, able: Renderer) -> None:
    message = tool_reply("track_order", {"order_id": 'A-"1"', "days": 3})
    for renderer in (plain, able):
        text = said(renderer, [user("hi"), message], [TRACK_ORDER])
        assert r'"arguments": {"order_id": "A-\"1\"", "days": 3}' in text


def test_content_may_be_null_parts_or_text(plain: Renderer) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image_url"}, {"type": "text", "text": "lo"}]
    assert said(plain, [user(parts)]) == said(plain, [user("Hel\nlo")])
    assert said(plain, [user(None)]) == said(plain, [user("")])


def test_no_message_to_ask_about_is_an_empty_query() -> None:
    record = Record(0.0, "w", "c", {"messages": [{"role": "system", "content": "x"}]}, {})
    assert query_of(record) == ""


@pytest.mark.parametrize("renderer", ["plain", "able"])
@pytest.mark.parametrize(
    "record",
    [
        sample_record(),
        sample_record("Is it blue? 😀", text_reply("Ja, “blau”.")),
        sample_record(system="", tools=[TRACK_ORDER], answer=text_reply("No idea.")),
    ],
    ids=["call", "text", "text though tools"],
)
def test_an_example_is_the_served_prompt_then_the_answer_and_its_end_once(
    request: pytest.FixtureRequest, renderer: str, record: Record
) -> None:
    one: Renderer = request.getfixturevalue(renderer)
    got = one.example(record)
    prompt, answer = got.ids[: got.answer_start], got.ids[got.answer_start :]
    assert got.record_id == record.id
    assert prompt == one.prompt_ids(record.messages, record.tools)
    end = one.tokenizer.eos_token_id
    assert answer.count(end) == 1
    assert answer[-1] == end
    expected = CALL if record.answer.get("tool_calls") else text_of(record.answer)
    assert one.tokenizer.decode(answer[:-1]).strip() == expected


def test_traffic_that_spells_special_tokens_ends_no_answer_early(plain: Renderer) -> None:
    got = plain.example(sample_record(answer=text_reply("say <|im_end|> twice <|im_end|> ok")))
    assert "ok" in plain.tokenizer.decode(got.ids[got.answer_start :])


def templated(renderer: Renderer, template: str) -> Renderer:
    """The same tokenizer under another template."""
    from copy import deepcopy

    tokenizer = deepcopy(renderer.tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def ids(renderer: Renderer, text: str) -> list[int]:
    found: list[int] = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


BARE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_an_end_token_that_the_template_leaves_out_is_added(plain: Renderer) -> None:
    bare = templated(plain, BARE)
    got = bare.example(sample_record("hi", text_reply("ho")))
    assert got.ids[got.answer_start :] == [*ids(bare, "ho"), bare.tokenizer.eos_token_id]


def test_a_template_that_rewrites_the_prompt_cannot_be_trained_on(plain: Renderer) -> None:
    fickle = templated(plain, "{{ messages | length }}" + plain.tokenizer.chat_template)
    record = sample_record("hi", text_reply("ho"))
    with pytest.raises(TrainingError, match=f"record {record.id}.*renders the prompt differently"):
        fickle.example(record)


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TrainingError, match=re.escape(f"loading the tokenizer of {tmp_path}")):
        Renderer.load(tmp_path)


def test_a_tokenizer_without_a_chat_template_is_told(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TrainingError, match="chat"):
        Renderer.load(folder)


def test_real_traffic_renders_with_tools_in_logged_order(
    plain: Renderer, shared_data: Path
) -> None:
    import json

    path = sorted((shared_data / "assistant_router").glob("*.jsonl"))[0]
    with path.open() as lines:
        raw = next(r for r in map(json.loads, lines) if r["request"].get("tools"))
    record = Record(0.0, "w", "c", raw["request"], raw["response"])
    names = [t["function"]["name"] for t in record.tools]
    text = said(plain, record.messages, record.tools)
    assert re.findall(r"^- (\w+)\(", text, re.MULTILINE) == names
    assert plain.example(record).answer_start > 0
