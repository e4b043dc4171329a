"""Endpoints that answer rubbish: what becomes of their records, and of the others'."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import pytest
import yaml
from recovery import asked_again, told

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.testing import Answer, FakeEndpoint, Reply, text_reply, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

EVAL_SIZE = 12
RUBBISH = (
    Reply(b"<html>502 Bad Gateway</html>"),
    Reply({"choices": []}),
    Reply({"choices": [{"message": {"content": {"parts": ["x"]}}}]}),
    Reply({"choices": [{"message": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]}),
    Reply({"error": {"message": "replica is loading"}}),
    Reply(tool_reply("track_order", {}), cut_after=20),
    Reply(b"\xff\xfe\x00"),
    Reply(drop=True),
)


def guess(body: Json) -> Json:
    return tool_reply("track_order", {"order_id": "MM-1"})


def now_and_then() -> Callable[[Json], Json | Reply]:
    """Two replies of five are rubbish, of every kind."""
    number = count()

    def answer(body: Json) -> Json | Reply:
        n = next(number)
        return RUBBISH[n // 5 * 2 % len(RUBBISH) + n % 5] if n % 5 < 2 else guess(body)

    return answer


def for_one() -> Callable[[Json], Json | Reply]:
    """Always rubbish for one record, whichever comes first."""
    victims: list[Json] = []

    def answer(body: Json) -> Json | Reply:
        victims.append(body)
        return RUBBISH[0] if body == victims[0] else guess(body)

    return answer


class Broken:
    """Answers nothing but rubbish until it is mended."""

    mended = False

    def __call__(self, body: Json) -> Json | Reply:
        rubbish = RUBBISH[len(body["messages"][-1]["content"]) % len(RUBBISH)]
        return guess(body) if self.mended else rubbish


def babble(body: Json) -> Json:
    """An answer, if a useless one: it is the model that is wrong."""
    return text_reply('{"name": "track_order", "arguments": {"order')


@dataclass(frozen=True)
class Bench:
    """An experiment, its endpoints, and what its first run came to."""

    command: list[str]
    fakes: dict[str, FakeEndpoint]
    broken: Broken
    found: dict[str, Json]


def results(command: list[str]) -> dict[str, Json]:
    """Run it; each endpoint's trial."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [row["result"] for row in json.loads(done.stdout)["rows"]]
    return {row["trial"]["candidate"]: row for row in rows}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Bench]:
    import ray

    folder, broken = tmp_path_factory.mktemp("rubbish"), Broken()
    write_sample_logs(folder / "logs", 200)
    answers: dict[str, Answer] = {
        "clean": guess,
        "now and then": now_and_then(),
        "for one": for_one(),
        "broken": broken,
        "babbling": babble,
    }
    client = {"outage_s": 4, "backoff_s": 0.02, "attempts": 8}
    with ExitStack() as served:
        fakes = {name: served.enter_context(FakeEndpoint(a)) for name, a in answers.items()}
        experiment: Json = {
            "name": "rubbish",
            "logs": str(folder / "logs"),
            "workload": ROUTER,
            "storage": str(folder / "storage"),
            "dataset": {"eval_size": EVAL_SIZE},
            "candidates": [
                {"name": name, "model": "m", "endpoint": fake.url, "client": client}
                for name, fake in fakes.items()
            ],
            "methods": {"base": {}},
            "judge": None,
        }
        file = folder / "rubbish.yaml"
        file.write_text(yaml.safe_dump(experiment))
        address = f"--address={ray.get_runtime_context().gcs_address}"
        command = [sys.executable, "-m", "flywheel", "run", str(file), "--json", address]
        yield Bench(command, fakes, broken, results(command))


def test_rubbish_now_and_then_is_asked_again_and_changes_no_score(bench: Bench) -> None:
    assert bench.found["now and then"]["metrics"] == bench.found["clean"]["metrics"]
    assert len(bench.fakes["clean"].requests) == EVAL_SIZE
    assert len(bench.fakes["now and then"].requests) > EVAL_SIZE
    again = asked_again(bench.fakes["now and then"].requests)
    told("An endpoint answers rubbish now and then", "the record's last request", *again)


def test_a_record_answered_with_rubbish_alone_is_failed_not_wrong(bench: Bench) -> None:
    assert bench.found["for one"]["status"] == "succeeded"
    for metric in bench.found["for one"]["metrics"].values():
        assert (metric["n"], metric["unscored"], metric["failed"]) == (EVAL_SIZE, 0, 1)
    again = asked_again(bench.fakes["for one"].requests)
    told("An endpoint answers one record with rubbish every time", "its last request", *again)


def test_an_answer_that_means_nothing_is_the_models_and_wrong(bench: Bench) -> None:
    metric = bench.found["babbling"]["metrics"]["function_name"]
    assert (metric["value"], metric["n"]) == (0.0, EVAL_SIZE)
    assert (metric["unscored"], metric["failed"]) == (0, 0)


def test_nothing_but_rubbish_fails_the_trial_in_a_sentence_and_resuming_tries_it_again(
    bench: Bench,
) -> None:
    result = bench.found["broken"]
    assert (result["status"], result["metrics"]) == ("failed", {})
    assert "has not answered for" in result["error"]
    assert "answers so far are kept, run it again later" in result["error"]

    bench.broken.mended = True
    before = {name: len(fake.requests) for name, fake in bench.fakes.items()}
    began = time.monotonic()
    found = results([*bench.command, "--resume"])
    seconds = time.monotonic() - began
    told("An endpoint answers nothing but rubbish", "the end of the resumed run", seconds)
    assert found["broken"]["metrics"] == found["clean"]["metrics"]
    again = {name: len(fake.requests) - before[name] for name, fake in bench.fakes.items()}
    assert again == {**dict.fromkeys(bench.fakes, 0), "broken": EVAL_SIZE}
