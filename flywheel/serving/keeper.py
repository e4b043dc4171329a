"""An engine on a cluster ends with the process that started it, even if that is killed.

Ray Serve keeps applications until somebody deletes them, so that an engine would hold its GPU for
ever after a driver that was killed. A keeper, which outlives the driver, waits for the end of an
actor that does not. That one is on the driver's node: the loss of another must not look like it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any


@contextmanager
def kept(application: str) -> Iterator[None]:
    """Have the Serve application deleted if this process dies in the meantime."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    owner = ray.remote(num_cpus=0)(_Owner).options(scheduling_strategy=here).remote()
    again = {"max_restarts": -1, "max_task_retries": -1}  # elsewhere, if its node is lost
    remote = ray.remote(num_cpus=0)(_Keeper).options(lifetime="detached", **again)
    keeper = remote.remote(owner, application)
    ray.get(keeper.here.remote())
    try:
        yield
    finally:
        ray.kill(keeper)
        ray.kill(owner)


class _Owner:
    """Lives as long as the driver that made it."""

    async def end(self) -> None:
        """Never comes to its end."""
        await asyncio.Event().wait()


class _Keeper:
    """Lives until it has nothing left to do.

    It waits in a thread from its first moment on, not in a task: a task would be asked again where
    the keeper is restarted, but each ordered end would make Ray tell the user that it failed.
    """

    def __init__(self, owner: Any, application: str) -> None:
        Thread(target=self._wait, args=(owner, application), daemon=True).start()

    def here(self) -> None:
        """Answer: from then on it outlives its driver."""

    def _wait(self, owner: Any, application: str) -> None:
        """Delete the application once ``owner`` is gone, then go, too."""
        import ray
        from ray import serve
        from ray.exceptions import RayActorError

        with suppress(RayActorError):  # what this waits for
            ray.get(owner.end.remote())
        try:
            serve.delete(application)
        finally:
            ray.kill(ray.get_runtime_context().current_actor)
