"""A thousand trials on 16 nodes of 8 GPUs: how long GPUs idle, and whether anything is starved.

    python -m tests.benchmarks.cluster [--simulate]

Two parts. `simulate` runs no process and waits for nothing: events in simulated seconds drive the
product's own decisions (`planning.plan`, `forecast.longest_first`, `sweep.Listed`, `asking.Asked`,
`Cluster.room` and `share`), with given service times of trainers and engines on 128 made-up GPUs.
`really` starts a Ray cluster of four nodes with two made-up GPUs each and sends sleeping trainings
over it through Ray Tune, as a run does. Each writes its part of ``results/cluster.json``, and the
simulation the chart ``docs/cluster.svg``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flywheel import config, forecast, planning, sizing
from flywheel.asking import Asked, Queue
from flywheel.budget import Budget
from flywheel.cluster import Cluster, Want
from flywheel.config import BudgetConfig, Experiment
from flywheel.folders import Desk
from flywheel.storage import Storage
from flywheel.sweep import Feed, Listed
from flywheel.types import Trial

from . import results

TESTS = Path(__file__).parents[1]
NODES, GPUS = 16, 8
ROWS, EVAL = 4_000, 500
TOKENS = 500
"""Of a training row."""
SPREADS = (0.2, 0.5, 1.0)
"""Service times vary by so much (log-normal) around what they should be; charted is the first."""
PREPARE_S = 40.0
"""A trainer's process, libraries and weights, before its first step."""
REAL = {"nodes": 4, "gpus": 2, "trials": 60, "seconds": 10.0}

console = Console(width=110, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, run for real, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cluster")
    parser.add_argument("--simulate", action="store_true", help="leave out the real cluster")
    only = parser.parse_args(arguments).simulate
    diary, grown = simulate()
    simulated = {
        **figures(diary),
        "decisions_bytes_per_trial": round(grown),
        "idle_share_while_trials_wait": {what: idle(diary, *diary.waiting[what]) for what in WAITS},
        "with_other_spreads": {str(spread): _spread(spread) for spread in SPREADS[1:]},
    }
    told = {"simulated": {"nodes": NODES, "gpus": NODES * GPUS, "trials": 1_000, **simulated}}
    if not only:
        told["real"] = {**REAL, **really()}
    for part, values in told.items():
        table = Table("figure", "value", title=part)
        for name, value in values.items():
            table.add_row(name, str(value))
        console.print(table)
    results.write("cluster", told)
    chart(diary, TESTS.parent / "docs" / "cluster.svg")


@dataclass(frozen=True, slots=True)
class Model:
    """Made-up service times, of the order of what such models take on a large GPU."""

    billions: float
    gpus: int
    """Of an engine's replica; trainers take one each."""
    tokens_per_s: float
    """Of training."""
    answer_s: float
    """One answer, 16 being asked at once."""
    start_s: float
    """Of an engine."""


MODELS = {
    "made-up/1b": Model(1, 1, 20_000, 1.0, 60),
    "made-up/3b": Model(3, 1, 9_000, 1.5, 80),
    "made-up/8b": Model(8, 1, 4_000, 2.5, 120),
    "made-up/32b": Model(32, 4, 2_000, 3.0, 300),
}


@dataclass
class Clock:
    """Simulated seconds, and what happens in them."""

    now: float = 0.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    count: int = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what))

    def run(self, decide: Callable[[], None]) -> None:
        """Until nothing happens any more; after each event there may be something to decide."""
        decide()
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
            decide()


@dataclass
class Diary:
    """How many GPUs did what, and when."""

    spans: list[tuple[str, float, float, int]] = field(default_factory=list)
    """What, from, to, GPUs."""
    waiting: dict[str, tuple[float, float]] = field(default_factory=dict)
    """From when to when trials waited, by what they waited for."""

    def seconds(self, what: str) -> float:
        """GPU seconds spent so."""
        return sum((end - begin) * gpus for kind, begin, end, gpus in self.spans if kind == what)

    @property
    def end(self) -> float:
        """When the last thing ended."""
        return max(end for _, _, end, _ in self.spans)

    def busy(self, what: str, at: float) -> int:
        """How many GPUs did this at that second."""
        return sum(
            gpus for kind, begin, end, gpus in self.spans if kind == what and begin <= at < end
        )


