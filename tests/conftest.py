"""Fixtures that more than one tier needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

OBJECT_STORE_BYTES = 200_000_000


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with two CPUs for the whole session, started by the first test that asks."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real traffic that lies beside a checkout; not part of the repository."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared/data does not lie beside this checkout")
    return folder
