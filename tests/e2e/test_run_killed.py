"""Whole runs whose processes are really killed, one after another, end as if left alone.

One sweep (an endpoint served elsewhere, a model served here, an adapter of it) runs undisturbed
first; what the others come to is held against that. `make test-kill` kills more often, and with
another seed at other moments.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import pytest
import yaml
from recovery import told

from flywheel.inference import read
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's
]

KILLS = int(os.environ.get("FLYWHEEL_KILLS", "4"))
SEED = int(os.environ.get("FLYWHEEL_KILL_SEED", "0"))
EVAL_SIZE = 16
IN_FLIGHT = 2
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Ray's own, which look for their dead head for a minute before they go."""
SHARED = "/dev/shm/psm_"  # noqa: S108
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@pytest.fixture(scope="module", autouse=True)
def nobody_escapes() -> Iterator[None]:
    """Orphans become children of this process, where they are found."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(SUBREAPER, 0, 0, 0, 0) == 0


def living(before: set[int]) -> list[psutil.Process]:
    """Children that were not there before, and all below them; the dead are put away."""
    found = []
    for child in psutil.Process().children():
        if child.pid in before:
            continue
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
            else:
                found += [child, *child.children(recursive=True)]
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found


def title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0].strip()
    except psutil.NoSuchProcess:
        return ""


def wait_for(what: Callable[[], bool], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited in vain for {why}"
        time.sleep(0.01)


@dataclass
class Sweep:
    """An experiment file, where its runs go, and what was there before them."""

    folder: Path
    fake: FakeEndpoint
    before: set[int]
    scratch: Path
    """Ray's temporary folder: its paths must be short."""

    @property
    def storage(self) -> Storage:
        return Storage(str(self.folder / "storage"))

    @property
    def run(self) -> Storage:
        runs = self.storage.at("runs")
        (only,) = [n for n in runs.names() if runs.at(n).exists("run.json")]
        return runs.at(only)

    def begun(self) -> bool:
        runs = self.storage.at("runs")
        return any(runs.at(name).exists("run.json") for name in runs.names())

    def start(self) -> subprocess.Popen[bytes]:
        resume = ["--resume"] if self.begun() else []
        with (self.folder / "err.txt").open("ab") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "flywheel", "run", str(self.folder / "sweep.yaml"), *resume],
                env={**os.environ, "RAY_TMPDIR": str(self.scratch)},
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def ended(self) -> None:
        assert self.start().wait(timeout=900) == 0, (self.folder / "err.txt").read_text()

    def changes(self) -> set[tuple[str, int]]:
        """What stands in the storage, and when each file was last written."""
        seen = set()
        for folder, folders, files in os.walk(self.folder / "storage"):  # what has gone is left out
            for path in (Path(folder, name) for name in (*folders, *files)):
                if "/tune/" not in str(path) and not path.name.startswith("."):
                    with suppress(FileNotFoundError):
                        seen.add((str(path), path.stat().st_mtime_ns))
        return seen

    def alone(self) -> bool:
        """Whether nothing of a killed run lives, but what Ray needs a minute for."""
        return {title(process) for process in living(self.before)} <= AGENTS | {""}

    def tells(self) -> Outcome:
        trials = self.run.at("trials")
        results = {key: trials.at(key).read_json("result.json") for key in trials.names()}
        completions = {key: read(trials.at(key).at("completions")) for key in results}
        scores = {
            key: list(trials.at(key).at("scores").read_lines("programmatic.jsonl"))
            for key in results
        }
        return Outcome(
            self.storage.at("datasets").names(),
            results,
            {k: {c.record_id: c.message for c in cs} for k, cs in completions.items()},
            scores,
            self.run.read_json("leaderboard.json"),
        )


@dataclass
class Outcome:
    """What a run came to."""

    datasets: list[str]
    results: dict[str, Json]
    answers: dict[str, dict[str, Json | None]]
    scores: dict[str, list[Json]]
    board: Json

    def ranks(self) -> dict[str, int | None]:
        return {row["result"]["key"]: row["rank"] for row in self.board["rows"]}


