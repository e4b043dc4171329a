"""What a job is told to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import ConfigError
from flywheel.submitting import Job, command_for


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_arguments_arrive_as_they_were_given(arguments: list[str]) -> None:
    words = shlex.split(command_for(Path("experiments/demo.yaml"), arguments))
    assert words == ["python", "-m", "flywheel", "run", "experiments/demo.yaml", *arguments]


def test_an_absolute_path_in_this_folder_is_one_of_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_for(tmp_path / "a" / "b.yaml", []).endswith(" run a/b.yaml")
    with pytest.raises(ConfigError, match="lies outside of"):
        command_for(tmp_path.parent / "b.yaml", [])


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_job_has_ended(status: str) -> None:
    assert Job("j", "http://h:8265", status).ended


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_goes_on(status: str) -> None:
    assert not Job("j", "http://h:8265", status).ended
