"""Which metrics a trial is scored by: asked for in the experiment file, checked before any work.

`asked` turns the file's list into plain JSON that trials carry, each metric with all its parameters
and, for a function of the user's own, the hash of its source; `bound` turns that JSON into metrics
wherever a trial is scored.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flywheel.config import MetricConfig
from flywheel.errors import ConfigError, FlywheelError
from flywheel.scoring.case import Metric
from flywheel.scoring.metrics import LABEL_METRICS, METRICS, TEXT_METRICS, TOOL_METRICS
from flywheel.types import Json, canonical_bytes, content_hash

DEFAULT = "default"
"""Stands for what is scored where an experiment names no metrics."""
RESERVED = frozenset({DEFAULT, "similarity", "tool_calling_correctness"})
"""Names that mean something else."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A metric with its parameters, and what its scores are called."""

    name: str
    metric: Metric
    parameters: Json

    @property
    def own(self) -> bool:
        """Whether it is a function of the user's, which may do anything."""
        return self.metric.applies is _always


def asked(configs: Sequence[str | MetricConfig]) -> list[Json]:
    """What the experiment file asks for, as trials carry it.

    Raises:
        ConfigError: There is no such metric, or a parameter is wrong.
    """
    found: dict[str, Json] = {}
    for place, config in enumerate(configs):
        entry = MetricConfig(metric=config) if isinstance(config, str) else config
        where = f"scoring.metrics.{place}"
        name = _name(entry, where)
        if name in found:
            raise ConfigError(f"{where}: {name} is there twice; give one a name of its own")
        found[name] = {"name": name, **_prepared(entry, where)}
    return list(found.values())


def bound(asked: Sequence[Json] | None, *, labels: bool) -> list[Bound]:
    """The metrics themselves.

    Args:
        asked: From `asked`; ``None`` for the defaults.
        labels: Whether the workload answers with one of a few classes.

    Raises:
        FlywheelError: A function of the user's own is not here what it was where the run began.
    """
    found = []
    every: Sequence[Json] = [{"metric": DEFAULT}] if asked is None else asked
    for entry in every:
        if entry["metric"] == DEFAULT:
            names = TOOL_METRICS + (LABEL_METRICS if labels else TEXT_METRICS)
            found += [_default(name) for name in names]
        else:
            metric = METRICS.get(entry["metric"]) or _here(entry)
            found.append(Bound(entry["name"], metric, entry["parameters"]))
    return list({one.name: one for one in found}.values())


def models(asked: Sequence[Json]) -> list[str]:
    """The embedding models that these metrics look at."""
    wanted = (entry for entry in asked if entry["metric"] in METRICS)
    return sorted({e["parameters"]["model"] for e in wanted if METRICS[e["metric"]].embeds})


def own(asked: Sequence[Json]) -> list[Json]:
    """The metrics that are functions of the user's own."""
    return [entry for entry in asked if "source" in entry]


def _default(name: str) -> Bound:
    parameters = _parameters(METRICS[name].judge)
    return Bound(name, METRICS[name], {p.name: p.default for p in parameters})


def _name(entry: MetricConfig, where: str) -> str:
    own = entry.metric.rpartition(":")[2].rpartition(".")[2]
    name = entry.name or own
    if entry.metric == DEFAULT:
        if entry.name or entry.parameters:
            raise ConfigError(f"{where}: {DEFAULT} stands for several metrics; give it nothing")
        return DEFAULT
    if name in RESERVED or (name in METRICS and name != entry.metric):
        raise ConfigError(f"{where}.name: {name!r} means another metric; choose another name")
    return name


def _prepared(entry: MetricConfig, where: str) -> Json:
    """The metric, its parameters complete and checked, and the hash of a user's own source."""
    if entry.metric == DEFAULT:
        return {"metric": DEFAULT}
    told: Json = {"metric": entry.metric}
    if ":" in entry.metric:
        metric, told["source"] = _own(entry.metric, f"{where}.metric")
    elif entry.metric in METRICS:
        metric = METRICS[entry.metric]
    else:
        allowed = ", ".join([DEFAULT, *METRICS])
        raise ConfigError(
            f"{where}.metric: there is no {entry.metric!r}; allowed: {allowed}, or "
            "module:function for one of your own"
        )
    values = _checked(metric.judge, entry.parameters, f"{where}.parameters")
    try:
        told["parameters"] = metric.prepare(**values)
        canonical_bytes(told)
    except ValueError as error:
        raise ConfigError(f"{where}.parameters.{error}") from None
    except TypeError:
        raise ConfigError(f"{where}.parameters: must be JSON, defaults included") from None
    return told


def _parameters(judge: Callable[..., Any]) -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [p for p in inspect.signature(judge).parameters.values() if p.kind is keyword]


def _checked(judge: Callable[..., Any], given: Json, where: str) -> Json:
    """The values of all of a function's keyword-only parameters, by their types."""
    known = {parameter.name: parameter for parameter in _parameters(judge)}
    for name in given:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ConfigError(f"{where}.{name}: there is no such parameter; allowed: {allowed}")
    hints = get_type_hints(inspect.unwrap(judge), include_extras=True)
    values = {}
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{where}.{name}: is required and missing")
        if name not in given:
            values[name] = parameter.default
            continue
        try:
            values[name] = TypeAdapter(hints.get(name, Any)).validate_python(given[name])
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ConfigError(f"{where}.{name}: {said} (got {given[name]!r:.80})") from None
    return values


def _own(path: str, where: str) -> tuple[Metric, str]:
    """A user's own function as a metric, and the hash of its module's source."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 -- whatever a user's module does when it is imported
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: {module_name} cannot be imported ({said:.200})") from None
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise ConfigError(f"{where}: {module_name} has no function {name!r}")
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    if not kinds or kinds[0] > inspect.Parameter.POSITIONAL_OR_KEYWORD or _keywordless(kinds[1:]):
        raise ConfigError(
            f"{where}: {name} must take a case, and parameters by keyword only: "
            f"def {name}(case, *, ...)"
        )
    return Metric(_always, function), _source(module, where)


def _keywordless(kinds: Sequence[Any]) -> bool:
    return any(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds)


def _always(record: Any) -> bool:
    return True


def _source(module: ModuleType, where: str) -> str:
    path = inspect.getsourcefile(module) or ""
    try:
        return content_hash(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{where}: the source of {module.__name__} cannot be read") from None


def _here(entry: Json) -> Metric:
    metric, source = _own(entry["metric"], entry["name"])
    if source != entry["source"]:
        module = entry["metric"].partition(":")[0]
        raise FlywheelError(
            f"the metric {entry['name']}: {module} is not the same here as where the run began; "
            "put the same file wherever trials run"
        )
    return metric
