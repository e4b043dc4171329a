"""Spread a step over the cluster with Ray Data, and nothing of Ray Data beyond this module."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flywheel import nodes, versions
from flywheel.cluster import own_errors
from flywheel.types import Json


def over(items: list[Json], step: Callable[..., Iterator[Json]], *args: Any) -> Iterator[Json]:
    """What ``step`` yields for each item, as it comes, from all over the cluster.

    Raises:
        ClusterError: A node that joined late has other versions than this process.
    """
    import ray.data

    driver = versions.installed()

    def fitting(item: Json) -> Iterator[Json]:
        nodes.require_here(driver)
        yield from step(item, *args)

    if not items:
        return
    with _quiet(), own_errors():
        data = ray.data.from_items(items, override_num_blocks=len(items))
        mapped = data.flat_map(fitting)
        for batch in mapped.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data keeps its progress and its notes to its own log files while the block runs."""
    import ray.data

    with warnings.catch_warnings():
        # Making its context, Ray Data 2.60 warns of its own defaults.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    handlers = logging.getLogger("ray.data").handlers
    consoles = {h: h.level for h in handlers if isinstance(h, logging.StreamHandler)}
    for console in consoles:
        console.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before
        for console, level in consoles.items():
            console.setLevel(level)