def experiment() -> Experiment:
    """A thousand trials: four models, each as it is, with nine prompts of examples, 240 LoRAs."""
    return config.validate(
        {
            "name": "cluster",
            "logs": "made-up",
            "workload": "made-up",
            "dataset": {"eval_size": EVAL},
            "candidates": [
                {"model": name, "gpus": model.gpus, "max_replicas": NODES * GPUS}
                for name, model in MODELS.items()
            ],
            "methods": {
                "base": {},
                "icl": {"examples": [1, 2, 3], "relevance_ratio": [0.2, 0.5, 1.0]},
                "lora": {
                    "gpus": 1,
                    "rank": [8, 16, 32, 64],
                    "learning_rate": [n * 1e-4 for n in range(1, 11)],
                    "epochs": [1, 2],
                    "max_train_records": [500, 1000, 2000],
                },
            },
            "judge": None,
        },
        "cluster",
    )


def _spread(spread: float) -> dict[str, float]:
    """How long GPUs idle, and how long the longest training takes: asking begins after it."""
    diary, _ = simulate(spread)
    took = [end - begin for what, begin, end, _ in diary.spans if what == "training"]
    return {
        "hours": figures(diary)["hours"],
        "idle_share": figures(diary)["idle_share"],
        "idle_share_while_trainings_wait": idle(diary, *diary.waiting["training"]),
        "longest_training_hours": round(max(took) / 3600, 2),
    }


def simulate(spread: float = SPREADS[0]) -> tuple[Diary, float]:
    """Train and ask everything; give what GPUs did, and the driver's bytes for each trial."""
    wanted, cluster = experiment(), Cluster(_nodes(), ours=False)
    clock, diary, rng = Clock(), Diary(), random.Random(0)
    tracemalloc.start()
    planned = planning.plan(wanted, "made-up")
    before = tracemalloc.get_traced_memory()[0]
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Storage(folder), "bench")
        trained = [trial for trial in planned if trial.method == "lora"]
        vary = partial(rng.lognormvariate, 0, spread)
        _train(trained, wanted, cluster, desk, clock, diary, vary)
        _ask(planned, wanted, cluster, desk, clock, diary, vary)
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return diary, grown / len(planned)


def _train(
    trained: Sequence[Trial],
    wanted: Experiment,
    cluster: Cluster,
    desk: Desk,
    clock: Clock,
    diary: Diary,
    vary: Callable[[], float],
) -> None:
    """As `stages.training` does: longest first, as many at once as the cluster has room for."""
    assert wanted.methods.lora is not None
    needs = cluster.trainer_needs(wanted.methods.lora)
    ordered = forecast.longest_first(trained, ROWS, lambda model: MODELS[model].billions)
    feed = Listed(ordered, desk, _budget(clock), lambda trial: None)

    def seconds(trial: Trial) -> float:
        rows = trial.parameters["max_train_records"] * trial.parameters["epochs"]
        computing = rows * TOKENS / MODELS[trial.model].tokens_per_s
        return PREPARE_S + computing * vary()

    places = min(cluster.room(needs), feed.expected)
    _drive(feed, places, seconds, "training", clock, diary, lambda trial: needs.gpus)


def _ask(
    planned: Sequence[Trial],
    wanted: Experiment,
    cluster: Cluster,
    desk: Desk,
    clock: Clock,
    diary: Diary,
    vary: Callable[[], float],
) -> None:
    """As `stages` does: engines side by side, replicas shared out, a trial for each of them."""
    groups = {c.model: [t for t in planned if t.model == c.model] for c in wanted.candidates}
    wants = [
        Want(
            cluster.engine_needs(candidate),
            candidate.min_replicas,
            min(candidate.max_replicas or 1, len(groups[candidate.model])),
            len(groups[candidate.model]) * sizing.token_bytes(2e9 * model.billions, model.gpus),
        )
        for candidate, model in zip(wanted.candidates, MODELS.values(), strict=True)
    ]
    replicas = cluster.share(wants)
    queues = [
        Queue(deque(mine), nullcontext, copies)
        for mine, copies in zip(groups.values(), replicas, strict=True)
    ]
    feed, began = Asked(queues, desk, _budget(clock), lambda trial: None), clock.now

    def opened(queue: Queue) -> None:
        queue.open = True

    for queue, model in zip(queues, MODELS.values(), strict=True):
        clock.after(model.start_s, partial(opened, queue))
        held = model.gpus * queue.places
        diary.spans.append(("starting", began, began + model.start_s, held))

    def seconds(trial: Trial) -> float:
        asked = EVAL / trial.settings["concurrency"] * MODELS[trial.model].answer_s
        return asked * vary()

    _drive(feed, feed.places, seconds, "answering", clock, diary, lambda t: MODELS[t.model].gpus)


