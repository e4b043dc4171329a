"""Data parallelism: several processes of one machine, each with a GPU, train one model together.

Every process computes the gradient of its share of a step's rows; the gradients are summed over
all, so that all take the same step and hold the same weights. Rank 0 is the trainer's own process:
it starts the others, reports, keeps checkpoints and saves; what runs alone is rank 0 of 1.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flywheel.errors import TrainingError, boundary
from flywheel.rendering import Example

_PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up."""
_LOOKS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those that train together."""

    rank: int
    size: int

    def share(self, rows: Sequence[Example]) -> list[Example]:
        """The part of a step for this rank: all parts have nearly as many tokens.

        Rows are dealt longest first, back and forth, so every rank knows the others' parts.
        """
        if self.size == 1:
            return list(rows)
        ordered = sorted(rows, key=lambda row: len(row.ids), reverse=True)
        turn = [*range(self.size), *reversed(range(self.size))]
        return [row for i, row in enumerate(ordered) if turn[i % len(turn)] == self.rank]

    def add(self, tensors: Iterable[Any]) -> None:
        """Replace each tensor by its sum over all ranks."""
        if self.size == 1:
            return
        import torch
        from torch.distributed import all_reduce

        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def total(self, numbers: Sequence[float], device: Any) -> list[float]:
        """Sums of numbers over all ranks."""
        if self.size == 1:
            return list(numbers)
        import torch

        summed = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.add([summed])
        found: list[float] = summed.tolist()
        return found


ALONE = Ranks(0, 1)


def current() -> Ranks:
    """The place of this process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def devices() -> int:
    """How many processes this trainer's GPUs are for; one without any."""
    import torch

    return max(1, int(torch.cuda.device_count()))


@contextmanager
def helped(work: Callable[[], object], size: int) -> Iterator[None]:
    """Be rank 0 of ``size`` processes of this machine; the others do ``work`` meanwhile.

    They end with the context, or with this process, whatever ends it.

    Args:
        work: What ranks 1 and up do; picklable. It meets rank 0 in the same calls to `Ranks`.
        size: How many processes train together; with 1 nothing is started.

    Raises:
        TrainingError: The processes cannot reach each other, or one of them failed.
    """
    if size == 1:
        yield
        return
    from torch import distributed, multiprocessing

    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        start = multiprocessing.get_context("spawn").Process
        others = [
            start(target=_help, args=(work, rank, size, meeting, os.getpid()), daemon=True)
            for rank in range(1, size)
        ]
        for process in others:
            process.start()
        try:
            with boundary(TrainingError, f"training on {size} devices together"):
                _join(0, size, meeting)
                yield
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            for process in others:
                process.kill()
                process.join()


def _join(rank: int, size: int, meeting: str) -> None:
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )


def _help(work: Callable[[], object], rank: int, size: int, meeting: str, parent: int) -> None:
    """Body of ranks 1 and up."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _join(rank, size, meeting)
    work()


def _end_with(parent: int) -> None:
    """A trainer that is killed cannot end its helpers; they would wait for it, GPU in hand."""
    while os.getppid() == parent:
        time.sleep(_LOOKS_EVERY_S)
    os._exit(1)
