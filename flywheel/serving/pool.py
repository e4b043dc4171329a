"""Engines that start when a trial needs one and stop when none will need it again.

Whoever asks an engine holds a lease of it. How many leases are still to come is announced
(`Pool.expect`), so that an engine stops with its last one and no earlier: between two leases it
idles. Where another model needs its place meanwhile, the engine idle for the longest is stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Condition

from flywheel.errors import ClusterError
from flywheel.serving.engine import EngineSpec

Start = Callable[[EngineSpec], AbstractContextManager[EngineSpec]]
"""Starts an engine, gives its spec with the address filled in, and stops it."""
Fits = Callable[[Sequence[EngineSpec]], bool]
"""Whether these engines fit on the cluster side by side."""


@dataclass(slots=True)
class _Engine:
    spec: EngineSpec
    held: ExitStack
    leases: int = 0
    used: int = 0
    """When its latest lease ended, counted in leases of the pool."""


@dataclass(slots=True)
class Pool:
    """The engines of a run, known by their specs' names. Safe in many threads."""

    start: Start
    fits: Fits
    starts: Counter[str] = field(default_factory=Counter)
    """How often an engine was started, by model."""
    _engines: dict[str, _Engine] = field(default_factory=dict)
    _expected: Counter[str] = field(default_factory=Counter)
    _ended: int = 0
    _changed: Condition = field(default_factory=Condition)

    def expect(self, spec: EngineSpec, leases: int = 1) -> None:
        """Announce leases to come: the engine is kept for them, if there is room."""
        with self._changed:
            self._expected[spec.name] += leases

    @contextmanager
    def lease(self, spec: EngineSpec) -> Iterator[EngineSpec]:
        """Hold the engine of this name, starting it if need be; waits for room that others hold.

        Raises:
            ClusterError: Not even alone does the engine fit.
            EngineError: It did not start.
        """
        with self._changed:
            self._expected[spec.name] = max(0, self._expected[spec.name] - 1)
            engine = self._running(spec)
            engine.leases += 1
        try:
            yield engine.spec
        finally:
            with self._changed:
                engine.leases -= 1
                self._ended += 1
                engine.used = self._ended
                if not engine.leases and not self._expected[spec.name]:
                    self._stop(engine)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop every engine."""
        with self._changed:
            for engine in list(self._engines.values()):
                self._stop(engine)

    def _running(self, spec: EngineSpec) -> _Engine:
        while spec.name not in self._engines and not self._make_room(spec):
            self._changed.wait()
        return self._engines.get(spec.name) or self._begin(spec)

    def _make_room(self, spec: EngineSpec) -> bool:
        """Stop idle engines until this one fits; False if those in use leave no room."""
        while not self.fits([*(engine.spec for engine in self._engines.values()), spec]):
            if not self._engines:
                raise ClusterError(f"the engine of {spec.config.model} does not fit on the cluster")
            idle = [engine for engine in self._engines.values() if not engine.leases]
            if not idle:
                return False
            self._stop(min(idle, key=lambda engine: engine.used))
        return True

    def _begin(self, spec: EngineSpec) -> _Engine:
        held = ExitStack()
        engine = _Engine(held.enter_context(self.start(spec)), held)
        self._engines[spec.name] = engine
        self.starts[spec.config.model] += 1
        return engine

    def _stop(self, engine: _Engine) -> None:
        del self._engines[engine.spec.name]
        engine.held.close()
