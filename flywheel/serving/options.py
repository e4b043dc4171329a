"""Whether vLLM takes the engine arguments of an experiment file, asked of vLLM's own types.

The names and types are those of its ``AsyncEngineArgs``. Importing them takes ten seconds, which
are not lost: whoever starts an engine imports vLLM anyway, and all nodes have the same one.
"""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from typing import Any

from flywheel.errors import ConfigError, EngineError, boundary
from flywheel.types import Json

OURS = {
    "chat_template": "the model's own template is used, or tools_prelude.jinja before it",
    "distributed_executor_backend": "engines run on Ray",
    "enable_lora": "follows from methods.lora",
    "max_lora_rank": "follows from methods.lora.rank",
    "model": "is the field model beside engine",
    "served_model_name": "is made from the model's name",
    "tool_call_parser": "is the field tool_parser beside engine",
}
"""Arguments that this program sets itself, and from what."""


def check(engines: dict[str, Json]) -> None:
    """Refuse engine arguments that vLLM would refuse.

    Args:
        engines: Arguments by the field of the experiment file that holds them.

    Raises:
        ConfigError: Names every wrong field and what is allowed, or the nearest name.
        EngineError: vLLM is not installed.
    """
    given = {where: arguments for where, arguments in engines.items() if arguments}
    if not given:
        return
    with boundary(EngineError, "reading vLLM's engine arguments"):
        found = problems(given)
    if found:
        raise ConfigError("\n".join(found))


def problems(engines: dict[str, Json]) -> list[str]:
    """What is wrong, one sentence each; imports vLLM."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    types = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    return [
        f"{where}.{name}: {problem}"
        for where, arguments in engines.items()
        for name, value in arguments.items()
        if (problem := _problem(name, value, types))
    ]


def _problem(name: str, value: Any, types: dict[str, Any]) -> str:
    if name in OURS:
        return f"is not for the experiment file: {OURS[name]}"
    if name not in types:
        near = get_close_matches(name, sorted(types.keys() - OURS.keys()), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"vLLM has no such engine argument{hint}"
    return _mismatch(value, types[name])


def _mismatch(value: Any, kind: Any) -> str:
    """Why a value is not of this type, or the empty string."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inside = "".join(f"{part}: " for part in first["loc"] if isinstance(part, str))
        return f"{inside if isinstance(value, dict) else ''}{first['msg']} (got {value!r:.80})"
    except (PydanticUserError, NameError):
        return ""  # a type that pydantic does not know; vLLM itself looks at it
    return ""
