"""MLflow as it really is: its own SQLite store, and its own server read over REST."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from mlflow_server import Server
from recovery import told
from sample_run import FINGERPRINT, MANIFEST, a_sample_run, an_experiment

from flywheel.errors import ConfigError
from flywheel.storage import Storage
from flywheel.tracking import Tracker

pytestmark = [pytest.mark.services, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SAMPLE = a_sample_run()
ACCURACY = "function_name_and_args_accuracy"


def record_run(tracker: Tracker, adapter: Path | None = None) -> None:
    tracker.start(MANIFEST)
    for result in SAMPLE.results:
        scores = SAMPLE.scores.get(result.key, [])
        completions = SAMPLE.completions.get(result.key, [])
        tracker.log_trial(result, completions, scores, adapter)
    tracker.finish(SAMPLE.board, "<!doctype html><title>report</title>", "succeeded")


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path, free_port):
    """A real MLflow server on the store that a tracker writes by default."""
    one = Server(tmp_path / "store", free_port)
    try:
        one.start()
        yield one.url, one.folder
    finally:
        one.stop(signal.SIGTERM)


def runs_at(uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    home = client.get_experiment_by_name("flywheel").experiment_id
    runs = client.search_runs([home])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return client, parents, [run for run in runs if run not in parents]


def test_a_server_lists_parent_and_children_with_metrics(server):
    url, folder = server
    tracker = Tracker(an_experiment(), "demo-1", Storage(str(folder)))
    record_run(tracker)
    assert tracker.warnings == []
    found = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 10}).json()[
        "experiments"
    ]
    home = next(e["experiment_id"] for e in found if e["name"] == "flywheel")
    runs = httpx.post(
        f"{url}/api/2.0/mlflow/runs/search", json={"experiment_ids": [home]}, timeout=30
    ).json()["runs"]
    by_name = {run["info"]["run_name"]: run for run in runs}
    assert set(by_name) == {"demo-1", *(r.trial.label for r in SAMPLE.results)}
    for result in SAMPLE.results[:4]:
        run = by_name[result.trial.label]
        metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
        assert metrics[ACCURACY] == pytest.approx(result.metrics[ACCURACY].value)
        assert metrics[f"{ACCURACY}_n"] == 100
        assert {f"{ACCURACY}_low", "latency_p95_s", "cost_per_1k_requests"} <= metrics.keys()
        assert run["inputs"]["dataset_inputs"][0]["dataset"]["digest"] == FINGERPRINT
    assert by_name[SAMPLE.results[-1].trial.label]["info"]["status"] == "FAILED"


def test_a_run_leaves_its_parts_as_artifacts(tmp_path, adapter):
    tracker = Tracker(an_experiment(), "demo-1", Storage(str(tmp_path / "runs")))
    record_run(tracker, adapter)
    assert tracker.warnings == []
    client, (parent,), children = runs_at(tracker.uri)
    assert parent.info.status == "FINISHED"
    names = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert names == {"experiment.yaml", "leaderboard.json", "manifest.json", "report.html"}
    best = next(c for c in children if c.info.run_name == SAMPLE.results[2].trial.label)
    names = {f.path for f in client.list_artifacts(best.info.run_id)}
    assert names == {"adapter", "completions.json", "result.json"}
    assert best.data.params["rank"] == "16"
    losses = client.get_metric_history(best.info.run_id, "train_loss")
    assert [m.value for m in losses] == [2.1, 1.2, 0.4]
    table = json.loads(
        Path(client.download_artifacts(best.info.run_id, "completions.json")).read_text()
    )
    assert len(table["data"]) == 100
    assert ACCURACY in table["columns"]


def test_a_resumed_run_repeats_nothing(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    for _ in range(2):
        tracker = Tracker(an_experiment(), "demo-1", storage)
        record_run(tracker)
        assert tracker.warnings == []
    _, parents, children = runs_at(tracker.uri)
    assert len(parents) == 1
    assert len(children) == len(SAMPLE.results)


def test_what_was_cut_off_is_sent_again_and_is_there_once(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    tracker = Tracker(an_experiment(), "demo-1", storage)
    record_run(tracker)
    client, (parent,), children = runs_at(tracker.uri)
    trained = next(c for c in children if c.info.run_name == SAMPLE.results[2].trial.label)
    for run in (parent, trained):  # as an outage leaves them
        client.update_run(run.info.run_id, status="RUNNING")
    time.sleep(0.01)  # another millisecond would be another point
    again, began = Tracker(an_experiment(), "demo-1", storage), time.monotonic()
    record_run(again)
    seconds = time.monotonic() - began
    told("MLflow is lost in the middle of recording a trial", "all being recorded", seconds)
    assert tracker.warnings == again.warnings == []
    client, (parent,), children = runs_at(tracker.uri)
    assert len(children) == len(SAMPLE.results)
    assert "RUNNING" not in {run.info.status for run in (parent, *children)}
    for name in ("train_loss", ACCURACY):
        values = [m.value for m in client.get_metric_history(trained.info.run_id, name)]
        assert len(values) == (3 if name == "train_loss" else 1)


def test_a_parent_cut_off_at_its_beginning_is_completed(tmp_path):
    from mlflow import MlflowClient

    from flywheel.tracking import RUN_TAG

    storage = Storage(str(tmp_path / "runs"))
    tracker = Tracker(an_experiment(), "demo-1", storage)
    client = MlflowClient(tracking_uri=tracker.uri)
    home = client.create_experiment("flywheel", artifact_location=(tmp_path / "a").as_uri())
    client.create_run(home, tags={RUN_TAG: "demo-1"}, run_name="demo-1")
    began = time.monotonic()
    record_run(tracker)
    seconds = time.monotonic() - began
    told("MLflow is lost right after it made the parent", "all being recorded", seconds)
    assert tracker.warnings == []
    client, (parent,), _ = runs_at(tracker.uri)
    assert parent.data.params["dataset"] == FINGERPRINT
    names = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"experiment.yaml", "manifest.json"} <= names


def test_a_trial_that_failed_before_is_recorded_anew(tmp_path):
    storage = Storage(str(tmp_path / "runs"))
    good = SAMPLE.results[0]
    for result in (dataclasses.replace(good, status="failed", error="lost", metrics={}), good):
        tracker = Tracker(an_experiment(), "demo-1", storage)
        tracker.start(MANIFEST)
        tracker.log_trial(result, [], [])
        assert tracker.warnings == []
    _, _, (child,) = runs_at(tracker.uri)
    assert child.info.status == "FINISHED"
    assert child.data.tags.get("mlflow.note.content", "") == ""
    assert ACCURACY in child.data.metrics


def test_an_outage_is_a_warning_and_the_run_goes_on(tmp_path, free_port):
    experiment = an_experiment(tracking={"uri": f"http://127.0.0.1:{free_port}"})
    tracker = Tracker(experiment, "demo-1", Storage(str(tmp_path)))
    began = time.monotonic()
    record_run(tracker)
    tracker.reach()
    assert time.monotonic() - began < 20
    assert len(tracker.warnings) == 1  # not one for every trial
    assert f"127.0.0.1:{free_port}" in tracker.warnings[0]


def test_remote_storage_needs_a_tracking_server():
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        Tracker(an_experiment(), "demo-1", Storage("memory://bucket/runs"))


RECORDS = """
import sys
sys.path.insert(0, sys.argv[1])
from sample_run import MANIFEST, an_experiment
from flywheel.storage import Storage
from flywheel.tracking import Tracker
Tracker(an_experiment(), "t-1", Storage(sys.argv[2])).start(MANIFEST)
"""


def test_a_process_killed_while_mlflow_makes_its_tables_leaves_no_half_a_database(tmp_path):
    folder = tmp_path / "store"
    command = [sys.executable, "-c", RECORDS, str(Path(__file__).parents[1]), str(folder)]
    process = subprocess.Popen(command)
    while not any(made.stat().st_size for made in folder.glob("**/mlflow.db")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (folder / "mlflow.db").exists()
    (left,) = folder.glob(".mlflow-*")
    os.utime(left, (0, 0))
    tracker = Tracker(an_experiment(), "t-1", Storage(str(folder)))
    record_run(tracker)
    assert tracker.warnings == []
    _, parents, children = runs_at(tracker.uri)
    assert (len(parents), len(children)) == (1, len(SAMPLE.results))
    assert not list(folder.glob(".mlflow-*"))
