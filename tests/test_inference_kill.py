"""A process killed while it asks, and one that goes on from there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from flywheel.inference import read
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, text_reply
from flywheel.types import Json

ASKS, IN_FLIGHT, KILLS = 300, 8, 3
SCRIPT = """
import sys
from flywheel.inference import Ask, answer_all
from flywheel.serving import Endpoint
from flywheel.storage import Storage

url, folder, asks, in_flight = sys.argv[1:]
answer_all(
    Endpoint(url, "m"),
    [Ask(f"r{i}", {"messages": [{"role": "user", "content": f"{i}"}]}) for i in range(int(asks))],
    Storage(folder),
    int(in_flight),
    30.0,
)
"""


def test_no_answer_is_asked_for_twice_beyond_those_in_flight(tmp_path: Path) -> None:
    def slow(body: Json) -> Json:
        time.sleep(0.02)
        return text_reply(body["messages"][-1]["content"])

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, fake.url, str(tmp_path), str(ASKS), str(IN_FLIGHT)]
        )

    chance = random.Random(0)
    with FakeEndpoint(slow) as fake:
        for kill in range(KILLS):
            process, before = start(), len(fake.requests)
            due = before + chance.randint(1, ASKS // KILLS)
            while len(fake.requests) < due:
                assert process.poll() is None
                time.sleep(0.001)
            process.kill()
            process.wait()
            time.sleep(0.1)  # the endpoint is still busy with what nobody waits for
            lost = len(fake.requests) - len(read(Storage(str(tmp_path))))
            assert lost <= IN_FLIGHT * (kill + 1)
        assert start().wait(timeout=60) == 0
    got = {c.record_id: c for c in read(Storage(str(tmp_path)))}
    assert {name: (c.message or {})["content"] for name, c in got.items()} == {
        f"r{i}": f"{i}" for i in range(ASKS)
    }
    times = Counter(str(request.body["messages"][-1]["content"]) for request in fake.requests)
    assert sum(times.values()) - ASKS <= IN_FLIGHT * KILLS
