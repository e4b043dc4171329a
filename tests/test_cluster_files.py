"""The image, Ray's launcher and Compose: valid by their own schemas, and in agreement."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flywheel.config import TrackingConfig
from tests.cluster_files import COMPOSE, IMAGE, LAUNCHER, PINS, README, ROOT, commands, values

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
FROM_THIS_REPOSITORY = {"x-ray", "ray-head", "ray-worker"}
LAUNCHERS = pytest.mark.parametrize("file", sorted(LAUNCHER))


def ray_command(command: str) -> dict[str, Any]:
    """Options of a ``ray start``, by Ray's own parser."""
    from ray.scripts.scripts import start

    found = re.search(r"\bray start (.+)", command)
    assert found
    arguments = shlex.split(found[1].replace("$RAY_HEAD_IP", "10.0.0.1"))
    return dict(start.make_context("start", arguments).params)


# -- the image -----------------------------------------------------------------------------------


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    command = [hadolint, "--no-color", str(ROOT / "cluster" / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    bootstrap = runpy.run_path(str(ROOT / "scripts" / "bootstrap.py"))
    base = re.findall(r"^FROM python:(\d+)\.(\d+)\.\d+-slim-bookworm$", DOCKERFILE, re.M)
    assert len(base) == 1
    first, last = bootstrap["PYTHONS"]
    assert first <= tuple(map(int, base[0])) <= last
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.M) == ["1000"]
    assert "--uid 1000 " in DOCKERFILE


def test_one_file_makes_both_images_from_locks_by_the_same_script() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cpu", "gpu"} <= set(project["optional-dependencies"])
    assert re.search(r"^ARG EXTRA=cpu$", DOCKERFILE, re.M)
    assert 'python scripts/bootstrap.py --extra "$EXTRA"' in DOCKERFILE
    assert "pip install" not in DOCKERFILE


def test_what_goes_into_the_image_exists_and_is_let_in() -> None:
    allowed = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        source
        for line in re.findall(r"^COPY --chown=1000 (.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        patterns = (line[1:] for line in allowed if line.startswith("!"))
        assert any(Path(source).match(p) or source.startswith(f"{p}/") for p in patterns)
    assert "*" in allowed  # nothing else: no logs, no models, no keys


def test_what_rays_launcher_calls_in_the_image_is_there() -> None:
    installed = re.search(r"apt-get install(.+?)&& rm", DOCKERFILE, re.S)
    assert installed
    assert {"openssh-client", "rsync", "wget"} <= set(installed[1].split())
    assert "boto3" in PINS  # the head's autoscaler rents machines with it
    assert "/etc/profile.d/" in DOCKERFILE  # login shells find the environment


# -- Ray's launcher ------------------------------------------------------------------------------


@LAUNCHERS
def test_ray_up_accepts_it(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(LAUNCHER[file])
    validate_config(prepared)
    assert prepared["setup_commands"] == []  # Ray's defaults would install another Ray


@LAUNCHERS
def test_ray_up_would_refuse_a_field_it_does_not_know(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**LAUNCHER[file], "idle_minutes": 5}))


@LAUNCHERS
def test_machines_run_the_gpu_image_with_shared_volumes_and_keys_from_a_file(file: str) -> None:
    docker = LAUNCHER[file]["docker"]
    assert docker["image"] == f"{IMAGE}-gpu"
    options = " ".join(docker["run_options"])
    for inside in ("/app/flywheel-data", "/app/cache"):
        assert re.search(rf"--volume /mnt/flywheel/\w+:{inside}( |$)", options)
    assert "--env-file /etc/flywheel/keys.env" in options
    assert "RAY_AUTH_MODE=token" in README


@LAUNCHERS
def test_ray_starts_with_options_it_has_and_a_head_without_gpus(file: str) -> None:
    head = ray_command(LAUNCHER[file]["head_start_ray_commands"][-1])
    worker = ray_command(LAUNCHER[file]["worker_start_ray_commands"][-1])
    assert head["head"]
    assert head["num_gpus"] == 0
    assert head["autoscaling_config"]
    assert worker["address"] == f"10.0.0.1:{head['port']}"


def test_rented_machines_grow_from_the_head_alone() -> None:
    config = LAUNCHER["ray-cluster.yaml"]
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert {name: one["resources"]["GPU"] for name, one in types.items()} == {
        "head": 0, "cpu": 0, "gpu-1": 1, "gpu-8": 8
    }  # fmt: skip
    assert all(one["min_workers"] == 0 for one in types.values())
    assert sum(one["max_workers"] for one in types.values()) <= config["max_workers"]


def test_spot_machines_are_those_whose_loss_costs_little() -> None:
    types = LAUNCHER["ray-cluster.yaml"]["available_node_types"]
    spot = {
        name
        for name, one in types.items()
        if one["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    }
    assert spot == {"cpu", "gpu-1"}


def test_machines_with_gpus_show_them_to_the_container() -> None:
    types = LAUNCHER["ray-cluster.yaml"]["available_node_types"]
    for one in types.values():
        shown = one.get("docker", {}).get("worker_run_options", [])
        assert shown == (["--gpus all"] if one["resources"]["GPU"] else [])
    assert LAUNCHER["cluster/on-premise.yaml"]["docker"]["worker_run_options"] == ["--gpus all"]


# -- Compose -------------------------------------------------------------------------------------


def compose_schema() -> dict[str, Any]:
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    found: dict[str, Any] = json.loads(vendored.read_text())
    return found


def test_compose_accepts_it_and_would_refuse_an_unknown_field() -> None:
    schema = compose_schema()
    jsonschema.validate(COMPOSE, schema)
    s3 = {**COMPOSE["services"]["s3"], "port": "9000"}
    wrong = {**COMPOSE, "services": {**COMPOSE["services"], "s3": s3}}
    with pytest.raises(jsonschema.ValidationError, match="port"):
        jsonschema.validate(wrong, schema)


def test_compose_has_the_services_and_waits_for_those_that_it_has() -> None:
    services = COMPOSE["services"]
    assert {"elasticsearch", "mlflow", "postgres", "s3", "ray-head", "ray-worker"} <= set(services)
    assert services["ray-worker"]["deploy"]["replicas"] == 2
    for one in services.values():
        for other, condition in one.get("depends_on", {}).items():
            healthy = condition["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in services[other]
        for volume in one.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_images_of_others_are_pinned_and_ours_is_the_one_that_is_built() -> None:
    for name, one in COMPOSE["services"].items():
        if name in FROM_THIS_REPOSITORY:
            assert one["image"] == IMAGE
            folder = ROOT / "cluster" / "local" / one["build"]["context"]
            assert (folder / one["build"]["dockerfile"]).samefile(ROOT / "cluster" / "Dockerfile")
        elif "image" in one:
            assert re.search(r":.*\d", one["image"])
    inline = COMPOSE["services"]["mlflow"]["build"]["dockerfile_inline"]
    assert f"FROM ghcr.io/mlflow/mlflow:v{PINS['mlflow']}\n" in inline
    assert f"boto3=={PINS['boto3']}" in inline


def test_passwords_come_from_a_file_that_git_ignores() -> None:
    text = (ROOT / "cluster" / "local" / "compose.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+):\?", text))
    assert names == set(re.findall(r"\$\{(\w+)", text)), "each is required"
    (made,) = re.findall(r"for name in (.+?); do", README)
    assert names == set(made.split())
    assert "/cluster/local/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_ports_are_bound_to_this_machine_alone() -> None:
    published = [port for ports in values(COMPOSE, "ports") for port in ports]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_services_find_each_other_under_the_ports_they_have() -> None:
    services = COMPOSE["services"]
    head, worker = (ray_command(services[f"ray-{name}"]["command"]) for name in ("head", "worker"))
    assert worker["address"] == f"ray-head:{head['port']}"
    assert services["ray-head"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert services["ray-head"]["environment"] == services["ray-worker"]["environment"]
    named = re.findall(r"https?://(?:[^/@\s]+@)?([a-z][\w-]+):(\d+)", str(services) + README)
    inside = {(host, port) for host, port in named if host in services}
    assert {host for host, _ in inside} == {"s3", "mlflow"}
    for host, port in inside:
        assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]


def test_mlflow_starts_with_options_it_has() -> None:
    spec = find_spec("mlflow")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent  # importing it takes seconds
    source = "".join(
        (folder / name).read_text() for name in ("cli/__init__.py", "utils/cli_args.py")
    )
    given = [word.split("=")[0] for word in COMPOSE["services"]["mlflow"]["command"][2:]]
    assert given
    assert all(f'"{option}"' in source for option in given)


def test_the_guides_run_on_compose_uses_its_bucket_and_its_tracking_server() -> None:
    (call,) = [call for call in commands(README) if "storage=s3://flywheel/runs" in call]
    assert "store/flywheel" in COMPOSE["services"]["buckets"]["command"]
    (uri,) = [word.removeprefix("tracking.uri=") for word in call if "tracking.uri" in word]
    assert TrackingConfig(uri=uri).uri == "http://mlflow:5000"
