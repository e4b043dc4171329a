"""Whole runs from the command line, candidate and judge being endpoints served elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from remote_bench import (
    EVAL_SIZE,
    SECRET,
    Bench,
    bench,
    candidate,
    guess,
    interrupt,
    judge,
    judged_by,
    slowly,
    wait_for,
)

from flywheel import config, curation, preflight
from flywheel.cluster import describe
from flywheel.datasets import SPLITS
from flywheel.errors import RequestError
from flywheel.sample_logs import write_sample_logs
from flywheel.scoring import TOOL_METRICS
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, Reply, paced_reply, tiny_model
from flywheel.types import Json, TrialResult

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ANSWERS = {*TOOL_METRICS, "similarity"}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_sample_logs(folder, 300)
    return folder


@pytest.fixture(scope="module")
def address(ray_session: None) -> str:
    """The session's Ray, as a cluster to join."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@dataclass(frozen=True)
class Finished:
    """A run that went well, and what its endpoints were asked."""

    bench: Bench
    out: str
    err: str
    candidate: FakeEndpoint
    judge: FakeEndpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Finished]:
    """base and icl, on a Ray that the run starts for itself."""
    folder = tmp_path_factory.mktemp("run")
    embedding = tiny_model(folder / "embedding")
    with FakeEndpoint(guess) as fake, FakeEndpoint(judge) as rater:
        price = {"input_per_million": 1.0, "output_per_million": 2.0}
        mine = bench(
            folder,
            logs,
            [candidate(fake, price=price, concurrency=4)],
            methods={"base": {}, "icl": {"examples": 2, "embedding_model": str(embedding)}},
            judge=judged_by(rater),
            production={"price": price},
        )
        done = mine.ended("--json")
        assert done.returncode == 0, done.stderr
        yield Finished(mine, done.stdout, done.stderr, fake, rater)


def test_a_run_leaves_what_the_design_says(finished: Finished) -> None:
    storage, run = finished.bench.storage, finished.bench.run
    (fingerprint,) = storage.at("datasets").names()
    dataset = storage.at("datasets", fingerprint)
    assert dataset.names() == sorted([*SPLITS, "manifest.json", "rejections"])
    assert run.names() == [
        "calibration.json", "experiment.yaml", "judge", "leaderboard.json", "progress.json",
        "report.html", "run.json", "trials",
    ]  # fmt: skip
    for trial in finished.bench.trials():
        assert trial.names() == [
            "answers.json",
            "completions",
            "result.json",
            "scores",
            "spec.json",
            "verdicts",
        ]
    assert not list(Path(storage.url).rglob("*.pkl"))


def written(folder: Storage) -> dict[str, float]:
    paths = [p for p in Path(folder.url).rglob("*") if p.is_file()]
    return {p.name: p.stat().st_mtime for p in sorted(paths, key=lambda p: p.stat().st_mtime)}


def test_manifest_and_result_are_written_last(finished: Finished) -> None:
    storage = finished.bench.storage
    dataset = written(storage.at("datasets", storage.at("datasets").names()[0]))
    assert dataset["manifest.json"] == max(dataset.values())
    for trial in finished.bench.trials():
        assert written(trial)["result.json"] == max(written(trial).values())


def test_the_manifest_accounts_for_every_line(finished: Finished) -> None:
    datasets = finished.bench.storage.at("datasets")
    manifest = datasets.at(datasets.names()[0]).read_json("manifest.json")
    rejected = sum(manifest["rejected"].values())
    assert manifest["lines"] == manifest["records"] + rejected + manifest["other_workloads"]
    assert manifest["splits"]["eval"] == EVAL_SIZE


def test_a_result_says_how_it_came_about(finished: Finished) -> None:
    for trial in finished.bench.trials():
        data = trial.read_json("result.json")
        result = TrialResult.from_json(data)
        assert data["key"] == result.key == trial.url.rsplit("/", 1)[-1]
        assert result.status == "succeeded"
        assert set(result.metrics) == ANSWERS
        for figure in result.metrics.values():
            assert (figure.n, figure.scored) == (EVAL_SIZE, EVAL_SIZE)
            assert figure.value is not None
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= figure.value <= figure.high
        assert result.latency is not None
        assert result.latency.concurrency == 4
        assert result.cost is not None
        assert result.cost.basis == "tokens"
        assert result.cost.per_1k_requests
        assert {"date", "commit", "machine", "versions", "judges"} <= result.provenance.keys()


