"""Every error a user can meet, in one tree.

    FlywheelError                 exit code 1: the work failed
    ├── RequestError              exit code 2: the request was wrong; nothing was started
    │   ├── ConfigError           a field of the experiment file
    │   ├── DataError             the logs do not hold what the experiment asks for
    │   ├── NotRecognised         a document is of no format that can be imported
    │   ├── ModelNotFoundError    weights that can be had neither from a hub nor from packages
    │   └── ClusterError          the cluster is too small for what is asked
    ├── StorageError              the run's storage did not answer
    ├── EngineError               a model could not be served
    ├── TrainingError             a trainer cannot go on
    ├── TrialStoppedError         a scheduler ended a training early; no failure
    ├── ParityError               a model answers differently in serving than in training
    └── Interrupted               Ctrl-C or SIGTERM; the run can be resumed

A message says what is wrong, where, and what to do. Errors cross process boundaries, so each is
made from one string and pickles as it is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class FlywheelError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class RequestError(FlywheelError):
    """What was asked for cannot be done; found before any work started."""

    exit_code = 2


class ConfigError(RequestError):
    """An experiment file is wrong: the message names file, field, value and what is allowed."""


class DataError(RequestError):
    """The log store does not hold what the experiment needs."""


class NotRecognised(RequestError):  # noqa: N818 -- about a document, not about us
    """A document is of no known format, or lacks what its format leaves to the importer."""


class ModelNotFoundError(RequestError):
    """Neither the hub nor a packaged copy has the weights; the message names both attempts."""


class ClusterError(RequestError):
    """The cluster cannot hold a trial or an engine, or its nodes differ; the message says what."""


class StorageError(FlywheelError):
    """Reading or writing the run's storage failed."""


class EngineError(FlywheelError):
    """A model could not be started or stopped answering."""


class TrainingError(FlywheelError):
    """A trainer cannot go on: a non-finite loss, no training rows, out of memory."""


class TrialStoppedError(FlywheelError):
    """A scheduler ended this training early; raised by the progress callback of a trainer."""


class ParityError(FlywheelError):
    """A served model does not do what it did where it was trained; the message shows where."""


class Interrupted(FlywheelError):  # noqa: N818 -- nothing went wrong
    """The user or the system asked to stop; what is finished is on disk."""

    exit_code = 130


@contextmanager
def boundary(kind: type[FlywheelError], doing: str) -> Iterator[None]:
    """Type an error that escapes a library, once, at the place that knows what was being done.

    Args:
        kind: The class to raise.
        doing: What was being done, as it reads after "while": ``"writing s3://b/run.json"``.

    Raises:
        FlywheelError: ``kind`` for any foreign exception; our own errors pass unchanged.
    """
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        raise kind(f"{type(error).__name__} while {doing}: {error}{_advice(error)}") from error


def _advice(error: Exception) -> str:
    """What to do about a disk that takes nothing more."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "; free some space and run it again with --resume" if full else ""
