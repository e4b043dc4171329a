"""What runs note of themselves, and how they are found again."""

from pathlib import Path
from typing import Any

import pytest

from flywheel import runs
from flywheel.config import Experiment, dump, validate
from flywheel.errors import RequestError
from flywheel.folders import Desk
from flywheel.runs import Note
from flywheel.storage import Storage


def experiment(place: Path, **changes: Any) -> Experiment:
    data = {
        "name": "shop",
        "logs": "logs",
        "storage": str(place),
        "workload": "w",
        "candidates": [{"model": "org/small"}],
        "methods": {"base": {}},
        **changes,
    }
    return validate(data, "test.yaml")


def begun(wanted: Experiment, run_id: str, status: str, **facts: Any) -> Desk:
    """A run of this experiment, as far as this status."""
    desk = Desk(Storage(wanted.storage), run_id)
    desk.run.write_bytes("experiment.yaml", dump(wanted).encode())
    Note(desk, 1, fresh=False).write(status, **facts)
    return desk


def test_what_is_unfinished_is_the_latest_run_of_the_same_experiment(tmp_path: Path) -> None:
    wanted, other = experiment(tmp_path), experiment(tmp_path, seed=7)
    assert runs.unfinished(wanted) is None
    begun(wanted, "shop-1", "interrupted")
    begun(wanted, "shop-2", "running")
    begun(other, "shop-3", "failed")
    assert runs.unfinished(wanted) == "shop-2"
    begun(wanted, "shop-4", "succeeded")
    assert runs.unfinished(wanted) is None


def test_a_run_with_failed_trials_is_unfinished_though_it_succeeded(tmp_path: Path) -> None:
    begun(experiment(tmp_path), "shop-1", "succeeded", failed=1)
    assert runs.unfinished(experiment(tmp_path)) == "shop-1"


def test_a_run_is_found_by_its_id_and_a_wrong_id_names_those_there_are(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(RequestError, match="holds no runs"):
        runs.find(storage, None)
    desk = begun(experiment(tmp_path), "shop-1", "running")
    assert runs.find(storage, "shop-1").url == runs.find(storage, None).url == desk.run.url
    with pytest.raises(RequestError, match=r"no run shop-9 .* there are: shop-1"):
        runs.find(storage, "shop-9")


def test_facts_stay_in_the_note_until_its_end(tmp_path: Path) -> None:
    desk = Desk(Storage(str(tmp_path)), "shop-1")
    note = Note(desk, 3, fresh=False)
    assert not note.written
    note.write("running", dataset="abc", trials=4)
    assert desk.run.read_json("run.json")["finished_at"] is None
    note.write("failed", "no room", trials=2)
    told = desk.run.read_json("run.json")
    assert (told["run"], told["status"], told["error"]) == ("shop-1", "failed", "no room")
    assert (told["dataset"], told["trials"], told["seed"]) == ("abc", 2, 3)
    assert told["finished_at"] is not None


def test_a_run_was_accepted_if_it_has_begun_with_the_same_packages(tmp_path: Path) -> None:
    desk = Desk(Storage(str(tmp_path)), "shop-1")
    first = Note(desk, 1, fresh=False)
    assert not first.accepted
    first.write("running")
    assert Note(desk, 1, fresh=False).accepted
    told = desk.run.read_json("run.json")
    desk.run.write_json("run.json", {**told, "versions": {**told["versions"], "vllm": "0.0.1"}})
    assert not Note(desk, 1, fresh=False).accepted


def test_a_resumed_run_stays_fresh_and_counts_its_engines_on(tmp_path: Path) -> None:
    desk = Desk(Storage(str(tmp_path)), "shop-1")
    first = Note(desk, 1, fresh=True)
    first.engine_starts["org/small"] += 2
    first.write("interrupted")
    again = Note(desk, 1, fresh=False)
    again.engine_starts["org/small"] += 1
    again.write("succeeded")
    told = desk.run.read_json("run.json")
    assert (told["fresh"], told["engine_starts"]) == (True, {"org/small": 3})
