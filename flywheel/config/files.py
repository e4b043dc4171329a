"""From a YAML file with overrides to an `Experiment`, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flywheel.config.experiment import Experiment
from flywheel.errors import ConfigError
from flywheel.mistakes import explained
from flywheel.types import Json


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: A YAML file.
        overrides: ``key=value`` with a dotted key and a YAML value: ``methods.lora.rank=[8,16]``.

    Raises:
        ConfigError: The file cannot be read or a field is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of fields, not {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return validate(data, str(path))


def validate(data: Json, source: str) -> Experiment:
    """Check a parsed experiment; ``source`` names it in errors.

    Raises:
        ConfigError: A field is wrong, missing or unknown.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        found = explained(source, error.errors(), Experiment.model_json_schema())
        raise ConfigError("\n".join(found)) from None


def schema() -> Json:
    """JSON Schema of an experiment file, from which editors complete it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | (
        Experiment.model_json_schema()
    )


def dump(experiment: Experiment) -> str:
    """The complete experiment as YAML, defaults filled in."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def secret(name: str | None) -> str:
    """Read a key from the environment by name.

    Raises:
        ConfigError: The variable is not set.
    """
    if name is None:
        return "none"
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"api_key_env: the environment variable {name} is not set")
    return value


def _apply(data: Json, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must look like key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {_one_line(error)}") from None
    *parents, last = key.split(".")
    place: Any = data
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_index(place, part, override)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--set {override}: {where} is {place!r}, which has no fields")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "nothing: the list is empty"
        raise ConfigError(f"--set {override}: {part!r} is no position; allowed: {allowed}")
    return int(part)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