def test_a_spec_alone_names_the_trial(finished: Finished) -> None:
    specs = [trial.read_json("spec.json") for trial in finished.bench.trials()]
    assert sorted(spec["method"] for spec in specs) == ["base", "icl"]
    assert {spec["settings"]["endpoint"] for spec in specs} == {finished.candidate.url}


def test_the_run_file_tells_status_versions_and_times(finished: Finished) -> None:
    note = finished.bench.run.read_json("run.json")
    assert (note["status"], note["error"]) == ("succeeded", "")
    assert note["started_at"] <= note["finished_at"]
    assert note["versions"]["ray"]
    assert finished.bench.run.url.endswith(note["run"])


def test_the_stored_experiment_is_complete_and_loads_again(finished: Finished) -> None:
    stored = Path(finished.bench.run.url) / "experiment.yaml"
    assert config.load(stored) == config.load(finished.bench.file)
    assert yaml.safe_load(stored.read_text())["ranking"]["margin"] == 0.1


def test_what_is_printed_is_the_leaderboard(finished: Finished) -> None:
    board = json.loads(finished.out)
    assert board == finished.bench.run.read_json("leaderboard.json")
    assert [row["rank"] for row in board["rows"]] == [1, 2]
    assert board["calibration"]["auc"] == 1.0
    assert board["calibration"]["trusted"] is True
    assert board["production"]["per_1k_requests"] > 0


def test_progress_goes_to_the_other_stream(finished: Finished) -> None:
    for stage in ("reading logs", "answering with guesser", "judging guesser base"):
        assert stage in finished.err
    assert "Traceback" not in finished.err


def test_every_eval_record_is_asked_once_per_trial(finished: Finished) -> None:
    asked = Counter(json.dumps(r.body["messages"]) for r in finished.candidate.requests)
    assert len(asked) == 2 * EVAL_SIZE
    assert set(asked.values()) == {1}
    assert finished.candidate.busiest <= 4
    assert all(r.body["model"] == "guesser" for r in finished.candidate.requests)
    assert all(r.body["tools"] for r in finished.candidate.requests)


def test_a_prompt_with_examples_has_them_in_its_system_message(finished: Finished) -> None:
    systems = [r.body["messages"][0]["content"] for r in finished.candidate.requests]
    with_examples = [text for text in systems if text.count("Then you'll respond with:") == 2]
    assert len(with_examples) == EVAL_SIZE


def test_the_key_went_to_the_candidate_alone_and_is_in_no_file(finished: Finished) -> None:
    sent = {r.headers["authorization"] for r in finished.candidate.requests}
    assert sent == {f"Bearer {SECRET}"}
    assert not any(SECRET in str(r.headers) for r in finished.judge.requests)
    files = [p for p in Path(finished.bench.storage.url).rglob("*") if p.is_file()]
    assert len(files) > 20
    assert [p for p in files if SECRET.encode() in p.read_bytes()] == []
    assert SECRET not in finished.out + finished.err


def test_raw_personal_data_went_nowhere(finished: Finished, logs: Path) -> None:
    raw = "".join(p.read_text() for p in logs.glob("*.jsonl"))
    assert "@example." in raw
    asked = [*finished.candidate.requests, *finished.judge.requests]
    assert not any("@example." in json.dumps(r.body) for r in asked)


