"""What is handed to Kubernetes is valid by its own schemas, and its parts agree with each other."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from flywheel.chosen import Choice
from flywheel.cli import app
from tests.cluster_files import (
    IMAGE,
    KUBERAY_FOLDER,
    MANIFESTS,
    NIGHTLY,
    OBJECTS,
    PINS,
    RAY_CLUSTERS,
    README,
    ROOT,
    commands,
    documents,
    experiment,
    of_kind,
    pods,
    ray_cluster,
    values,
)

CRDS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7"
KUBERNETES = "1.34"
OF_KUBERAY = [pair for pair in OBJECTS if pair[1]["apiVersion"] == "ray.io/v1"]
BUILT_IN = [pair for pair in OBJECTS if pair not in OF_KUBERAY]
CLUSTERS = pytest.mark.parametrize("file", sorted(RAY_CLUSTERS))


def called(pair: tuple[str, dict[str, Any]]) -> str:
    return f"{pair[0]}-{pair[1]['kind']}"


@cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """Validates by the published schema of a kind, closed against unknown fields."""
    if not CRDS.is_dir():
        pytest.skip("shared/schemas does not lie beside this checkout")
    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    (v1,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(v1["schema"]["openAPIV3Schema"]))


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


@pytest.mark.parametrize("pair", OF_KUBERAY, ids=called)
def test_kuberay_accepts_it(pair: tuple[str, dict[str, Any]]) -> None:
    kuberay(pair[1]["kind"]).validate(pair[1])


@pytest.mark.parametrize(
    "path",
    [
        ["spec"],
        ["spec", "rayClusterSpec"],
        ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"],
        ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0],
    ],
)
def test_an_unknown_field_is_refused_however_deep(path: list[str | int]) -> None:
    (wrong,) = documents((KUBERAY_FOLDER / "rayjob.yaml").read_text())
    place: Any = wrong
    for part in path:
        place = place[part]
    place["entryPoint"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        kuberay("RayJob").validate(wrong)


@pytest.mark.parametrize("pair", BUILT_IN, ids=called)
def test_kubernetes_accepts_it(pair: tuple[str, dict[str, Any]]) -> None:
    kubernetes_validate.validate(pair[1], KUBERNETES, strict=True)


def test_kubernetes_would_refuse_a_field_it_does_not_know() -> None:
    wrong = {**of_kind("CronJob")["flywheel-nightly"], "concurrency": "Forbid"}
    with pytest.raises(kubernetes_validate.ValidationError, match="concurrency"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_everything_lives_in_the_namespace_that_is_made() -> None:
    (made,) = of_kind("Namespace")
    outside = {"Namespace", "StorageClass"}
    homes = {one["metadata"]["namespace"] for _, one in OBJECTS if one["kind"] not in outside}
    assert homes == {made}


# -- commands and what they name -----------------------------------------------------------------

TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [
        ROOT / "ray-cluster.yaml",
        ROOT / "cluster" / "README.md",
        *sorted((ROOT / "cluster").rglob("*.yaml")),
    ]
}
CALLS = [(file, call) for file, text in TEXTS.items() for call in commands(text)]


@pytest.mark.parametrize(("file", "call"), CALLS, ids=lambda value: str(value)[:60])
def test_a_command_is_one_that_flywheel_has(file: str, call: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[call[0]]  # type: ignore[attr-defined]
    given = command.make_context(call[0], call[1:]).params
    if "experiment" in given:
        loaded = experiment(str(given["experiment"]), given["settings"] or [])
        assert loaded.storage.startswith(("/", "s3://")), f"{file}: all nodes must reach it"


def test_commands_were_found_where_they_stand() -> None:
    files = {file for file, _ in CALLS}
    jobs = {f"cluster/kuberay/{name}" for name in MANIFESTS if "job" in name}
    assert {"cluster/README.md", "cluster/kuberay/raycluster.yaml"} | jobs <= files


@pytest.mark.parametrize("pair", OF_KUBERAY, ids=called)
def test_an_entrypoint_is_one_call_of_flywheel(pair: tuple[str, dict[str, Any]]) -> None:
    for entrypoint in values(pair[1], "entrypoint"):
        assert entrypoint.startswith("python -m flywheel run ")
        assert len(commands(entrypoint)) == 1


@CLUSTERS
def test_storage_models_and_experiments_lie_on_volumes_of_every_node(file: str) -> None:
    wanted = {"/app/flywheel-data", "/app/cache"}
    for entrypoint in values(MANIFESTS[file], "entrypoint"):
        (call,) = commands(entrypoint)
        loaded = experiment(call[1], [call[3]] if "--set" in call else [])
        assert loaded.storage in wanted
        if not call[1].startswith("/app/"):
            wanted.add(str(Path(call[1]).parent))
    for pod in pods(ray_cluster(file)):
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert wanted <= set(mounts)
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    settings = of_kind("ConfigMap")["flywheel-settings"]["data"]
    assert all(value.startswith("/app/cache/") for value in settings.values())


def test_the_service_names_an_application_that_exists_and_its_arguments_are_known() -> None:
    from ray.serve.schema import ServeDeploySchema

    (text,) = values(MANIFESTS["rayservice.yaml"], "serveConfigV2")
    (served,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert served.import_path == f"{Choice.__module__}:app"
    Choice.model_validate(served.args)


# -- names, images, versions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "key", "kind"),
    [
        ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
        ("configMap", "name", "ConfigMap"),
        ("configMapRef", "name", "ConfigMap"),
    ],
)
def test_what_is_referred_to_is_there(reference: str, key: str, kind: str) -> None:
    named = {found[key] for _, one in OBJECTS for found in values(one, reference)}
    assert named
    assert named <= set(of_kind(kind))


def test_accounts_roles_and_storage_classes_are_there() -> None:
    accounts = {name for _, one in OBJECTS for name in values(one, "serviceAccountName")}
    binding = of_kind("RoleBinding")["flywheel-nightly"]
    assert accounts == set(of_kind("ServiceAccount")) == {binding["subjects"][0]["name"]}
    assert {binding["roleRef"]["name"]} == set(of_kind("Role"))
    wanted = {name for _, one in OBJECTS for name in values(one, "storageClassName")}
    assert wanted == set(of_kind("StorageClass"))
    assert all(c["spec"]["accessModes"] == ["ReadWriteMany"]
               for c in of_kind("PersistentVolumeClaim").values())  # fmt: skip


def test_secrets_are_only_referred_to_and_the_guide_makes_them() -> None:
    assert not of_kind("Secret")
    named = {found["name"] for _, one in OBJECTS for found in values(one, "secretRef")}
    assert named == {"flywheel-keys"}
    assert all(f"create secret generic {name} " in README for name in named)
    assert not [one for _, one in OBJECTS if list(values(one, "env"))], "no literal could be a key"


@CLUSTERS
def test_all_nodes_of_a_cluster_run_one_image_of_this_version(file: str) -> None:
    cluster = ray_cluster(file)
    gpus = any("nvidia.com/gpu" in str(pod) for pod in pods(cluster))
    images = {container["image"] for pod in pods(cluster) for container in pod["containers"]}
    assert images == {f"{IMAGE}-gpu" if gpus else IMAGE}
    assert cluster["rayVersion"] == PINS["ray"]


def test_the_guide_builds_the_images_and_installs_the_operator_of_the_schemas() -> None:
    ours = IMAGE.replace("registry.example.com", "$REGISTRY")
    for tag in (ours, f"{ours}-gpu"):
        assert f"docker build -f cluster/Dockerfile -t {tag} " in README
    assert f"kuberay-operator --version {CRDS.name.removeprefix('kuberay-')}." in README


# -- safety --------------------------------------------------------------------------------------


@CLUSTERS
def test_only_who_holds_the_token_may_run_code(file: str) -> None:
    assert ray_cluster(file)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("pair", OBJECTS, ids=called)
def test_no_pod_runs_as_root_or_may_become_it(pair: tuple[str, dict[str, Any]]) -> None:
    for containers in values(pair[1], "containers"):
        for container in containers:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
    pod_specs = [spec for spec in values(pair[1], "spec") if "containers" in spec]
    for pod in pod_specs:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


@CLUSTERS
def test_the_network_policy_governs_every_node(file: str) -> None:
    (policy,) = of_kind("NetworkPolicy").values()
    # The operator labels its pods with this; none of ours takes the label away.
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert not list(values(ray_cluster(file), "hostNetwork"))
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_the_network_policy_opens_the_ports_that_ray_has() -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT
    from ray.serve._private.constants import DEFAULT_HTTP_PORT

    (policy,) = of_kind("NetworkPolicy").values()
    opened = {port["port"] for ports in values(policy, "ports") for port in ports}
    assert opened == {DEFAULT_DASHBOARD_PORT, DEFAULT_HTTP_PORT}


# -- what machines cost --------------------------------------------------------------------------


@CLUSTERS
def test_gpus_are_asked_for_by_workers_which_tolerate_their_taint(file: str) -> None:
    head, *workers = pods(ray_cluster(file))
    assert "nvidia.com/gpu" not in str(head)
    for pod in workers:
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        gpus = int(resources["limits"].get("nvidia.com/gpu", 0))
        tolerated = [t["key"] for t in pod.get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if gpus else [])


def test_a_standing_cluster_grows_from_its_head_alone() -> None:
    cluster = ray_cluster("raycluster.yaml")
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu-1", "gpu-8"}
    assert all(group["replicas"] == group["minReplicas"] == 0 for group in groups.values())


@pytest.mark.parametrize("pair", OF_KUBERAY, ids=called)
def test_a_job_takes_its_cluster_with_it(pair: tuple[str, dict[str, Any]]) -> None:
    spec = pair[1]["spec"]
    job = spec.get("jobTemplate", spec)
    if "entrypoint" in job:
        assert job["shutdownAfterJobFinishes"] is True
        assert job["activeDeadlineSeconds"] < 24 * 3600


def test_both_ways_of_every_night_start_the_same_job_at_the_same_time() -> None:
    (by_operator,) = MANIFESTS["raycronjob.yaml"]
    (job,) = documents(NIGHTLY["rayjob.yaml"])
    plain = of_kind("CronJob")["flywheel-nightly"]
    assert job["spec"] == by_operator["spec"]["jobTemplate"]
    assert plain["spec"]["schedule"] == by_operator["spec"]["schedule"]
    (container,) = plain["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert f"--filename={mount['mountPath']}/{next(iter(NIGHTLY))}" in container["args"]
    (rule,) = of_kind("Role")["flywheel-nightly"]["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
