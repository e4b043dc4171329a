"""A run is seen from outside while it works: its log, its status, and Ray's own metrics."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import httpx
import pytest
from remote_bench import Bench, bench, judge, judged_by, keyless, slowly, wait_for

from flywheel import metrics, status
from flywheel.sample_logs import write_sample_logs
from flywheel.testing import FakeEndpoint, Reply, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


class Echo:
    """Refuses two requests and repeats the prompt as it does, as some servers do."""

    def __init__(self) -> None:
        self.lock, self.seen = Lock(), 0

    def __call__(self, body: Json) -> Json | Reply:
        with self.lock:
            self.seen += 1
            number = self.seen
        said = {"error": {"message": f"cannot: {body['messages'][-1]['content']}"}}
        if number == 1:
            return Reply(said, 503)
        if number == 2:
            return Reply(said, 400)
        time.sleep(0.4)
        return tool_reply("track_order", {"order_id": "MM-1"})


@dataclass(frozen=True)
class Watched:
    """A run that ended, and what was seen of it meanwhile."""

    bench: Bench
    err: str
    during: status.Status
    exported: str
    session: Path
    prompts: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Watched:
    import ray

    folder = tmp_path_factory.mktemp("watched")
    write_sample_logs(folder / "logs", 300)
    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with FakeEndpoint(Echo()) as fake, FakeEndpoint(slowly(judge)) as rater:
        asked = keyless(fake, concurrency=2, client={"backoff_s": 0.05})
        rated = judged_by(rater, concurrency=2)
        mine = bench(folder, folder / "logs", [asked], judge=rated)
        address = ray.get_runtime_context().gcs_address
        process = mine.start(f"--address={address}", "--log-format=json")
        wait_for(lambda: len(fake.requests) >= 6)
        wait_for(lambda: status.read(mine.run).trials["answering"] == 1)
        during = status.read(mine.run)
        of_the_run = (metrics.COMPLETIONS, metrics.TRIALS, metrics.DOLLARS, metrics.GPU_SECONDS)
        wait_for(lambda: all(metric.exported in _get(page) for metric in of_the_run))
        exported = _get(page)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        prompts = [r.body["messages"][-1]["content"] for r in fake.requests]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    return Watched(mine, err, during, exported, session, prompts)


def _get(page: str) -> str:
    return httpx.get(page, trust_env=False, timeout=10).text


def test_every_line_of_the_log_is_an_object_about_the_run(watched: Watched) -> None:
    lines = [json.loads(line) for line in watched.err.splitlines()]
    name = watched.bench.run.url.rsplit("/", 1)[-1]
    assert {line.get("run") for line in lines} <= {name, None}
    stages = [line["stage"] for line in lines if line["message"] == "progress"]
    assert {"reading logs", "answering with guesser", "judging guesser base"} <= set(stages)
    (key,) = watched.bench.run.at("trials").names()
    states = [line["state"] for line in lines if line["message"] == "trial"]
    assert states == ["waiting", "answering", "answered", "succeeded"]
    assert {line["trial"] for line in lines if line["message"] == "trial"} == {key}


def test_workers_log_trial_and_record_and_no_prompt(watched: Watched) -> None:
    (key,) = watched.bench.run.at("trials").names()
    written = [p.read_text(errors="replace") for p in watched.session.glob("logs/worker-*.err")]
    lines = [json.loads(x) for text in written for x in text.splitlines() if f'"{key}"' in x]
    told = {line["message"]: line for line in lines}
    assert told["request tried again"]["status"] == 503
    assert told["request failed"]["status"] == 400
    ids = {
        row["record_id"]
        for row in watched.bench.trials()[0].at("scores").read_lines("programmatic.jsonl")
    }
    assert {line["record"] for line in lines if line["message"].startswith("request")} <= ids
    said = [prompt for prompt in watched.prompts if len(prompt) > 10]
    assert said
    for text in (watched.err, *written):
        assert [prompt for prompt in said if prompt in text] == []


def test_its_status_was_read_while_it_worked(watched: Watched) -> None:
    during = watched.during
    assert (during.status, during.over) == ("running", False)
    assert during.trials["answering"] == 1
    assert during.stages[-1].name == "answering with guesser"
    assert during.stages[0].name == "starting Ray"
    assert during.stages[0].ended
    after = status.read(watched.bench.run)
    assert after.status == "succeeded"
    assert {state: n for state, n in after.trials.items() if n} == {"succeeded": 1}
    assert all(stage.ended for stage in after.stages)


def test_ray_exported_what_it_did(watched: Watched) -> None:
    name = re.escape(watched.bench.run.url.rsplit("/", 1)[-1])
    trials = re.escape(metrics.TRIALS.exported)
    counts = dict(
        re.findall(rf'{trials}\{{.*run="{name}".*state="(\w+)".*\}} ([\d.]+)', watched.exported)
    )
    assert set(counts) == set(status.monitor.STATES)
    assert sum(map(float, counts.values())) == 1
    done = re.escape(metrics.COMPLETIONS.exported)
    outcomes = re.findall(rf'{done}\{{.*model="guesser".*outcome="(\w+)"', watched.exported)
    assert set(outcomes) <= {"answered", "failed", "kept"}
    assert "answered" in outcomes


@pytest.mark.usefixtures("ray_session")
def test_every_metric_is_exported_by_its_name() -> None:
    import ray

    def tell() -> None:
        for metric in metrics.ALL:
            metric.tell(1.0, **dict.fromkeys(metric.tags, "test"))

    tell()
    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wait_for(lambda: all(f"{metric.exported}{{" in _get(page) for metric in metrics.ALL))
