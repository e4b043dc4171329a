"""Why an engine did not start, in one sentence.

vLLM's exception only says that one of its processes failed, and Ray Serve's only that a deployment
did. In the replica, `explained` finds what that process wrote; in the driver, `raised` finds what
the replica raised.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flywheel.errors import ClusterError, EngineError, FlywheelError

_LOOKED_AT = 4 * 2**20
"""Bytes of an output; the first error stands near its beginning."""
_MOST = 500
"""Characters of a reason."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LOGGED = re.compile(
    r"^(?!\(MainProcess ).*?ERROR [\d-]+ [\d:]+ \[[^\]]*\] "
    r"(?:\w+\.)*(\w*(?:Error|Exception)\w*: .*\S)",
    re.MULTILINE,
)
"""What the replica's own process logs as an error need be none, and what is one it raises."""
_RAISED = re.compile(r"(?:[\w.]+\.)?(\w+): (.*)")


@contextmanager
def explained() -> Iterator[None]:
    """Raise what kept an engine from starting, by the first error that its processes logged.

    Raises:
        EngineError: The reason, and where the whole output is. Our own errors pass unchanged.
    """
    outputs = {path: path.stat().st_size for path in _outputs()}
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        logged = {path: first_error(_since(path, start)) for path, start in outputs.items()}
        path, why = next(((path, why) for path, why in logged.items() if why), (None, ""))
        why = why or f"{type(error).__name__}: {' '.join(str(error).split())}"
        path = path or next(iter(outputs), None)
        more = f" (all it wrote: {path} on {socket.gethostname()})" if path else ""
        raise EngineError(f"{why[:_MOST]}{more}") from error


def first_error(output: str) -> str:
    """The first exception that vLLM's processes logged: those after it are its consequences."""
    found = _LOGGED.search(_COLOURS.sub("", output))
    return found.group(1) if found else ""


def raised(messages: Iterable[str], model: str) -> FlywheelError:
    """What kept a model's engine from starting: the error that ends one of Serve's messages.

    Args:
        messages: Of its deployments; that of one that failed quotes its replica's traceback.
        model: Whose engine it is.

    Returns:
        An `EngineError`; a `ClusterError` where that is what the replica raised.
    """
    for message in messages:
        lines = _COLOURS.sub("", message).strip().splitlines()
        if found := _RAISED.fullmatch(lines[-1].strip()) if lines else None:
            kind, why = found.groups()
            if kind == ClusterError.__name__:
                return ClusterError(why)
            why = why if kind == EngineError.__name__ else f"{kind}: {why}"
            return EngineError(f"the engine of {model} did not start: {why}")
    return EngineError(f"the engine of {model} did not start, and Ray Serve does not say why")


def _outputs() -> list[Path]:
    """The files that this process and its children write to, if it is files."""
    found: dict[Path, None] = {}
    for number in (1, 2):
        with suppress(OSError):
            path = Path(f"/proc/self/fd/{number}").readlink()
            if path.is_file():
                found[path] = None
    return list(found)


def _since(path: Path, start: int) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(start)
        return file.read(_LOOKED_AT).decode(errors="replace")
    return ""
