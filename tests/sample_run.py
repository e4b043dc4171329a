"""A made-up run with realistic figures, built without any model: what reporting is tested on."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from flywheel import scoring
from flywheel.config import Experiment, RankingConfig, dump, validate
from flywheel.datasets import tool_of
from flywheel.folders import Desk, write_spec
from flywheel.leaderboard import Leaderboard, rank
from flywheel.report import Material
from flywheel.scoring import misses_by_kind
from flywheel.scoring.text import text_of
from flywheel.statistics import estimate, plan, wilson
from flywheel.storage import Storage
from flywheel.types import (
    Completion,
    Cost,
    Estimate,
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

    @cached_property
    def classes(self) -> dict[str, str]:
        """As the dataset has them: the tool, or the label."""
        told = {r.id: tool_of(r) for r in self.records}
        labels = {r.id: text_of(r.answer) for r in self.records}
        return told if set(told.values()) != {"no_tool"} else labels

    @cached_property
    def measured(self) -> dict[str, Json]:
        """Each trial's ``result.json``, a load test and metrics of classes included."""
        found = {result.key: result.to_json() for result in self.results}
        for key, result in found.items():
            if self.completions.get(key):
                result["load"] = _load_test(0.2 if result["trial"]["method"] == "base" else 0.35)
                result["classes"] = {"label_accuracy": self._told(key)}
        return found

    def _told(self, key: str) -> Json:
        said = {c.record_id: _class(c.message) for c in self.completions[key] if c.message}
        pairs = Counter((self.classes[name], answer) for name, answer in said.items())
        support = Counter(due for due, _ in pairs.elements())
        names = [name for name, _ in support.most_common()]
        answered = Counter(answer for _, answer in pairs.elements())
        sides = [*names, "(other)"]
        counts = [[pairs[due, answer] for answer in names] for due in names]
        rest = [support[due] - sum(row) for due, row in zip(names, counts, strict=True)]
        whole = [[*row, other] for row, other in zip(counts, rest, strict=True)]
        return {
            "n": len(said),
            "macro_f1": 0.5,
            "classes": [
                {
                    "label": name,
                    "support": support[name],
                    "answered": answered[name],
                    "precision": _share(pairs[name, name], answered[name]),
                    "recall": _share(pairs[name, name], support[name]),
                    "f1": 2 * pairs[name, name] / (answered[name] + support[name]),
                }
                for name in names
            ],
            "classes_left_out": 0,
            "confusion": {"labels": sides, "counts": [*whole, [0] * len(sides)]},
        }

    def material(self, board: Leaderboard | None = None, manifest: Json = MANIFEST) -> Material:
        """What a report is made from."""
        return Material(
            board=board or self.board,
            experiment=self.experiment.model_dump(mode="json"),
            manifest=manifest,
            records=self.records,
            classes=self.classes,
            completions=self.completions,
            scores=self.scores,
            results=self.measured,
            handed_over={},
        )

    def leave(self, storage: Storage, run_id: str = "demo-1") -> Desk:
        """Put the run's files where a finished run has them."""
        desk = Desk(storage, run_id)
        dataset = storage.at("datasets", FINGERPRINT)
        rows = [{**r.to_row(), "class": self.classes[r.id]} for r in self.records]
        dataset.write_table("eval/part-00000.parquet", pa.Table.from_pylist(rows))
        dataset.write_json("manifest.json", MANIFEST)
        for result in self.results:
            folder = desk.folder(result.trial)
            write_spec(folder, result.trial)
            for name in ("completions", "scores"):
                lines = getattr(self, name).get(result.key, [])
                folder.at(name).write_lines("00000.jsonl", map(asdict, lines))
            folder.write_json("result.json", self.measured[result.key])
        desk.run.write_bytes("experiment.yaml", dump(self.experiment).encode())
        desk.run.write_json("leaderboard.json", self.board.to_json())
        note = {"run": run_id, "status": "succeeded", "started_at": "2026-11-24T09:00:00+00:00"}
        desk.run.write_json("run.json", note)
        return desk


def _class(answer: Json) -> str:
    calls = answer.get("tool_calls")
    if calls is None:
        return text_of(answer)
    return str(calls[0]["function"]["name"]) if calls else "no_tool"


def _share(right: int, n: int) -> Json:
    low, high = wilson(right / n, n) if n else (None, None)
    return asdict(Estimate(right / n if n else None, low, high, n))


def _load_test(start_s: float) -> Json:
    """Latencies at four loads; the last is too much for the SLO."""

    def times(p50: float) -> Json:
        return {"p50": p50, "p95": 1.6 * p50, "p99": 2.2 * p50}

    levels = [
        {
            "load": f"concurrency-{n}",
            "requests": 100,
            "failed": 0,
            "seconds": 60.0,
            "requests_per_second": 8 * n / (n + 6),
            "output_tokens_per_second": 190 * n / (n + 6),
            "within_slo": 1.0 if n < 16 else 0.81,
            "first_token_s": times(start_s * (1 + n / 20)),
            "inter_token_s": times(0.012 * (1 + n / 30)),
            "per_output_token_s": times(0.013 * (1 + n / 30)),
            "total_s": times(2 * start_s * (1 + n / 8)),
        }
        for n in (1, 4, 8, 16)
    ]
    slo = {"first_token_s": 1.0, "per_output_token_s": None, "total_s": None, "share": 0.95}
    return {"slo": slo, "levels": levels, "at_slo": "concurrency-8"}


