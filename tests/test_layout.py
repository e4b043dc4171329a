"""Who may know whom. Dependencies point one way, and importing the package stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flywheel"
HEAVY = {"ray", "torch", "transformers", "peft", "vllm", "mlflow", "elasticsearch", "datasets"}
ENTRY = {"__main__", "testing"}
"""May import anything: the program's front door, and the public fakes of all that lies below."""
LAYERS = {
    "base": {"types", "errors", "mistakes", "logs"},
    "config": {"config", "spaces"},
    "pure": {
        "records", "normalising", "schemas", "fastlane", "redaction", "importers", "datasets",
        "scoring", "statistics", "costs", "latency", "cascades", "leaderboard", "parity", "search",
        "budget", "sizing",
    },
    "adapters": {
        "storage", "stores", "ingest", "sample_logs", "intake", "shuffle", "spread", "curation",
        "catalogue", "cluster", "nodes", "versions", "provenance", "metrics",
        "progress", "models", "rendering", "methods", "serving", "inference", "judging",
        "tracking", "promotion",
    },
    "trials": {
        "planning", "arrivals", "gate", "folders", "trials", "adaptive", "sweep", "asking", "reuse",
        "forecast", "fanout", "steps", "loadtest", "cascading", "report", "monitor", "stages",
    },
    "runs": {
        "labelling", "runs", "preflight", "pipeline", "recording", "status", "paritycheck",
        "chosen", "submitting", "service", "doctor",
    },
    "front": {"printing", "commands", "cli"},
}  # fmt: skip
RANK = {part: rank for rank, parts in enumerate(LAYERS.values()) for part in parts}


def sources() -> Iterator[tuple[str, Path]]:
    """Every source file with the part (module or folder) of the package it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def known_parts(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(path))
    return {name[1] for name in names if name[0] == "flywheel" and name[1] in RANK}


def test_every_part_has_a_place() -> None:
    assert {part for part, _ in sources()} - RANK.keys() - ENTRY == set()


def test_dependencies_point_one_way() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} -> {other}"
        for part, path in sources()
        if part not in ENTRY
        for other in known_parts(path)
        if RANK[other] > RANK[part]
    ]
    assert upward == []


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for part, path in sources():
        graph.setdefault(part, set()).update(known_parts(path) - {part})
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("part", sorted(LAYERS["base"] | LAYERS["config"] | LAYERS["pure"]))
def test_pure_parts_know_no_heavy_library(part: str) -> None:
    names = {name.split(".")[0] for p, path in sources() if p == part for name in imported(path)}
    assert names & HEAVY == set()


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, flywheel, flywheel.config, flywheel.models; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & (HEAVY | {"pandas", "scipy", "pyarrow"}) == set()
