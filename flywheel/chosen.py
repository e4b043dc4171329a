"""Serve what a person has chosen: one trial of a run, as it was ranked, as a Ray Serve application.

For a RayService or ``serve run`` (``import_path: flywheel.chosen:app``; see
``cluster/kuberay/rayservice.yaml``). The run's folder says which weights, engine arguments and
adapter; a `Choice` says which run and trial, and what the service may hold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from flywheel import config, folders
from flywheel.cluster import Cluster, describe
from flywheel.config import CandidateConfig
from flywheel.config.section import Section
from flywheel.errors import ConfigError, RequestError
from flywheel.folders import Desk
from flywheel.methods import full
from flywheel.mistakes import explained
from flywheel.serving.engine import EngineSpec, application
from flywheel.storage import Storage
from flywheel.types import Json, Trial


class Choice(Section):
    """What to serve; every field but the first three has a default."""

    storage: str
    """The experiment's storage: a folder or URL that all nodes reach."""
    run: str
    """Id of the run."""
    trial: str
    """Key of the trial: its folder's name below the run's ``trials/``."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the base model in requests; an adapter answers as ``<name>:<trial>``."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """Ray CPUs of one engine; default: as in the run."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of one engine; default: as in the run."""
    min_replicas: Annotated[int, Field(ge=1)] = 1
    """Engines that are always there."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Engines that Ray Serve may start while requests wait."""


def app(arguments: Json) -> Any:
    """The Ray Serve application of a `Choice` given as a mapping.

    Raises:
        ConfigError: A field of the choice is wrong, missing or unknown.
        RequestError: See `spec`.
    """
    try:
        choice = Choice.model_validate(arguments)
    except ValidationError as error:
        found = explained("args", error.errors(), Choice.model_json_schema())
        raise ConfigError("\n".join(found)) from None
    return application(spec(choice, describe(ours=False)))


def spec(choice: Choice, cluster: Cluster) -> EngineSpec:
    """The engine that serves the choice.

    Raises:
        RequestError: There is no such finished trial, or an engine alone cannot answer as it did.
    """
    desk = Desk(Storage(choice.storage), choice.run)
    folder = desk.trials.at(choice.trial)
    there = folder.exists("result.json")
    status = folder.read_json("result.json")["status"] if there else "missing"
    if status != "succeeded":
        raise RequestError(f"{folder.url}: a trial that succeeded is needed; this one is {status}")
    trial = folders.read_spec(folder)
    _require_servable(trial)
    model = _candidate(desk, trial).model_copy(update=_held(choice))
    if trial.method == "full":
        model = model.model_copy(update={"model": folder.at(full.FOLDER).url})
    lora = trial.method == "lora"
    adapters, rank = (desk.trials.url, int(trial.parameters["rank"])) if lora else ("", 0)
    found = EngineSpec.of(model, cluster.engine_needs(model), choice.run, adapters, rank)
    return replace(found, name=choice.name) if choice.name else found


def _require_servable(trial: Trial) -> None:
    """What is put into each request, nobody would put there."""
    if trial.method == "icl":
        raise RequestError(
            f"trial {trial.label}: its examples are chosen anew for each request, which an engine "
            "does not do; choose a trial of another method"
        )
    if trial.settings.get("system_prompt"):
        raise RequestError(
            f"trial {trial.label}: was ranked with a system prompt of its own, which an engine "
            "does not add; serve the trial with production's prompt, or send that prompt yourself"
        )


def _candidate(desk: Desk, trial: Trial) -> CandidateConfig:
    url = f"{desk.run.url}/experiment.yaml"
    data = yaml.safe_load(desk.run.read_bytes("experiment.yaml"))
    experiment = config.validate(data, url)
    for candidate in experiment.candidates:
        if candidate.title == trial.candidate and not candidate.remote:
            return candidate
    raise RequestError(f"{url}: has no candidate {trial.candidate} whose weights are served here")


def _held(choice: Choice) -> Json:
    """What the service may hold, where it differs from the run."""
    return choice.model_dump(
        include={"cpus", "gpus", "min_replicas", "max_replicas"}, exclude_none=True
    )