def call(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": "c", "type": "function", "function": function}


def message(*calls: Json, content: str | None = None) -> Json:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def tool(name: str, **types: str) -> Json:
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


TOOLS = [
    tool("get_weather", city="string", day="integer"),
    tool("track_order", order="string"),
    tool("refund_order", order="string", reason="string"),
]
LABELS = ["billing", "shipping", "refund", "technical problem", "something else"]


def record(query: str, answer: Json, tools: Sequence[Json] = TOOLS) -> Record:
    request: Json = {"messages": [{"role": "user", "content": query}]}
    if tools:
        request["tools"] = list(tools)
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


def a_sample_run(
    queries: Sequence[str] = (),
    margin: float = 0.3,
    n: int = 100,
    *,
    labels: bool = False,
    calibration: Json | None = None,
) -> SampleRun:
    """Build the run.

    Args:
        queries: Replace the first records' queries, which nobody gets right.
        margin: The board's.
        n: Eval records.
        labels: Answers are labels, not tool calls.
        calibration: What the judge's says instead.
    """
    rng = random.Random(7)
    make = _labelled if labels else _record
    records = [make(i, queries[i] if i < len(queries) else None) for i in range(n)]
    completions, scores, results = {}, {}, []
    for method, parameters, share, dollars in TRIALS:
        trial = Trial("SmolLM2", str(CANDIDATE["model"]), method, parameters, FINGERPRINT, 0)
        shares = [0.0] * len(queries) + [share] * n
        completions[trial.key] = [
            _completion(r, s, rng, 0.25 if method == "base" else 0.4)
            for r, s in zip(records, shares, strict=False)
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
        calibration=calibration or CALIBRATION,
        production=Cost(1.18, "tokens"),
        power=plan(n, margin, 0.05, asked_again=False).to_json(),
        provenance={"date": "2026-11-24", "commit": "1a2b3c4", "versions": {"vllm": "0.32.0"}},
    )
    return SampleRun(an_experiment(), records, results, completions, scores, board)


def _record(i: int, query: str | None) -> Record:
    city, order = CITIES[i % len(CITIES)], f"A-{100 + i}"
    asked, answer = [
        (
            f"What will the weather be like in {city} on day {i}?",
            message(call("get_weather", json.dumps({"city": city, "day": i}))),
        ),
        (
            f"Where is my order {order}?",
            message(call("track_order", json.dumps({"order": order}))),
        ),
        (
            f"Order {order} came broken, I want my money back.",
            message(call("refund_order", json.dumps({"order": order, "reason": "broken"}))),
        ),
        (
            f"Thanks, that was all for today ({i}).",
            message(content="You are welcome. Have a nice day!"),
        ),
    ][(0, 0, 1, 0, 1, 2, 1, 3)[i % 8]]
    return record(query or asked, answer)


def _labelled(i: int, query: str | None) -> Record:
    label = LABELS[(0, 0, 1, 1, 2, 0, 3, 4)[i % 8]]
    said = {"role": "assistant", "content": label}
    return record(query or f"Sort this ticket: {label}, case {i}.", said, tools=())


def _completion(r: Record, share: float, rng: random.Random, start_s: float) -> Completion:
    draw = rng.random()
    if draw > 0.99:
        return Completion(r.id, error="the request took longer than 300 s")
    answer = r.answer if draw < share else _mistaken(r, rng)
    seconds = start_s + rng.lognormvariate(-0.9, 0.5)
    return Completion(r.id, answer, "stop", 320, 24, seconds)


def _mistaken(r: Record, rng: random.Random) -> Json:
    """Another answer than production's."""
    if not r.tools:
        others = [name for name in [*LABELS, "I cannot say."] if name != text_of(r.answer)]
        return {"role": "assistant", "content": rng.choice(others)}
    if not r.answer["tool_calls"]:
        return message(call("track_order", '{"order": "A-17"}'))
    function = r.answer["tool_calls"][0]["function"]
    name, arguments = function["name"], json.loads(function["arguments"])
    first = next(iter(arguments))
    other = "track_order" if name != "track_order" else "refund_order"
    return rng.choice(
        [
            message(call(other, '{"order": "A-17"}')),
            message(call(name, json.dumps({**arguments, first: "somewhere"}))),
            message(call(name, json.dumps({k: v for k, v in arguments.items() if k != first}))),
            message(call(name, json.dumps({**arguments, "please": True}))),
            message(call(name, '{"city": ')),
            message(content="I am sorry, I cannot help with that."),
        ]
    )


def _scores(r: Record, c: Completion, rng: random.Random) -> list[Score]:
    scores = scoring.score(r, c)
    if c.message is None:
        return [*scores, Score(r.id, "similarity", None, ScoreStatus.FAILED, c.error)]
    alike = 1.0 if c.message == r.answer else rng.choice((0.4, 0.6, 0.8))
    return [*scores, Score(r.id, "similarity", alike)]


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
        misses=misses_by_kind(scores),
    )
