"""A made-up run with realistic figures, built without any model: what reporting is tested on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.config import Experiment, RankingConfig, validate
from flywheel.leaderboard import Leaderboard, rank
from flywheel.statistics import estimate
from flywheel.types import (
    Completion,
    Cost,
    Json,
    Latency,
    Record,
    Score,
    ScoreStatus,
    Trial,
    TrialResult,
)

FINGERPRINT = "9f3c2a71d0b4e685"
CANDIDATE = {"name": "SmolLM2", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
TRIALS: list[tuple[str, Json, float, float]] = [
    ("base", {}, 0.02, 0.031),
    ("icl", {"examples": 3}, 0.31, 0.094),
    ("lora", {"learning_rate": 0.001, "rank": 16}, 0.83, 0.034),
    ("lora", {"learning_rate": 0.0005, "rank": 8}, 0.79, 0.033),
]
"""Method, parameters, share of right answers, dollars per 1,000 requests."""
CITIES = ["Paris", "Lima", "Oslo", "Kyoto", "Accra"]
CALIBRATION: Json = {
    "judge": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "auc": 0.74,
    "n": 40,
    "floor": 0.8,
    "trusted": False,
    "mean_same": 0.98,
    "mean_shuffled": 0.71,
}
MANIFEST: Json = {
    "fingerprint": FINGERPRINT,
    "lines": 3_000,
    "records": 1_080,
    "rejected": {"not_json": 40, "empty_choices": 30, "tool_arguments_not_json": 40},
    "other_workloads": 1_810,
    "masked": {"email": 61, "phone": 22, "card": 9},
    "duplicates": {"exact": 60, "normalised": 35},
    "splits": {"eval": 100, "train": 741, "val": 82},
    "unused": 62,
    "class_mix": {"eval": {"get_weather": 50, "track_order": 50}},
    "leak_check": {"exact": {"eval-train": 0}, "normalised": {"eval-train": 0}},
    "time_range": [1767229480.0, 1769821480.0],
    "over_limit": 0,
    "code_version": "0.1.0+g1a2b3c4",
    "production": {"prompt_tokens": 420_000, "completion_tokens": 31_000, "requests": 1_080},
}


@dataclass(frozen=True)
class SampleRun:
    """Everything that reporting takes."""

    experiment: Experiment
    records: list[Record]
    results: list[TrialResult]
    completions: dict[str, list[Completion]]
    scores: dict[str, list[Score]]
    board: Leaderboard


def call(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": "c", "type": "function", "function": function}


def message(*calls: Json, content: str | None = None) -> Json:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def record(query: str, answer: Json) -> Record:
    request = {
        "messages": [{"role": "user", "content": query}],
        "tools": [{"type": "function", "function": {"name": "get_weather"}}],
    }
    return Record(1767229480.0, "shop.router", "web", request, {"choices": [{"message": answer}]})


def an_experiment(**changes: Any) -> Experiment:
    data = {
        "name": "demo",
        "logs": "logs",
        "workload": "shop.router",
        "candidates": [CANDIDATE],
        "methods": {"base": {}, "icl": {}, "lora": {"rank": [8, 16]}},
    }
    return validate({**data, **changes}, "demo.yaml")


def a_sample_run(queries: Sequence[str] = (), margin: float = 0.3, n: int = 100) -> SampleRun:
    """Build the run; ``queries`` replace the first records' queries, which nobody gets right."""
    rng = random.Random(7)
    records = [_record(i, queries[i] if i < len(queries) else None) for i in range(n)]
    completions, scores, results = {}, {}, []
    for method, parameters, share, dollars in TRIALS:
        trial = Trial("SmolLM2", str(CANDIDATE["model"]), method, parameters, FINGERPRINT, 0)
        shares = [0.0] * len(queries) + [share] * n
        completions[trial.key] = [
            _completion(r, s, rng) for r, s in zip(records, shares, strict=False)
        ]
        scores[trial.key] = [
            score
            for r, c in zip(records, completions[trial.key], strict=True)
            for score in _scores(r, c, rng)
        ]
        results.append(_result(trial, scores[trial.key], dollars))
    broken = {"learning_rate": 0.5, "rank": 16}
    failed = Trial("SmolLM2", str(CANDIDATE["model"]), "lora", broken, FINGERPRINT, 0)
    results.append(TrialResult(failed, "failed", "the loss is not finite at step 12"))
    board = rank(
        results,
        scores,
        RankingConfig(margin=margin),
        calibration=CALIBRATION,
        production=Cost(1.18, "tokens"),
        provenance={"date": "2026-11-24", "commit": "1a2b3c4", "versions": {"vllm": "0.32.0"}},
    )
    return SampleRun(an_experiment(), records, results, completions, scores, board)


def _record(i: int, query: str | None) -> Record:
    city = CITIES[i % len(CITIES)]
    text = query or f"What will the weather be like in {city} on day {i}?"
    return record(text, message(call("get_weather", f'{{"city": "{city}", "day": {i}}}')))


def _completion(r: Record, share: float, rng: random.Random) -> Completion:
    draw = rng.random()
    wrong = message(call("track_order", '{"order": "A-17"}'))
    near = message(call("get_weather", '{"city": "somewhere"}'))
    answer = r.answer if draw < share else near if 0 < draw - share < 0.1 else wrong
    if draw > 0.99:
        return Completion(r.id, error="the request took longer than 300 s")
    return Completion(r.id, answer, "stop", 320, 24, 0.4 + draw)


def _scores(r: Record, c: Completion, rng: random.Random) -> list[Score]:
    names = ("function_name", "function_name_and_args_accuracy", "similarity")
    if c.message is None:
        return [Score(r.id, name, None, ScoreStatus.FAILED, c.error) for name in names]
    same = float(c.message == r.answer)
    name = float("get_weather" in str(c.message))
    values = (name, same, 1.0 if same else rng.choice((0.4, 0.6, 0.8)))
    return [Score(r.id, metric, value) for metric, value in zip(names, values, strict=True)]


def _result(trial: Trial, scores: Sequence[Score], dollars: float) -> TrialResult:
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
    return TrialResult(
        trial,
        "succeeded",
        metrics={name: estimate(group) for name, group in by_metric.items()},
        latency=Latency(0.82, 1.31, 214.0, 8.9, 16),
        cost=Cost(dollars, "machine"),
        training={"loss": [2.1, 1.2, 0.4], "rows": 741} if trial.method == "lora" else {},
    )
