"""What is handed to Kubernetes, Docker and `ray up` is valid by their own schemas, and agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import flywheel
from flywheel.config import load

ROOT = Path(__file__).parents[1]
CRDS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7"
RAY_CLUSTER = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
MANIFESTS = [
    document
    for path in sorted((ROOT / "cluster").rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
KUBERAY = [document for document in MANIFESTS if document["apiVersion"].startswith("ray.io/")]
IMAGE = f"flywheel:{flywheel.__version__}"


def crd_schema(kind: str) -> dict[str, Any]:
    """The published schema of a kind, closed against unknown fields."""
    if not CRDS.is_dir():
        pytest.skip("shared/schemas does not lie beside this checkout")
    crd = yaml.safe_load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text())
    (v1,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = closed(v1["schema"]["openAPIV3Schema"])
    return schema


def closed(schema: Any) -> Any:
    """Refuse fields that an object does not name, as the API server's strict mode does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and "properties" in schema
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("manifest", KUBERAY, ids=lambda m: m["metadata"]["name"])
def test_kuberay_accepts_it(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, crd_schema(manifest["kind"]))


def test_an_unknown_field_is_refused() -> None:
    wrong = {**KUBERAY[0], "spec": {**KUBERAY[0]["spec"], "entryPoint": "x"}}
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        jsonschema.validate(wrong, crd_schema(wrong["kind"]))


def test_ray_up_accepts_the_cluster_file() -> None:
    ray = pytest.importorskip("ray")
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(RAY_CLUSTER, json.loads(schema.read_text()))


@pytest.mark.parametrize("manifest", KUBERAY, ids=lambda m: m["metadata"]["name"])
def test_the_entrypoint_runs_an_experiment_that_exists(manifest: dict[str, Any]) -> None:
    command = manifest["spec"]["entrypoint"].split()
    assert command[:4] == ["python", "-m", "flywheel", "run"]
    assert (ROOT / command[4]).is_file()


@pytest.mark.parametrize("manifest", KUBERAY, ids=lambda m: m["metadata"]["name"])
def test_the_storage_of_the_experiment_is_on_the_shared_volume(manifest: dict[str, Any]) -> None:
    experiment = load(ROOT / manifest["spec"]["entrypoint"].split()[4])
    for pod in pods(manifest):
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert f"{container['workingDir']}/{experiment.storage}" in mounts
    assert f"/app/{experiment.storage}" in " ".join(RAY_CLUSTER["docker"]["run_options"])


@pytest.mark.parametrize("manifest", KUBERAY, ids=lambda m: m["metadata"]["name"])
def test_the_cluster_goes_when_the_job_ends(manifest: dict[str, Any]) -> None:
    assert manifest["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("manifest", KUBERAY, ids=lambda m: m["metadata"]["name"])
def test_every_node_shares_one_image_and_one_volume(manifest: dict[str, Any]) -> None:
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    for pod in pods(manifest):
        (container,) = pod["containers"]
        assert container["image"] == IMAGE == RAY_CLUSTER["docker"]["image"]
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert "env" not in container, "keys come from a secret by reference"


def test_versions_agree_with_the_lock() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))
    for manifest in KUBERAY:
        assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-slim", dockerfile, re.M)
    assert f"-t {IMAGE} ." in dockerfile
    assert re.search(r"^USER 1000$", dockerfile, re.M)
