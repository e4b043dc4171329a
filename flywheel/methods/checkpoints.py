"""A training run's state on disk: weights that learn, the optimiser, random numbers, the curve.

One safetensors file, written whole or not at all, is all that a killed trainer needs to go on as if
nothing had happened. It names what it belongs to; a checkpoint of another training is not used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from flywheel.errors import StorageError, TrainingError, boundary
from flywheel.storage import Storage
from flywheel.types import Json

NAME = "checkpoint.safetensors"
_NOTES, _CPU, _CUDA = "notes", "random.cpu", "random.cuda"

Tensors = dict[str, Any]


class Checkpoints:
    """Where one training keeps its state, and when it was last written."""

    def __init__(self, folder: Storage | None, owner: str, every_s: float | None) -> None:
        """Nothing is read or written yet.

        Args:
            folder: Where `NAME` lies; ``None`` keeps none.
            owner: What the training is: a hash of all that decides it.
            every_s: Seconds between checkpoints; ``None`` writes none.
        """
        self._folder = folder
        self._owner = owner
        self._every_s = every_s
        self._written = time.monotonic()
        self.error = ""
        """Why the last attempt to write failed; the checkpoint before it is still whole."""

    def restore(self) -> tuple[Tensors, Json] | None:
        """Tensors and notes of the last checkpoint, random state set; none if there is none.

        Raises:
            TrainingError: The file is there but cannot be read.
        """
        import torch
        from safetensors.torch import load

        if self._folder is None or not self._folder.exists(NAME):
            return None
        with boundary(TrainingError, f"reading {NAME} in {self._folder.url} (delete it to start)"):
            tensors = load(self._folder.read_bytes(NAME))
            notes = json.loads(tensors.pop(_NOTES).numpy().tobytes())
        if notes.pop("owner") != self._owner:
            return None
        torch.set_rng_state(tensors.pop(_CPU))
        cuda = tensors.pop(_CUDA, None)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        return tensors, notes

    def save(self, state: Callable[[], tuple[Tensors, Json]]) -> None:
        """Write a checkpoint if it is time. A full disk costs the checkpoint, not the training."""
        if self._folder is None or self._every_s is None:
            return
        if time.monotonic() - self._written < self._every_s:
            return
        try:
            self._folder.write_bytes(NAME, self._bytes(*state()))
            self.error = ""
        except StorageError as error:
            self.error = str(error)
        self._written = time.monotonic()

    def _bytes(self, tensors: Tensors, notes: Json) -> bytes:
        import torch
        from safetensors.torch import save

        note = json.dumps({**notes, "owner": self._owner}).encode()
        random = {_CPU: torch.get_rng_state()}
        if torch.cuda.is_available():
            random[_CUDA] = torch.cuda.get_rng_state()
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        notes_tensor = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        return bytes(save({**plain, **random, _NOTES: notes_tensor}))
