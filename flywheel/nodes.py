"""Whether the nodes of a cluster can work together: the same packages, and the same storage.

The driver leaves a file in the storage, then a task on every node that is alive looks for it,
writes one beside it, and tells its versions. So a folder that all nodes mount is told from one that
each has for itself, whatever its path says. Of a node that joins later, whatever is to work there
compares the versions first.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flywheel import versions
from flywheel.cluster import Cluster
from flywheel.errors import ClusterError, StorageError
from flywheel.storage import Storage
from flywheel.types import Json

_ANSWER_S = 120.0
"""A node's first worker imports Ray on a cold disk; longer than this is no answer."""
_DRIVER_ONLY = {"mlflow"}
_IN_RAYS_COPY = "/runtime_resources/working_dir_files/"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node says."""

    node: str
    """Its address."""
    versions: Mapping[str, str]
    storage: str = ""
    """Why it cannot use the storage; empty if it can."""


def check(cluster: Cluster, storage: Storage) -> list[str]:
    """Refuse a cluster whose nodes differ in packages or do not share the storage.

    Returns:
        What the user should know all the same.

    Raises:
        ClusterError: Names packages, versions, nodes; or the nodes that do not see the storage.
        StorageError: The driver itself cannot write there.
    """
    if cluster.ours:
        return []
    mark = storage.at(f".nodes-{uuid.uuid4().hex}")
    mark.write_bytes("driver", b"")
    try:
        answers = _ask(mark)
    finally:
        mark.remove("")
    require_same(versions.installed(), answers)
    require_shared(storage, answers)
    if storage.local and _IN_RAYS_COPY in storage.url:
        return [
            f"storage {storage.url} lies in Ray's own copy of the working directory, which Ray "
            "removes some time after the job; name an absolute path or a URL"
        ]
    return []


def require_same(here: Mapping[str, str], answers: Sequence[Answer]) -> None:
    """See that every node has the driver's versions.

    Raises:
        ClusterError: One sentence for each package that differs.
    """
    found = []
    names = dict.fromkeys([*here, *(name for answer in answers for name in answer.versions)])
    for name in (name for name in names if name not in _DRIVER_ONLY):
        others: dict[str, list[str]] = {}
        for answer in answers:
            if answer.versions.get(name) != here.get(name):
                others.setdefault(answer.versions.get(name, "missing"), []).append(answer.node)
        if others:
            told = "; ".join(f"{version} on {', '.join(at)}" for version, at in others.items())
            found.append(f"{name} is {here.get(name, 'missing')} at the driver, but {told}")
    if found:
        raise ClusterError(
            "the nodes' packages differ from the driver's; use one image or environment on all: "
            + ". ".join(found)
        )


def require_here(driver: Mapping[str, str]) -> None:
    """See that this process, whose node may have joined since, has the driver's versions.

    Raises:
        ClusterError: As of `require_same`.
    """
    import ray

    here = versions.installed()
    if here != driver:
        mine = ray.get_runtime_context().get_node_id()
        found = (_name(node) for node in ray.nodes() if node["NodeID"] == mine)
        require_same(driver, [Answer(node, here) for node in found])


def require_shared(storage: Storage, answers: Sequence[Answer]) -> None:
    """See that every node can use the storage.

    Raises:
        ClusterError: Names the nodes that cannot, and why.
    """
    blind: dict[str, list[str]] = {}
    for answer in answers:
        if answer.storage:
            blind.setdefault(answer.storage, []).append(answer.node)
    if blind:
        told = "; ".join(f"{why} on {', '.join(at)}" for why, at in blind.items())
        raise ClusterError(
            f"storage: {storage.url}: not all nodes share it ({told}); name a folder that every "
            "node mounts at this path, or a URL (s3://bucket/runs)"
        )


def _ask(mark: Storage) -> list[Answer]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {}
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = _name(node)
        asked[look.options(scheduling_strategy=there).remote(mark, name)] = name
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    if silent:
        names = ", ".join(asked[one] for one in silent)
        raise ClusterError(f"no answer within {_ANSWER_S:.0f} s from: {names}")
    answers = []
    for one in ready:
        try:
            answers.append(ray.get(one))
        except RayError as error:  # flywheel is missing there, mostly
            first = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise ClusterError(f"flywheel cannot work on {asked[one]}: {first}") from None
    return sorted(answers, key=lambda answer: answer.node)


def _name(node: Json) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _look(mark: Storage, name: str) -> Answer:
    """Look for the driver's file and write one beside it; runs on a node."""
    try:
        trouble = "" if mark.exists("driver") else "what the driver wrote is not seen"
        if not trouble:
            mark.write_bytes(uuid.uuid4().hex, b"")
    except StorageError as error:
        trouble = str(error)
    return Answer(name, versions.installed(), trouble)
