"""A driver on a cluster that is killed takes its engine along."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from raylets import wait_until
from recovery import told

from flywheel.serving import engine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DRIVER = """
import logging, sys, time
import ray
from ray import serve
from flywheel.serving import keeper

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Idle:
    pass

ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
serve.start(proxy_location="Disabled")
for name in ("kept", "other"):
    serve.run(Idle.bind(), name=name, route_prefix=f"/{name}")
with keeper.kept("kept"):
    print("up", flush=True)
    sys.stdin.readline()
print("down", flush=True)
sys.stdin.readline()
"""


def applications() -> set[str]:
    from ray import serve

    return set(serve.status().applications)


def keepers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "_Keeper" in "".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("ending", ["killed", "killed after its keeper", "in order"])
def test_an_application_that_is_kept_goes_with_its_driver(ray_session: None, ending: str) -> None:
    import ray
    from ray import serve

    address = str(ray.get_runtime_context().gcs_address)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == "up\n"
        assert applications() == {"kept", "other"}
        (keeper,) = keepers()
        if ending == "killed after its keeper":
            keeper.kill()
            wait_until(lambda: [one for one in keepers() if one != keeper] != [])
        ended = time.monotonic()
        if ending == "in order":
            driver.stdin.write("\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "down\n"
        else:
            driver.kill()
        left = {"kept", "other"} if ending == "in order" else {"other"}
        deadline = time.monotonic() + 60
        while applications() != left or keepers():
            assert time.monotonic() < deadline, (applications(), keepers())
            time.sleep(0.1)
        if ending == "killed":
            seconds = time.monotonic() - ended
            told("The driver is killed on a cluster that it joined", "the engine's end", seconds)
    finally:
        driver.kill()
        driver.communicate()
        for name in applications():
            serve.delete(name)
        engine.stop_if_idle()
