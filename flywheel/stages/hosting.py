"""The engines of a session: which trials one engine serves, how many replicas it gets, and when.

Trials of candidates with the same weights, served alike, share an engine, adapters and all; a fully
fine-tuned model needs one of its own. The cluster's room is shared out by what there is to do.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

from flywheel import metrics, models, sizing
from flywheel.asking import Queue
from flywheel.cluster import Want
from flywheel.config import CandidateConfig, ModelConfig
from flywheel.methods import full
from flywheel.serving import Endpoint, engine, remote
from flywheel.serving.engine import EngineSpec
from flywheel.serving.pool import Pool
from flywheel.stages.session import Session
from flywheel.types import Trial


@contextmanager
def engines(session: Session, starts: Counter[str]) -> Iterator[Engines]:
    """The engines of a session, none of which outlives the block; ``starts`` counts by model."""
    found = Engines(session, starts)
    with ExitStack() as cleanup:
        if not session.cluster.ours:  # a Ray of our own takes Serve down with it
            cleanup.callback(engine.stop_if_idle)
        cleanup.callback(found.pool.close)
        yield found


class Engines:
    """Starts engines when they are asked for, and keeps them as long as they will be."""

    def __init__(self, session: Session, starts: Counter[str]) -> None:
        """See `engines`, which also stops them."""
        self.experiment, self.desk = session.experiment, session.desk
        self.cluster, self.monitor = session.cluster, session.monitor
        self.owner = f"{session.desk.run_id}-{uuid.uuid4().hex}"
        """Engines of a session that was killed are no longer ours."""
        self.pool = Pool(self._start, self._fit, engine.give_up, starts)

    def queues(self, waiting: Sequence[Trial], endpoints: dict[str, Endpoint]) -> list[Queue]:
        """What is to be asked, by engine or endpoint; fills in where each trial is."""
        remotes: dict[str, Queue] = {}
        served: dict[str, tuple[EngineSpec, list[Trial]]] = {}
        for candidate, mine in self._by_weights(waiting):
            if candidate.remote and mine:
                there = remote(candidate)
                endpoints |= {trial.key: there for trial in mine}
                remotes.setdefault(there.url, Queue(deque(), nullcontext)).trials.extend(mine)
            elif mine:
                spec = self.spec(candidate, waiting)
                served.setdefault(spec.name, (spec, []))[1].extend(mine)
        queues = []
        replicas = self.cluster.share([self._want(*one) for one in served.values()])
        for (spec, mine), copies in zip(served.values(), replicas, strict=True):
            placed = engine.located(spec.times(copies), local=self.cluster.ours)
            endpoints |= {trial.key: placed.endpoint(_adapter(trial)) for trial in mine}
            self.pool.expect(placed)
            queues.append(Queue(deque(mine), partial(self.lease, placed), copies))
        return [*remotes.values(), *queues]

    def spec(self, model: ModelConfig, waiting: Sequence[Trial] = ()) -> EngineSpec:
        """The engine of a model, for the adapters among these trials."""
        ranks = [t.parameters["rank"] for t in waiting if t.model == model.model and _adapter(t)]
        adapters = self.desk.trials.url if ranks else ""
        needs = self.cluster.engine_needs(model)
        return EngineSpec.of(model, needs, self.owner, adapters, max(ranks, default=0))

    @contextmanager
    def lease(self, spec: EngineSpec) -> Iterator[EngineSpec]:
        """An engine, for as long as the block lasts; see `Pool.lease`."""
        asked = time.monotonic()
        with self.pool.lease(spec) as served:
            metrics.QUEUE_SECONDS.tell(time.monotonic() - asked, what="engine")
            yield served

    @contextmanager
    def _start(self, spec: EngineSpec) -> Iterator[EngineSpec]:
        model = spec.config.model
        self.monitor.update(f"starting the engine of {model}", 0, 0)
        with self.monitor.engine(model), engine.serve(spec, local=self.cluster.ours) as served:
            self.monitor.engine_up(model)
            yield served

    def _fit(self, specs: Sequence[EngineSpec]) -> bool:
        return self.cluster.holds([need for spec in specs for need in spec.needs])

    def _want(self, spec: EngineSpec, mine: Sequence[Trial]) -> Want:
        """At most a replica for each trial; what an answer takes grows with the weights."""
        least = spec.config.min_replicas
        most = max(least, min(spec.config.max_replicas or least, len(mine)))
        weight = models.weight(spec.config.model, self.experiment.local_models)
        return Want(spec.needs[0], least, most, len(mine) * sizing.token_bytes(weight, spec.gpus))

    def _by_weights(
        self, planned: Sequence[Trial]
    ) -> Iterator[tuple[CandidateConfig, list[Trial]]]:
        """Trials that one engine can serve: a candidate's, less those with weights of their own."""
        for candidate in self.experiment.candidates:
            mine = [trial for trial in planned if trial.candidate == candidate.title]
            yield candidate, [trial for trial in mine if trial.method != "full"]
            for trial in mine:
                if trial.method == "full":
                    weights = self.desk.folder(trial).at(full.FOLDER).url
                    yield candidate.model_copy(update={"model": weights}), [trial]


def _adapter(trial: Trial) -> str:
    """The adapter that a trial asks the engine for; none is the base model."""
    return trial.key if trial.method == "lora" else ""
