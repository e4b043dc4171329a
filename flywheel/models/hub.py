"""The Hugging Face hub: a cheap question first, then the files, into Hugging Face's own cache.

The environment is Hugging Face's own: ``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``,
``HF_TOKEN``. Every failure is a `ModelNotFoundError` whose message is one attempt's account.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from flywheel.errors import ModelNotFoundError, boundary

ALLOWED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
"""All that is ever downloaded: no pickles, no code."""
IGNORED = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
"""The same weights in formats that nothing here reads."""
TIMEOUT_S = 3.0
"""How long the hub may take to answer before it counts as unreachable."""


def cached(model: str) -> Path | None:
    """The model's folder in the Hugging Face cache if all of it is there; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model,
            cache_dir=_cache(),
            allow_patterns=ALLOWED,
            ignore_patterns=IGNORED,
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(found)
    return folder if _complete(folder) else None


def offers(model: str) -> str:
    """Ask the hub whether it has the model as safetensors, and say so.

    Raises:
        ModelNotFoundError: The hub is switched off, unreachable, or does not have it.
    """
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ModelNotFoundError(f"Hub {_endpoint()}: not asked, as HF_HUB_OFFLINE is set")
    with boundary(ModelNotFoundError, f"asking the hub {_endpoint()}"):
        info = HfApi(endpoint=_endpoint()).model_info(model, timeout=TIMEOUT_S)
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
        raise ModelNotFoundError(f"Hub {_endpoint()}: it has {model} but not as safetensors")
    return f"hub {_endpoint()}"


def download(model: str, tell: Callable[[str], None]) -> Path:
    """Download a model's files and return their folder.

    Raises:
        ModelNotFoundError: As `offers`, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    where = offers(model)
    tell(f"{model}: downloading from {where}")
    with boundary(ModelNotFoundError, f"downloading from the {where}"):
        folder = snapshot_download(
            model,
            cache_dir=_cache(),
            endpoint=_endpoint(),
            allow_patterns=ALLOWED,
            ignore_patterns=IGNORED,
        )
    return Path(folder)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _cache() -> str | None:
    return os.environ.get("HF_HUB_CACHE")


def _complete(folder: Path) -> bool:
    """An interrupted download by an older client leaves a folder too, without all its weights."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return (folder / "model.safetensors").is_file()
