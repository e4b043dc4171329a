"""What lies in ``cluster/`` and beside it, parsed: what the tests of manifests look at."""

from __future__ import annotations

import re
import shlex
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

import flywheel
from flywheel import config
from flywheel.config import Experiment

ROOT = Path(__file__).parents[1]
KUBERAY_FOLDER = ROOT / "cluster" / "kuberay"
README = (ROOT / "cluster" / "README.md").read_text()
IMAGE = f"registry.example.com/flywheel:{flywheel.__version__}"
PINS = dict(re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.M))


class _Strict(yaml.CSafeLoader):
    """Refuses a key that stands twice, as ``kubectl`` does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key stands twice{node.start_mark}"
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, _Strict))


def document(*parts: str) -> dict[str, Any]:
    (one,) = documents(ROOT.joinpath(*parts).read_text())
    return one


MANIFESTS = {path.name: documents(path.read_text()) for path in KUBERAY_FOLDER.glob("*.yaml")}
NIGHTLY = next(d for d in MANIFESTS["cronjob.yaml"] if d["kind"] == "ConfigMap")["data"]
OBJECTS = [
    *((name, one) for name, found in sorted(MANIFESTS.items()) for one in found),
    ("cronjob.yaml, inside", documents(NIGHTLY["rayjob.yaml"])[0]),
]
"""All Kubernetes objects with their file, the RayJob too that a ConfigMap carries."""
RAY_CLUSTERS = {
    "raycluster.yaml": lambda spec: spec,
    "rayjob.yaml": lambda spec: spec["rayClusterSpec"],
    "rayservice.yaml": lambda spec: spec["rayClusterConfig"],
    "raycronjob.yaml": lambda spec: spec["jobTemplate"]["rayClusterSpec"],
}
"""Where the cluster stands in a kind's spec."""
LAUNCHER = {
    name: document(*name.split("/")) for name in ("ray-cluster.yaml", "cluster/on-premise.yaml")
}
COMPOSE = document("cluster", "local", "compose.yaml")


def ray_cluster(file: str) -> dict[str, Any]:
    (one,) = MANIFESTS[file]
    found: dict[str, Any] = RAY_CLUSTERS[file](one["spec"])
    return found


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"].get("name", ""): one for _, one in OBJECTS if one["kind"] == kind}


def values(data: Any, key: str) -> Iterator[Any]:
    """Every value of a key, however deep."""
    if isinstance(data, dict):
        for name, value in data.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(data, list):
        for item in data:
            yield from values(item, key)


def commands(text: str) -> list[list[str]]:
    """The arguments of every call of flywheel, in comments too."""
    joined = re.sub(r"\\\n[#\s]*", " ", text)
    found = re.findall(r"(?m)(?:python -m |-- |^    )flywheel ([a-z]+ [^'\"`\n|>]+)", joined)
    return [shlex.split(one, comments=True) for one in found]


def experiment(named: str, settings: list[str]) -> Experiment:
    """An experiment that a command names by its path in the image, on a volume, or from here."""
    if named.startswith("/etc/flywheel/"):
        text = of_kind("ConfigMap")["flywheel-experiments"]["data"][Path(named).name]
        return config.validate(yaml.safe_load(text), named)
    return config.load(ROOT / named.removeprefix("/app/"), settings)