def test_the_report_stands_beside_the_leaderboard(finished: Finished) -> None:
    page = finished.bench.run.read_bytes("report.html").decode()
    assert page.lower().startswith("<!doctype html>")
    assert "guesser" in page


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_shows_a_parent_with_a_child_per_trial(finished: Finished) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.bench.storage.url}/mlflow.db")
    home = client.get_experiment_by_name("flywheel")
    runs = client.search_runs([home.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert [r.info.status for r in runs] == ["FINISHED"] * 3
    assert len(parents) == 1
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
    assert all(r.data.metrics.keys() >= ANSWERS for r in children)
    assert all(r.inputs.dataset_inputs for r in children)


def test_results_can_be_read_again(finished: Finished) -> None:
    place = finished.bench.storage.url
    done = subprocess.run(
        [sys.executable, "-m", "flywheel", "results", "--json", f"--storage={place}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == json.loads(finished.out)


def test_doctor_looks_at_the_cluster_and_says_what_it_found(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flywheel", "doctor", "--json", f"--address={address}"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert {"flywheel", "Python", "ray", "vllm", "free memory", "free disk"} <= checks.keys()
    assert checks["Ray cluster"]["found"] == "joined: a node with 2 CPUs and 0 GPUs"
    assert done.returncode == (0 if all(check["good"] for check in checks.values()) else 1)
    assert "Traceback" not in done.stderr


def test_a_request_that_cannot_be_met_is_one_sentence_and_exit_code_2(
    tmp_path: Path, logs: Path, address: str
) -> None:
    with FakeEndpoint(guess) as fake:
        mine = bench(tmp_path, logs, [candidate(fake, api_key_env=None)])
        done = mine.ended(f"--address={address}", "--set=workload=shop.nope")
    assert done.returncode == 2
    assert "no record of shop.nope; there are 'shop.router'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert fake.requests == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"logs": "/nowhere"}, "/nowhere: there is no such file or folder"),
        ({"workload": "shop.nope"}, "no record of shop.nope; there are 'shop.router'"),
        ({"dataset.min_total_records": 5000}, "fewer than dataset.min_total_records (5000)"),
        ({"candidates.0.api_key_env": "NO_SUCH_KEY"}, "variable NO_SUCH_KEY is not set"),
        ({"candidates.0.api_key_env": "SHOP_KEY"}, "SHOP_KEY is not set on the cluster's workers"),
        ({"candidates": [{"model": "/nowhere"}]}, "model /nowhere: there is no such folder"),
        ({"judge": {"model": "{tiny}", "cpus": 64}}, "needs 64 CPUs on one node; the cluster has"),
    ],
    ids=["no logs", "no workload", "too few", "no key", "key here only", "no model", "too small"],
)
@pytest.mark.usefixtures("address")
def test_what_cannot_be_met_is_refused_before_anything_is_asked(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch, settings: Json, said: str
) -> None:
    monkeypatch.setenv("SHOP_KEY", SECRET)
    tiny = tiny_model(tmp_path / "tiny")
    changes = [f"{k}={json.dumps(v)}".replace("{tiny}", str(tiny)) for k, v in settings.items()]
    with FakeEndpoint(guess) as fake:
        mine = bench(tmp_path, logs, [candidate(fake, api_key_env=None)])
        experiment = config.load(mine.file, changes)
        with pytest.raises(RequestError) as refused:
            begin(experiment, mine.storage)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert fake.requests == []


@pytest.mark.usefixtures("address")
def test_vllm_is_not_asked_again_about_engines_that_it_took_before(
    tmp_path: Path, logs: Path
) -> None:
    served = {"model": str(tiny_model(tmp_path / "tiny")), "engine": {"max_modle_len": 512}}
    experiment = config.load(bench(tmp_path, logs, [served]).file)
    storage = Storage(experiment.storage)
    with pytest.raises(RequestError, match="did you mean max_model_len"):
        begin(experiment, storage)
    begin(experiment, storage, accepted=True)


def begin(experiment: config.Experiment, storage: Storage, *, accepted: bool = False) -> None:
    """What a run does before it trains or asks."""
    preflight.check(experiment, describe(ours=False), storage, unseen, accepted=accepted)
    curation.curate(experiment, storage, unseen)


def unseen(stage: str, done: int, total: int) -> None:
    """What is shown of progress."""


def test_a_run_without_one_answer_has_failed_and_says_why(
    tmp_path: Path, logs: Path, address: str
) -> None:
    with FakeEndpoint(lambda body: Reply({"error": {"message": "quota used up"}}, 403)) as fake:
        mine = bench(tmp_path, logs, [candidate(fake, api_key_env=None)])
        done = mine.ended(f"--address={address}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("flywheel: all 1 trials failed")
    assert "quota used up" in done.stderr
    assert "Traceback" not in done.stderr
    note = mine.run.read_json("run.json")
    assert note["status"] == "failed"
    assert "quota used up" in note["error"]
    (trial,) = mine.trials()
    result = trial.read_json("result.json")
    assert result["status"] == "failed"
    assert "quota used up" in result["error"]
    assert mine.run.read_json("leaderboard.json")["rows"][0]["rank"] is None


def unsure(body: Json) -> Reply:
    """A candidate that streams in known time if asked to, and else tells how sure it is."""
    if body.get("stream"):
        return paced_reply(["It", " is", " there."], 0.03, 0.01)
    sure = -len(str(body["messages"])) % 17 / 10
    choice = {"message": guess(body), "finish_reason": "tool_calls"}
    told = {"content": [{"token": "x", "logprob": -sure}]} if body.get("logprobs") else None
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Reply({"choices": [{**choice, "logprobs": told}], "usage": usage})


def test_latency_cost_and_a_cascade_are_on_the_board(
    tmp_path: Path, logs: Path, address: str
) -> None:
    price = {"input_per_million": 1.0, "output_per_million": 2.0}
    loads = {"requests": 8, "warmup": 2, "concurrency": [1, 4], "replay": [1e6]}
    with FakeEndpoint(unsure) as fake:
        mine = bench(
            tmp_path,
            logs,
            [candidate(fake, api_key_env=None, price=price)],
            latency={**loads, "slo": {"first_token_s": 5}},
            cascades={},
            dataset={"eval_size": EVAL_SIZE, "val_ratio": 0.4},
            ranking={"metric": "function_name", "margin": 0.5, "max_p95_s": 10},
            production={"price": {"input_per_million": 10.0, "output_per_million": 30.0}},
        )
        done = mine.ended("--json", f"--address={address}")
        assert done.returncode == 0, done.stderr
        asked = len(fake.requests)
        again = mine.ended("--json", f"--address={address}")
        assert again.returncode == 0, again.stderr
        assert len(fake.requests) == asked  # answers to val and times under load are taken over
    rows = {row["result"]["trial"]["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows.keys() == {"base", "cascade"}
    load = rows["base"]["result"]["load"]
    assert [level["load"] for level in load["levels"]] == [
        "concurrency-1",
        "concurrency-4",
        "replay-1e+06",
    ]
    assert load["slo"] == {
        "first_token_s": 5.0,
        "per_output_token_s": None,
        "total_s": 10.0,
        "share": 0.95,
    }
    assert load["at_slo"]
    assert all(level["first_token_s"]["p50"] >= 0.03 for level in load["levels"])
    own, both = (rows[name]["result"]["cost"] for name in ("base", "cascade"))
    assert own["basis"] == "tokens"
    assert own["per_1k_requests"] < both["per_1k_requests"]
    assert 0 < both["saved_percent"] < own["saved_percent"]
    told = rows["cascade"]["result"]["cascade"]
    assert 0 < told["handed_over"] < 1
    assert rows["cascade"]["blocked"].startswith("p95 unknown")  # logs do not tell production's
    for run in mine.runs:
        assert len(run.at("trials").names()) == 1


def times_asked(fake: FakeEndpoint) -> Counter[str]:
    return Counter(json.dumps(r.body["messages"]) for r in fake.requests)


def test_a_run_stopped_twice_goes_on_and_asks_nothing_twice(tmp_path: Path, logs: Path) -> None:
    with (
        FakeEndpoint(guess) as quick,
        FakeEndpoint(slowly(guess)) as slow,
        FakeEndpoint(slowly(judge)) as rater,
    ):
        both = [candidate(quick, name="quick"), candidate(slow, name="slow", concurrency=1)]
        mine = bench(
            tmp_path, logs, both, judge=judged_by(rater, concurrency=1, injection_suite=False)
        )

        process = mine.start()
        wait_for(lambda: len(slow.requests) >= 3)
        said = interrupt(process)
        assert "--resume" in said
        assert mine.run.read_json("run.json")["status"] == "interrupted"

        process = mine.start("--resume")
        wait_for(lambda: len(rater.requests) >= 5)
        interrupt(process)
        assert len(mine.runs) == 1

        done = mine.ended("--resume", "--json")
        assert done.returncode == 0, done.stderr
        assert len(mine.runs) == 1
        assert mine.run.read_json("run.json")["status"] == "succeeded"

    assert set(times_asked(quick).values()) == {1}
    assert len(times_asked(quick)) == len(times_asked(slow)) == EVAL_SIZE
    # What was in flight when the run was stopped.
    assert sum(n - 1 for n in times_asked(slow).values()) <= 1
    assert sum(n - 1 for n in times_asked(rater).values()) <= 1
    assert [row["rank"] for row in json.loads(done.stdout)["rows"]] == [1, 2]
    assert mine.ended("--resume").returncode == 2  # there is nothing left to go on with