def assert_same(got: Outcome, wanted: Outcome) -> None:
    """Same dataset and trials; equal scores, metrics and places where answers are equal."""
    assert got.datasets == wanted.datasets
    assert got.results.keys() == wanted.results.keys()
    for key, result in got.results.items():
        assert result["status"] == "succeeded", result["error"]
        assert len(got.answers[key]) == EVAL_SIZE
        assert None not in got.answers[key].values()
        for mine, theirs in zip(got.scores[key], wanted.scores[key], strict=True):
            record = mine["record_id"]
            assert record == theirs["record_id"]
            if got.answers[key][record] == wanted.answers[key][record]:
                assert mine == theirs
        if got.answers[key] == wanted.answers[key]:
            assert result["metrics"] == wanted.results[key]["metrics"]
    if got.answers == wanted.answers:
        assert got.ranks() == wanted.ranks()


def assert_written_once(sweep: Sweep) -> None:
    """No completion stands in a journal twice."""
    for key in sweep.run.at("trials").names():
        folder = sweep.run.at("trials", key, "completions")
        rows = [row for name in folder.names(".jsonl") for row in folder.read_lines(name)]
        assert len([row for row in rows if not row["error"]]) == EVAL_SIZE


def assert_recorded_once(sweep: Sweep) -> None:
    """One finished child in MLflow for each trial, below one finished parent."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{sweep.storage.url}/mlflow.db")
    home = client.get_experiment_by_name("flywheel")
    runs = client.search_runs([home.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = Counter(run.data.tags.get("flywheel.trial_key") for run in runs)
    assert keys == Counter([None, *sweep.run.at("trials").names()])


def shared_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """The segments in ``/dev/shm`` that these have open."""
    used = set()
    for process in processes:
        with suppress(psutil.Error):
            used |= {Path(m.path) for m in process.memory_maps() if m.path.startswith(SHARED)}
    return used


def a_guess(body: Json) -> Json:
    time.sleep(0.1)
    return tool_reply("track_order", {"order_id": "MM-1"})


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(a_guess) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and a model."""
    folder = tmp_path_factory.mktemp("shared")
    write_sample_logs(folder / "logs", 200)
    tiny_model(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def sweeps(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, fake: FakeEndpoint
) -> Iterator[Callable[[], Sweep]]:
    """Makes the same sweep with a storage of its own."""
    scratch = Path(mkdtemp(prefix="fk-", dir="/tmp"))
    experiment: Json = {
        "name": "killed",
        "logs": str(shared / "logs"),
        "workload": ROUTER,
        "dataset": {"eval_size": EVAL_SIZE, "val_ratio": 0.1},
        "candidates": [
            {"model": "guesser", "endpoint": fake.url, "concurrency": IN_FLIGHT},
            {
                "model": str(shared / "tiny"),
                "methods": ["base", "lora"],
                "engine": {"max_model_len": 4096},
                "concurrency": IN_FLIGHT,
            },
        ],
        "methods": {
            "base": {},
            "icl": {"examples": [1, 2], "embedding_model": None},
            "lora": {"rank": 8, "epochs": 2, "max_train_records": 64, "checkpoint_every_s": 0},
        },
        "sampling": {"max_tokens": 48},
        "parity": {"records": 4, "tokens": 8},
        "judge": None,
    }

    def make() -> Sweep:
        folder = tmp_path_factory.mktemp("sweep")
        told = {**experiment, "storage": str(folder / "storage")}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(told))
        before = {process.pid for process in psutil.Process().children()}
        return Sweep(folder, fake, before, scratch)

    yield make
    shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class Undisturbed:
    sweep: Sweep
    outcome: Outcome
    changes: int
    asked: Counter[str]


def asked(fake: FakeEndpoint) -> Counter[str]:
    return Counter(json.dumps(request.body, sort_keys=True) for request in fake.requests)


@pytest.fixture(scope="module")
def undisturbed(sweeps: Callable[[], Sweep], fake: FakeEndpoint) -> Undisturbed:
    sweep = sweeps()
    seen: set[tuple[str, int]] = set()
    process = sweep.start()
    while process.poll() is None:
        seen |= sweep.changes()
        time.sleep(0.05)
    assert process.returncode == 0, (sweep.folder / "err.txt").read_text()
    wait_for(sweep.alone, 60, "the end of all processes")
    return Undisturbed(sweep, sweep.tells(), len(seen), asked(fake))


