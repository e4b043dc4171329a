"""The command line says in one sentence what is wrong, and prints JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sample_run import a_sample_run

from flywheel import __version__, cli
from flywheel.storage import Storage

GOOD = {
    "name": "t",
    "logs": "logs",
    "workload": "shop.router",
    "candidates": [{"model": "org/m"}],
    "methods": {"base": {}},
}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Flywheel = Callable[..., Ended]


@pytest.fixture
def flywheel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Flywheel]:
    """Run a command in this process, in an empty folder, on a wide screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["flywheel", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, before)


def test_a_command_that_has_done_its_work_ends_without_collecting_garbage() -> None:
    script = """
import atexit, gc, sys
atexit.register(lambda: print("left alone:", gc.get_freeze_count() > len(gc.get_objects())))
from flywheel import cli
sys.argv = ["flywheel", "--version"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [__version__, "left alone: True"]


def test_ctrl_c_while_the_program_is_still_being_imported_is_no_traceback() -> None:
    script = """
import os, signal, threading
from flywheel.__main__ import main
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def one_sentence(ended: Ended) -> str:
    """The sentence that a wrong request is answered with."""
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1
    return ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["run", "sample-logs", "results", "workloads", "doctor", "Prove"]),
        (("run",), ["--set", "--resume", "--logs", "--address", "--submit", "--json", "YAML"]),
        (("results",), ["--storage", "--json", "leaderboard"]),
        (("sample-logs",), ["--records", "--seed", "synthetic"]),
        (("workloads",), ["--json", "clients", "class mix"]),
        (("doctor",), ["--json", "cluster"]),
    ],
    ids=lambda x: " ".join(x)[:12] or "flywheel",
)
def test_help_names_what_there_is(
    flywheel: Flywheel, arguments: tuple[str, ...], words: list[str]
) -> None:
    ended = flywheel(*arguments, "--help")
    assert ended.code == 0
    assert [word for word in words if word not in ended.out] == []


def test_the_version_is_printed(flywheel: Flywheel) -> None:
    assert flywheel("--version").out.strip() == __version__


def test_a_missing_experiment_file(flywheel: Flywheel) -> None:
    assert "gone.yaml: cannot be read" in one_sentence(flywheel("run", "gone.yaml"))


