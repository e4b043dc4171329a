"""What Ray has to say while a process is connected to it stays out of what the process prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

NOTICE = "Task Sleeper.sleep failed"
DRIVER = """
import sys, time
import ray
from flywheel.cluster import connect

@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Sleeper:
    def ready(self):
        pass

    def sleep(self):
        time.sleep(600)

with connect(sys.argv[1]):
    sleeper = Sleeper.remote()
    ray.get(sleeper.ready.remote())
    pending = [sleeper.sleep.remote() for _ in range(3)]
    time.sleep(1)
    ray.kill(sleeper)
    time.sleep(2)
print("the result")
"""


def test_notices_that_ray_repeats_at_the_end_are_not_part_of_the_result(ray_session: None) -> None:
    """Ray keeps a notice that repeats itself, and prints it when the process disconnects."""
    import ray

    address = str(ray.get_runtime_context().gcs_address)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, address], capture_output=True, text=True, check=True
    )
    assert done.stdout == "the result\n"
    assert done.stderr.count(NOTICE) == 2, done.stderr  # the first, and one for the others
