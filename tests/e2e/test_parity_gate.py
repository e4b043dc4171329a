"""A sweep over two bases starts two engines; an adapter that answers differently is not ranked."""

from __future__ import annotations

import json

import pytest

from flywheel.config import ParityConfig
from tests.benchmarks import two_bases
from tests.benchmarks.two_bases import TRIALS, Sweep, flywheel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

EVAL_SIZE = 6
LIMIT = ParityConfig().mean_difference


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return two_bases.run(tmp_path_factory.mktemp("sweep"), EVAL_SIZE)


def test_fourteen_trials_on_two_bases_start_two_engines(sweep: Sweep) -> None:
    assert [r["status"] for r in sweep.results()] == ["succeeded"] * TRIALS
    assert sweep.engine_starts() == dict.fromkeys(sweep.models, 1)


def test_every_adapter_has_passed_and_says_so(sweep: Sweep) -> None:
    assert len(sweep.adapted()) == 8
    for result in sweep.adapted():
        parity = result["parity"]
        assert (parity["passed"], parity["records"], parity["first_difference"]) == (True, 3, "")
        assert parity["answer_tokens"] > 0
        assert sweep.run.at("trials", result["key"]).read_json("parity.json") == parity


def test_an_adapter_that_is_not_applied_in_serving_is_not_ranked(sweep: Sweep) -> None:
    victim = max(sweep.adapted(), key=lambda r: r["parity"]["effect"])
    assert victim["parity"]["effect"] > 2 * LIMIT
    folder = sweep.run.at("trials", victim["key"])
    told = folder.read_json("adapter/adapter_config.json")
    changed = {**told, "lora_alpha": told["lora_alpha"] / 1000}
    folder.write_json("adapter/adapter_config.json", changed)
    for name in ("parity.json", "answers.json", "completions", "scores", "result.json"):
        folder.remove(name)
    sweep.run.write_json("run.json", {**sweep.run.read_json("run.json"), "status": "running"})

    done = flywheel("run", str(sweep.file), "--resume", "--json")
    assert done.returncode == 0, done.stderr
    result = folder.read_json("result.json")
    assert result["status"] == "failed"
    assert result["error"].startswith("parity: ")
    assert result["parity"]["passed"] is False
    assert not folder.exists("answers.json")
    board = json.loads(done.stdout)
    failed = [row for row in board["rows"] if row["result"]["key"] == victim["key"]]
    assert [row["result"]["status"] for row in failed] == ["failed"]
    assert sorted(sweep.engine_starts().values()) == [1, 2]

    folder.write_json("adapter/adapter_config.json", told)


def test_parity_can_be_asked_for_candidates_and_for_the_adapters_of_a_run(sweep: Sweep) -> None:
    only = [{"model": sweep.models[1], "name": "second", "engine": {"max_model_len": 4096}}]
    changed = f"--set=candidates={json.dumps(only)}"
    done = flywheel("parity", str(sweep.file), changed, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {label: one["passed"] for label, one in found.items()} == {"second base": True}

    victim, *_ = sweep.adapted()
    weights = sweep.run.at("trials", victim["key"])
    weights.write_bytes("adapter/adapter_model.safetensors", b"no weights")
    done = flywheel("parity", sweep.run_id, "--storage", sweep.storage.url)
    assert done.returncode == 1, done.stderr
    assert (done.stdout.count("passed"), done.stdout.count("failed")) == (9, 1)
    assert "while answering with" in done.stderr
    assert weights.read_json("parity.json")["passed"] is False


def test_a_typo_in_the_engines_options_ends_before_any_work(sweep: Sweep) -> None:
    done = flywheel("run", str(sweep.file), "--set", "candidates.1.engine.max_modle_len=512")
    assert done.returncode == 2
    assert "candidates.1.engine.max_modle_len: vLLM has no such engine argument" in done.stderr
    assert "did you mean max_model_len?" in done.stderr
    assert len(sweep.storage.at("runs").names()) == 1
