"""Why an engine did not start: found in what its processes wrote and in what Ray Serve quotes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flywheel.errors import ClusterError, EngineError
from flywheel.serving.failures import explained, first_error, raised

OUTPUT = """\
(MainProcess pid=0) ERROR 11-29 06:30:21 [hf.py:505] AttributeError: of no consequence
(EngineCore pid=1) INFO 11-29 06:30:22 [core.py:120] Initializing a V1 LLM engine
(Worker pid=2) WARNING 11-29 06:30:30 [x.py:1] ValueError: this is only a warning
(Worker pid=2) ERROR 11-29 06:30:35 [executor.py:953] WorkerProc failed to start.
(Worker pid=2) ERROR 11-29 06:30:35 [executor.py:953] Traceback (most recent call last):
(Worker pid=2) ERROR 11-29 06:30:35 [executor.py:953]   File "loader.py", line 1, in load
(Worker pid=2) ERROR 11-29 06:30:35 [executor.py:953]     raise ValueError("no: such thing")
(Worker pid=2) ERROR 11-29 06:30:35 [executor.py:953] safetensors._rust.SafetensorError: header: bad
(EngineCore pid=1) ERROR 11-29 06:30:41 [core.py:1510] Exception: WorkerProc initialization failed.
"""

SERVE = """\
The deployment failed to start 2 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:a:B.initialize()\x1b[39m (pid=3, ip=10.0.0.1, actor_id=1)
  File "replica.py", line 1984, in initialize
RuntimeError: Traceback (most recent call last):
  File "server.py", line 1, in __init__
{}
"""


def test_the_first_error_that_is_logged_is_the_cause() -> None:
    assert first_error(OUTPUT) == "SafetensorError: header: bad"
    coloured = "\n".join(f"\x1b[36m{line}\x1b[0m" for line in OUTPUT.splitlines())
    assert first_error(coloured) == "SafetensorError: header: bad"
    assert first_error("") == ""


REPLICA = f"""
import sys
from flywheel.errors import ClusterError, EngineError
from flywheel.serving.failures import explained

print("ERROR 11-29 06:30:00 [x.py:1] KeyError: of another engine, before", flush=True)
try:
    with explained():
        if sys.argv[1] == "logged":
            print({OUTPUT!r}, flush=True)
        if sys.argv[1] == "ours":
            raise ClusterError("our own")
        raise RuntimeError("Engine core initialization failed.\\nSee root cause above.")
except (ClusterError, EngineError) as error:
    print(type(error).__name__, error, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("logged", "EngineError SafetensorError: header: bad (all it wrote: {} on "),
        (
            "silent",
            "EngineError RuntimeError: Engine core initialization failed. See root cause above. (",
        ),
        ("ours", "ClusterError our own"),
    ],
)
def test_a_replica_raises_what_its_processes_wrote(tmp_path: Path, what: str, said: str) -> None:
    output = tmp_path / "worker.out"
    with output.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", REPLICA, what],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert done.stderr.startswith(said.format(output))


def test_without_an_error_nothing_is_said() -> None:
    with explained():
        pass


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (
            "flywheel.errors.EngineError: OutOfMemoryError: CUDA out of memory.",
            EngineError("the engine of m did not start: OutOfMemoryError: CUDA out of memory."),
        ),
        ("flywheel.errors.ClusterError: they differ: a, b", ClusterError("they differ: a, b")),
        ("builtins.KeyError: 'x'", EngineError("the engine of m did not start: KeyError: 'x'")),
    ],
)
def test_what_a_replica_raised_is_found_in_what_serve_says(last: str, error: Exception) -> None:
    found = raised(["", SERVE.format(last)], "m")
    assert (type(found), str(found)) == (type(error), str(error))


def test_where_serve_quotes_nothing_that_is_said() -> None:
    said = "the engine of m did not start, and Ray Serve does not say why"
    assert str(raised(["", "Deployment is starting"], "m")) == said
    assert str(raised([], "m")) == said
