"""Experiments sent to a cluster as Ray jobs: submit, follow the log, come back to it.

A job is what ``ray job submit --working-dir . -- python -m flywheel run FILE`` makes: this folder
travels, less what ``.gitignore`` names, and the driver runs on the cluster, so it lives on when
whoever sent it has gone. The hash of the experiment stands in the job's metadata; by it the job is
found again. Ray's own client sends Ray's token (``RAY_AUTH_MODE=token`` with ``RAY_AUTH_TOKEN`` or
``RAY_AUTH_TOKEN_PATH``).
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel import config
from flywheel.config import Experiment
from flywheel.errors import ClusterError, ConfigError, RequestError, boundary
from flywheel.types import content_hash

_METADATA = "flywheel_experiment"
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_WAIT_S = 1.0
_PATIENCE_S = 60.0
"""How long a head may be unreachable while its job is followed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster told of it last."""

    id: str
    address: str
    """URL of the head's dashboard, which takes jobs."""
    status: str
    exit_code: int | None = None
    """Of its driver, once that ended and said so."""
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return self.status in _ENDED


def command_for(file: Path, arguments: Sequence[str]) -> str:
    """What the job does: run an experiment file that lies in or below this folder.

    Args:
        file: The experiment file.
        arguments: Further ones of ``flywheel run``.

    Raises:
        ConfigError: The file lies elsewhere.
    """
    here = Path.cwd().resolve()
    try:
        inside = file.resolve().relative_to(here).as_posix()
    except ValueError:
        raise ConfigError(
            f"{file}: lies outside of {here}, the folder that is sent to the cluster; "
            "start from a folder that holds it"
        ) from None
    return shlex.join(["python", "-m", "flywheel", "run", inside, *arguments])


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Knock at the head.

        Args:
            address: ``http://head:8265``.

        Raises:
            RequestError: The address is no URL.
            ClusterError: Nobody answers there, or it does not let us in.
        """
        if not re.match(r"https?://", address):
            raise RequestError(f"--submit {address}: name the head's dashboard: http://head:8265")
        from ray.job_submission import JobSubmissionClient

        self.address = address.rstrip("/")
        # Ray lets RAY_ADDRESS overrule what it is told, but this variable overrules that.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        with boundary(ClusterError, f"asking the Ray cluster at {self.address}"):
            self._client = JobSubmissionClient(self.address)

    def submit(self, command: str, experiment: Experiment) -> Job:
        """Send this folder and a command that runs the experiment in it; see `command_for`.

        Raises:
            ClusterError: The cluster does not take the job.
        """
        with boundary(ClusterError, f"submitting {experiment.name} to {self.address}"):
            name = self._client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": str(Path.cwd())},
                metadata={_METADATA: _identity(experiment)},
            )
        return self.look(name)

    def find(self, experiment: Experiment) -> Job | None:
        """The latest job of this very experiment, if the cluster remembers one."""
        with boundary(ClusterError, f"listing the jobs at {self.address}"):
            known = self._client.list_jobs()
        wanted = _identity(experiment)
        ours = [one for one in known if (one.metadata or {}).get(_METADATA) == wanted]
        latest = max(ours, key=lambda one: one.start_time or 0, default=None)
        return latest and self._told(latest)

    def look(self, name: str) -> Job:
        """How a job is doing."""
        with boundary(ClusterError, f"asking {self.address} about job {name}"):
            return self._told(self._client.get_job_info(name))

    def follow(self, job: Job, write: Callable[[str], object]) -> Job:
        """Pass on a job's log from its beginning until the job has ended.

        Raises:
            ClusterError: The cluster cannot be reached any more; the job may go on.
        """
        seen, heard = 0, time.monotonic()
        while True:
            try:
                seen = asyncio.run(self._tail(job.id, seen, write))
                job = self.look(job.id)
                heard = time.monotonic()
            except (ClusterError, OSError, RuntimeError):  # Ray raises plain RuntimeErrors, too
                if time.monotonic() - heard > _PATIENCE_S:
                    raise
            if job.ended:
                return job
            time.sleep(_WAIT_S)

    async def _tail(self, name: str, seen: int, write: Callable[[str], object]) -> int:
        """Pass on what comes after the first ``seen`` characters; tell how many there were."""
        passed = 0
        async for text in self._client.tail_job_logs(name):
            new = text[max(0, seen - passed) :]
            passed += len(text)
            if new:
                write(new)
        return max(seen, passed)

    def _told(self, info: Any) -> Job:
        return Job(
            info.submission_id,
            self.address,
            str(getattr(info.status, "value", info.status)),
            info.driver_exit_code,
            info.message or "",
        )


def _identity(experiment: Experiment) -> str:
    return content_hash(config.dump(experiment))