def test_a_wrong_field(flywheel: Flywheel, tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", methods={"lora": {"rank": 7}})
    said = one_sentence(flywheel("run", path))
    assert f"{path}: methods.lora: rank 7" in said
    assert "allowed: 1, 8, 16" in said


def test_markup_in_a_wrong_value_is_shown_as_it_is(flywheel: Flywheel, tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", seed="[bold]x[/nope]")
    assert "[bold]x[/nope]" in one_sentence(flywheel("run", path))


def test_a_wrong_override(flywheel: Flywheel, tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml")
    assert "key=value" in one_sentence(flywheel("run", path, "--set", "seed"))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("x.yaml", ("--submit=head:8265",), "name the head's dashboard: http://head:8265"),
        ("x.yaml", ("--submit=http://h:8265", "--address=h:6379"), "name one"),
        ("../x.yaml", ("--submit=http://h:8265",), "lies outside of"),
        ("x.yaml", ("--submit=http://127.0.0.1:9",), "Ray cluster at http://127.0.0.1:9"),
    ],
    ids=["no URL", "two clusters", "elsewhere", "nobody there"],
)
def test_what_cannot_be_submitted(
    flywheel: Flywheel, tmp_path: Path, name: str, arguments: tuple[str, ...], said: str
) -> None:
    write(tmp_path / name)
    assert said in one_sentence(flywheel("run", name, *arguments))


def test_nothing_to_resume(flywheel: Flywheel, tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml")
    assert "no unfinished run" in one_sentence(flywheel("run", path, "--resume"))


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("runn",), ("run", "x.yaml", "--frobnicate"), ("sample-logs", "d", "--records=5")],
    ids=" ".join,
)
def test_a_command_line_that_is_none_is_exit_code_2(
    flywheel: Flywheel, arguments: tuple[str, ...]
) -> None:
    ended = flywheel(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert ended.err


@pytest.fixture
def logs(flywheel: Flywheel) -> Path:
    assert flywheel("sample-logs", "logs", "--records", 100).code == 0
    return Path("logs")


def test_sample_logs_say_that_they_are_synthetic(flywheel: Flywheel) -> None:
    ended = flywheel("sample-logs", "d", "--records", 100)
    assert ended.code == 0
    assert "synthetic" in ended.out
    assert sorted(p.suffix for p in Path("d").iterdir()) == [*[".jsonl"] * 4, ".txt"]


def test_sample_logs_report_what_was_planted(flywheel: Flywheel) -> None:
    summary = json.loads(flywheel("sample-logs", "d", "--records", 100, "--json").out)
    lines = sum(len(p.read_text().splitlines()) for p in Path("d").glob("*.jsonl"))
    assert summary["lines"] == lines
    assert sum(summary["records"].values()) == 100


def test_workloads_shows_what_is_in_a_store(flywheel: Flywheel, logs: Path) -> None:
    found = json.loads(flywheel("workloads", logs, "--json").out)
    assert [one["workload_id"] for one in found] == [
        "shop.answers",
        "shop.router",
        "shop.tickets",
        "",
    ]
    assert sum(one["records"] for one in found) == 100
    shown = flywheel("workloads", logs)
    assert shown.code == 0
    assert "shop.router" in shown.out
    assert "(none named)" in shown.out


@pytest.mark.parametrize("place", ["gone", "gone/*.jsonl", "nope://x"])
def test_workloads_of_no_store(flywheel: Flywheel, place: str) -> None:
    assert place in one_sentence(flywheel("workloads", place))


def test_workloads_of_an_empty_folder(flywheel: Flywheel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no .jsonl" in one_sentence(flywheel("workloads", "empty"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Two runs, the older one finished."""
    runs = Storage(str(tmp_path / "st")).at("runs")
    board = a_sample_run(n=20).board.to_json()
    runs.at("t-1").write_json("run.json", note("t-1", "succeeded", "2026-01-01T00:00:00+00:00"))
    runs.at("t-1").write_json("leaderboard.json", board)
    runs.at("t-2").write_json("run.json", note("t-2", "running", "2026-01-02T00:00:00+00:00"))
    return Storage(str(tmp_path / "st"))


def note(run: str, status: str, started: str) -> dict[str, str]:
    return {"run": run, "status": status, "started_at": started}


def test_results_as_json_are_the_leaderboards_file(flywheel: Flywheel, storage: Storage) -> None:
    ended = flywheel("results", "t-1", "--storage", storage.url, "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == storage.at("runs", "t-1").read_json("leaderboard.json")


@pytest.mark.parametrize(("written", "told"), [(0.93, True), (0.7, False), (None, False)])
def test_a_judge_that_would_be_trusted_as_it_wrote_is_told_of(
    flywheel: Flywheel, storage: Storage, written: float | None, told: bool
) -> None:
    run = storage.at("runs", "t-1")
    board = run.read_json("leaderboard.json")
    board["calibration"]["auc_written"] = written
    run.write_json("leaderboard.json", board)
    ended = flywheel("results", "t-1", "--storage", storage.url)
    assert ("not trusted; as written 0.93 (judge.reading: written)" in ended.out) is told


def test_results_as_a_table_show_trials_judge_and_verdict(
    flywheel: Flywheel, storage: Storage
) -> None:
    ended = flywheel("results", "t-1", "--storage", storage.url)
    assert ended.code == 0
    assert "lora" in ended.out
    assert "not trusted" in ended.out
    assert "answers best" in ended.out
    failed = [line for line in ended.out.splitlines() if "failed" in line]
    assert failed == ["SmolLM2 lora lr=0.5 r=16: failed: the loss is not finite at step 12"]


@pytest.fixture
def finished(tmp_path: Path) -> Storage:
    """A storage with one run that ended well."""
    storage = Storage(str(tmp_path / "st"))
    a_sample_run(n=20).leave(storage, "t-1")
    return storage


def test_a_report_is_made_anew_from_a_runs_files(flywheel: Flywheel, finished: Storage) -> None:
    ended = flywheel("report", "t-1", "--storage", finished.url)
    assert ended.code == 0
    assert "runs/t-1/report.html" in ended.out
    page = finished.at("runs", "t-1").read_bytes("report.html").decode()
    assert "What will the weather be like in" in page


def test_a_report_goes_where_it_is_asked_to(
    flywheel: Flywheel, finished: Storage, tmp_path: Path
) -> None:
    out = tmp_path / "mine.html"
    assert flywheel("report", "--storage", finished.url, "--out", out).code == 0
    assert out.read_text().startswith("<!doctype html>")
    assert not finished.at("runs", "t-1").exists("report.html")
    ended = flywheel("report", "--storage", finished.url, "--out", tmp_path / "no" / "x.html")
    assert ended.code == 1
    assert "writing" in ended.err


def test_the_board_is_written_as_markdown_csv_and_json(
    flywheel: Flywheel, finished: Storage
) -> None:
    said = {
        form: flywheel("report", "--storage", finished.url, "--format", form).out
        for form in ("md", "csv", "json")
    }
    assert said["md"] == flywheel("results", "--storage", finished.url, "--markdown").out
    assert json.loads(said["json"]) == finished.at("runs", "t-1").read_json("leaderboard.json")
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    assert [row["trial"] for row in rows][-1] == "production"
    assert len(rows) == 6


def test_a_run_without_a_board_has_no_report(flywheel: Flywheel, storage: Storage) -> None:
    said = one_sentence(flywheel("report", "t-2", "--storage", storage.url))
    assert "run t-2 has no leaderboard yet; it is running" in said


def test_results_of_the_latest_run_that_has_none_yet(flywheel: Flywheel, storage: Storage) -> None:
    said = one_sentence(flywheel("results", "--storage", storage.url))
    assert "run t-2 has no leaderboard yet; it is running" in said


def test_a_run_without_a_judge_has_nothing_to_label(flywheel: Flywheel, storage: Storage) -> None:
    said = one_sentence(flywheel("label", "t-1", "--storage", storage.url))
    assert "no judge has rated anything" in said


def test_labels_are_read_or_written_not_both(flywheel: Flywheel, storage: Storage) -> None:
    both = ("--write-csv", "a.csv", "--read-csv", "b.csv")
    assert "one at a time" in one_sentence(flywheel("label", "--storage", storage.url, *both))


def test_results_of_an_unknown_run_name_those_there_are(
    flywheel: Flywheel, storage: Storage
) -> None:
    said = one_sentence(flywheel("results", "t-9", "--storage", storage.url))
    assert "no run t-9" in said
    assert "t-1, t-2" in said


def test_results_where_nothing_ran(flywheel: Flywheel) -> None:
    assert "holds no runs" in one_sentence(flywheel("results"))


def test_the_module_runs_as_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flywheel", "run", "gone.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("flywheel: gone.yaml: cannot be read")
