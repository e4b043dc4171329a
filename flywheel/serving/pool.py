"""Engines that start when a trial needs one and stop when none will need it again.

Whoever asks an engine holds a lease of it. How many leases are still to come is announced
(`Pool.expect`), so that an engine stops with its last one and no earlier: between two leases it
idles. Where another model needs its place meanwhile, the engine idle for the longest is stopped.
Engines of several models start side by side, each in the thread that asked for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Condition

from flywheel.errors import ClusterError, EngineError
from flywheel.serving.engine import EngineSpec

Start = Callable[[EngineSpec], AbstractContextManager[EngineSpec]]
"""Starts an engine, gives its spec with the address filled in, and stops it."""
Abort = Callable[[EngineSpec], None]
"""Gives up an engine that another thread is starting; its start then fails."""
Fits = Callable[[Sequence[EngineSpec]], bool]
"""Whether these engines fit on the cluster side by side."""


_GIVEN_UP_S = 60.0
"""How long an engine that is given up may take to notice."""


@dataclass(slots=True)
class _Engine:
    spec: EngineSpec
    held: ExitStack = field(default_factory=ExitStack)
    ready: bool = False
    """Whether it has started; until then its place is taken all the same."""
    leases: int = 0
    used: int = 0
    """When its latest lease ended, counted in leases of the pool."""


@dataclass(slots=True)
class Pool:
    """The engines of a run, known by their specs' names. Safe in many threads."""

    start: Start
    fits: Fits
    abort: Abort = lambda spec: None
    starts: Counter[str] = field(default_factory=Counter)
    """How often an engine was started, by model."""
    _engines: dict[str, _Engine] = field(default_factory=dict)
    _expected: Counter[str] = field(default_factory=Counter)
    _ended: int = 0
    _closed: bool = False
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
            EngineError: It did not start, or the pool was closed.
        """
        engine = self._hold(spec)
        try:
            yield engine.spec
        finally:
            with self._changed:
                engine.leases -= 1
                self._ended += 1
                engine.used = self._ended
                running = self._engines.get(spec.name) is engine  # unless the pool was closed
                if running and not engine.leases and not self._expected[spec.name]:
                    self._stop(engine)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop every engine, those too that others are starting; nobody gets one any more."""
        deadline = time.monotonic() + _GIVEN_UP_S
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._engines and time.monotonic() < deadline:
                for engine in list(self._engines.values()):
                    if engine.ready:
                        self._stop(engine)
                    else:
                        self.abort(engine.spec)  # again, as it may only now be known to Serve
                if self._engines:
                    self._changed.wait(1.0)

    def _hold(self, spec: EngineSpec) -> _Engine:
        """Take a lease of a running engine, of one that another starts, or of one to be started."""
        with self._changed:
            self._expected[spec.name] = max(0, self._expected[spec.name] - 1)
            while not self._closed and (spec.name in self._engines or not self._make_room(spec)):
                engine = self._engines.get(spec.name)
                if engine and engine.ready:
                    engine.leases += 1
                    return engine
                self._changed.wait()
            if self._closed:
                raise EngineError(f"the engine of {spec.config.model}: the run is being stopped")
            engine = self._engines[spec.name] = _Engine(spec, leases=1)
        return self._begin(engine)

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

    def _begin(self, engine: _Engine) -> _Engine:
        """Start it without holding up others."""
        name = engine.spec.name
        try:
            running = engine.held.enter_context(self.start(engine.spec))
        except BaseException:
            with self._changed:
                self._engines.pop(name, None)
                self._changed.notify_all()
            raise
        with self._changed:
            engine.spec, engine.ready = running, True
            self.starts[running.config.model] += 1
            self._changed.notify_all()
        return engine

    def _stop(self, engine: _Engine) -> None:
        del self._engines[engine.spec.name]
        engine.held.close()