def work(changes: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Of what stands in a storage, the files that trials and a curation wrote."""
    where = ("/trials/", "/datasets/")
    done = {(path, at) for path, at in changes if any(part in path for part in where)}
    return {(path, at) for path, at in done if Path(path).suffix and "/spec." not in path}


def test_a_driver_killed_again_and_again_goes_on_to_the_same_leaderboard(
    undisturbed: Undisturbed, sweeps: Callable[[], Sweep], fake: FakeEndpoint
) -> None:
    chance, sweep = random.Random(SEED), sweeps()
    seen: set[tuple[str, int]] = set()
    shared: set[Path] = set()
    went_on: list[float] = []
    for nth in range(KILLS):  # one moment in each stretch of the run
        moment = (nth + chance.random()) / KILLS * undisturbed.changes * 0.9
        done, resumed = work(sweep.changes()), sweep.begun()
        process, began, took = sweep.start(), time.monotonic(), 0.0
        at_once = began + chance.uniform(0.5, 5)
        while len(seen) < moment or time.monotonic() < at_once:
            assert process.poll() is None, (sweep.folder / "err.txt").read_text()
            now = sweep.changes()
            seen |= now
            if time.monotonic() < began + 1:  # what was killed may have had a write under way
                done |= work(now)
            elif resumed and not took and work(now) - done:
                took = time.monotonic() - began
            time.sleep(0.05)
        went_on += [took] if took else []
        shared |= shared_by(living(sweep.before))
        process.kill()
        process.wait()
        wait_for(sweep.alone, 60, "the end of what was killed")
    sweep.ended()
    assert_same(sweep.tells(), undisturbed.outcome)
    assert_recorded_once(sweep)
    assert_written_once(sweep)
    told("The driver (`flywheel run`) is killed", "the run's next file", *went_on)

    again = asked(fake) - undisturbed.asked
    assert again.keys() == undisturbed.asked.keys()
    assert sum(again.values()) <= sum(undisturbed.asked.values()) + IN_FLIGHT * KILLS
    assert not sweep.run.exists("tune")
    assert not list(sweep.folder.rglob("*.pkl"))
    wait_for(lambda: not living(sweep.before), 120, "Ray's agents to go")
    assert not [path for path in shared if path.exists()]


def processes(sweep: Sweep, start: str) -> list[psutil.Process]:
    return [process for process in living(sweep.before) if title(process).startswith(start)]


def test_an_engine_a_replica_and_serves_controller_killed_under_load_change_nothing(
    undisturbed: Undisturbed,
) -> None:
    """The model's two trials are asked anew; each loses what serves it after a first answer."""
    sweep = undisturbed.sweep
    folders: dict[str, Storage] = {}
    for key, result in undisturbed.outcome.results.items():
        if result["trial"]["model"] != "guesser":
            folder = folders[result["trial"]["method"]] = sweep.run.at("trials", key)
            for name in ("answers.json", "completions", "scores", "parity.json", "result.json"):
                folder.remove(name)
    note = sweep.run.read_json("run.json")
    sweep.run.write_json("run.json", {**note, "status": "running"})
    process = sweep.start()

    def answers(method: str) -> int:
        assert process.poll() is None, (sweep.folder / "err.txt").read_text()
        return len(read(folders[method].at("completions")))

    def lost(method: str, *titles: str) -> float:
        """Kill these after a first answer; seconds until the next one."""
        wait_for(lambda: all(processes(sweep, name) for name in titles), 300, "those to kill")
        victims = [one for name in titles for one in processes(sweep, name)]
        wait_for(lambda: answers(method) > 0, 300, "a first answer")
        for victim in victims:  # what is asked stays unanswered
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
        shared.update(shared_by(living(sweep.before)))
        before, began = answers(method), time.monotonic()
        assert before < EVAL_SIZE
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        wait_for(lambda: answers(method) > before, 300, "the next answer")
        return time.monotonic() - began

    shared: set[Path] = set()
    told("The engine's process is killed", "the next answer", lost("base", "VLLM::EngineCore"))
    fault = "The engine's replica and Serve's controller are killed, both at once"
    both = lost("lora", "ray::ServeReplica:tiny", "ray::ServeController")
    told(fault, "the next answer", both)
    assert process.wait(timeout=600) == 0, (sweep.folder / "err.txt").read_text()

    assert_same(sweep.tells(), undisturbed.outcome)
    assert_recorded_once(sweep)
    assert_written_once(sweep)
    starts: Any = sweep.run.read_json("run.json")["engine_starts"]
    assert list(starts.values()) == [2]  # the replacements are Ray Serve's
    wait_for(lambda: not living(sweep.before), 120, "the end of all processes")
    assert not [path for path in shared if path.exists()]
