"""One curation to be measured, in a process of its own: Ray is started, then the clock.

    python -m tests.benchmarks.driver LOGS STORAGE WORKLOAD [RAY_CPUS]

prints the seconds from the call of `curate` to the manifest on disk, and the manifest, as JSON.
Without RAY_CPUS Ray is started as ``flywheel curate`` does.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from flywheel.cluster import connect
from flywheel.config import validate
from flywheel.curation import curate
from flywheel.storage import Storage


@contextmanager
def _ray(cpus: int | None) -> Iterator[None]:
    if cpus is None:
        with connect():
            yield
        return
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=cpus, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """Curate as the command line says."""
    logs, storage, workload, *cpus = sys.argv[1:]
    experiment = validate(
        {
            "name": "benchmark",
            "logs": logs,
            "workload": workload,
            "candidates": [{"model": "none"}],
            "methods": {"base": {}},
        },
        "benchmark",
    )
    with _ray(int(cpus[0]) if cpus else None):
        start = perf_counter()
        manifest = curate(experiment, Storage(storage))
        seconds = perf_counter() - start
    print(json.dumps({"seconds": seconds, "manifest": manifest.to_json()}))  # noqa: T201


if __name__ == "__main__":
    main()
