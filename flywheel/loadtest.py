"""A trial's load test, run while its engine is held, after its answers.

Eval records are the sample. An engine of ours has just answered them, and would find their prompts
in its prefix cache; a salt of each load's own keeps it from that, and lets the records of one load
share what they have in common, as in production. Each load leaves ``latency/<load>.jsonl`` when it
is over, so a run that was killed measures only what is missing; ``latency.json`` comes last.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace

from flywheel import latency, trials
from flywheel.config import LatencyConfig, SloConfig
from flywheel.folders import Desk
from flywheel.inference import Ask, load
from flywheel.latency import Load, Timing
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.trials import Progress
from flywheel.types import Json, LoadTest, Trial

MARKER = "latency.json"
_SPLITS = ("eval", "val", "train")
_WARM_UP = 8
"""Requests in flight before a replay."""


def measure(
    trial: Trial, desk: Desk, endpoint: Endpoint, config: LatencyConfig, progress: Progress
) -> None:
    """Send the sample at every load that was not measured yet.

    Raises:
        EngineError: The endpoint is down.
    """
    folder = desk.folder(trial)
    if folder.exists(MARKER):
        return
    sample, warmup = _sample(trial, desk, config)
    wanted, timings = latency.loads(config), folder.at("latency")
    for done, one in enumerate(wanted):
        progress(done * len(sample), len(wanted) * len(sample))
        if not timings.exists(f"{one.name}.jsonl"):
            found = _send(trial, desk, endpoint, one, sample, warmup)
            timings.write_lines(f"{one.name}.jsonl", map(asdict, found))
    folder.write_json(MARKER, rule(config))
    progress(len(wanted) * len(sample), len(wanted) * len(sample))


def rule(config: LatencyConfig) -> Json:
    """What of the section decides what is sent; the SLO may change without measuring anew."""
    return config.model_dump(mode="json", exclude={"slo"})


def timings(folder: Storage) -> dict[str, list[Timing]]:
    """What was measured in a trial's folder, by load."""
    at = folder.at("latency")
    names = at.names(".jsonl")
    return {n.removesuffix(".jsonl"): [Timing(**row) for row in at.read_lines(n)] for n in names}


def read(folder: Storage, config: LatencyConfig, slo: SloConfig) -> LoadTest | None:
    """What a trial's load test came to; ``None`` if it did not come to its end."""
    if not folder.exists(MARKER):
        return None
    found = timings(folder)
    names = [one.name for one in latency.loads(config) if found.get(one.name)]
    return latency.load_test([latency.level(name, found[name], slo) for name in names], slo)


def _sample(trial: Trial, desk: Desk, config: LatencyConfig) -> tuple[list[Ask], list[Ask]]:
    """What is measured and what warms up; ids are hashes, so the first are a fair sample."""
    records = desk.records(trial, "eval")[: config.requests]
    others = desk.records(trial, "val") or desk.records(trial, "train")
    asks, _ = trials.asks_of(trial, desk, [*records, *others[: config.warmup]])
    return asks[: len(records)], asks[len(records) :]


def _send(
    trial: Trial,
    desk: Desk,
    endpoint: Endpoint,
    one: Load,
    sample: Sequence[Ask],
    warmup: Sequence[Ask],
) -> list[Timing]:
    salt = {} if trial.settings["endpoint"] else {"cache_salt": uuid.uuid4().hex}
    due_s = None
    if one.pace is not None:
        due_s = latency.arrivals(_timestamps(trial, desk), len(sample), one.pace)
        sample = sample[: len(due_s)]
    asks, first = ([replace(a, body={**a.body, **salt}) for a in part] for part in (sample, warmup))
    return load.send(
        endpoint,
        asks,
        trial.settings["timeout_s"],
        concurrency=one.concurrency or _WARM_UP,
        due_s=due_s,
        warmup=first,
    )


def _timestamps(trial: Trial, desk: Desk) -> list[float]:
    """Of all records that curation put into a split."""
    dataset = desk.storage.at("datasets", trial.dataset)
    tables = [dataset.read_table(split, ["timestamp"]) for split in _SPLITS]
    return [float(at) for table in tables if table for at in table["timestamp"].to_pylist()]