def _drive(
    feed: Feed,
    places: int,
    seconds: Callable[[Trial], float],
    doing: str,
    clock: Clock,
    diary: Diary,
    gpus: Callable[[Trial], int],
) -> None:
    """Do with a feed what `fanout` does: ask for the next trial whenever a place is free."""
    running: set[str] = set()
    began = last = clock.now

    def end(trial: Trial) -> None:
        running.remove(trial.key)
        feed.ended(trial)

    def decide() -> None:
        nonlocal last
        while len(running) < places and feed.ready:
            trial = feed.next()
            if trial is None:
                return
            takes = seconds(trial)
            running.add(trial.key)
            last = clock.now
            diary.spans.append((doing, clock.now, clock.now + takes, gpus(trial)))
            clock.after(takes, partial(end, trial))

    clock.run(decide)
    diary.waiting[doing] = (began, last)


def _nodes() -> list[dict[str, float]]:
    return [{"CPU": 4.0}] + [{"CPU": 64.0, "GPU": float(GPUS)}] * NODES


def _budget(clock: Clock) -> Budget:
    return Budget(BudgetConfig(), lambda: clock.now)


DOING = ("training", "starting", "answering")
WAITS = ("training", "answering")


def figures(diary: Diary) -> dict[str, float]:
    """What the simulation came to: GPU seconds spent so, as a share of all there were."""
    every = NODES * GPUS * diary.end
    shares = {what: diary.seconds(what) / every for what in DOING}
    return {
        "hours": round(diary.end / 3600, 2),
        **{f"{what}_share": round(share, 3) for what, share in shares.items()},
        "idle_share": round(1 - sum(shares.values()), 3),
    }


def idle(diary: Diary, begin: float, end: float) -> float:
    """The share of all GPU seconds between these two in which nothing was done."""
    spans = [
        (max(b, begin), min(e, end), gpus) for what, b, e, gpus in diary.spans if what in DOING
    ]
    held = sum((e - b) * gpus for b, e, gpus in spans if e > b)
    return round(1 - held / ((end - begin) * NODES * GPUS), 3)


def chart(diary: Diary, path: Path) -> None:
    """What the GPUs did over time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "flywheel"  # the same figures make the same file
    from matplotlib import pyplot as plt

    times = [diary.end * n / 240 for n in range(241)]
    rows = [[diary.busy(what, at) for at in times] for what in DOING]
    figure, axes = plt.subplots(figsize=(8, 3))
    hours = [at / 3600 for at in times]
    labels = ["training", "engines starting", "answering"]
    axes.stackplot(
        hours, *rows, labels=labels, colors=["#4c72b0", "#c9c9c9", "#dd8452"], step="pre"
    )
    axes.set(xlabel="hours", ylabel="GPUs", xlim=(0, hours[-1]), ylim=(0, NODES * GPUS))
    axes.legend(loc="lower left")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def really() -> dict[str, float]:
    """Sleeping trainings on a real cluster of made-up GPUs, through Ray Tune."""
    sys.path.insert(0, str(TESTS))
    import raylets

    plan = {"trials": REAL["trials"], "seconds": REAL["seconds"], "gpus": 1,
            "together": REAL["nodes"] * REAL["gpus"]}  # fmt: skip
    nodes = [raylets.Node(2), *[raylets.Node(2, int(REAL["gpus"]))] * int(REAL["nodes"])]
    with raylets.cluster(*nodes) as running, tempfile.TemporaryDirectory() as folder:
        script = str(TESTS / "ray" / "sleepers.py")
        warm = {**plan, "trials": plan["together"], "seconds": 0.1}
        for one in (warm, plan):
            place = f"{folder}/{one['trials']}"
            done = running.python(script, running.address, place, json.dumps(one), timeout=1_200)
            assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    trials = told["trials"]
    assert not [one for one in trials if "failed" in one]
    busy = sum(one["ended"] - one["began"] for one in trials)
    took = max(one["ended"] for one in trials) - min(one["began"] for one in trials)
    return {
        "seconds": round(took, 1),
        "idle_share": round(1 - busy / (took * plan["together"]), 3),
        "driver_kb_per_trial": round(told["grown_bytes"] / len(trials) / 1_000, 1),
    }


if __name__ == "__main__":
    main()
