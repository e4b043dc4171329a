"""How much of an engine's speed the whole path keeps: against vLLM's own benchmark client.

    python -m tests.benchmarks.serving [--quick] [--requests N] [--rounds N]

One engine answers the same requests at the same concurrency in turn for both sides. ``flywheel`` is
a trial as a run does it: records are read from a dataset on disk, rendered, asked, and each answer
is on disk before its place is given away; scores and latency are written too. ``vllm`` is
`vllm.benchmarks.serve`, which throws answers away. Each measurement is a fresh process; starting it
is not counted. A pass before the first warms the engine's prefix cache. A full run also counts the
engines that a sweep over two bases starts, and writes ``results/serving.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import results, two_bases

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONCURRENCY, ANSWER_TOKENS = 32, 32
DATASET = "benchmark"
SWEEP_RECORDS = 6

console = Console(width=100, highlight=False)


@dataclass(frozen=True, slots=True)
class Job:
    """What both sides do."""

    url: str
    model: str
    storage: str
    """Folder with the dataset of records to ask for."""
    requests: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One measurement of one side."""

    side: str
    seconds: float
    cpu_s: float
    """Processor time of the asking process meanwhile."""
    completions: int
    tokens: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a model, let both sides ask in turn, print and write the ratio."""
    options = _options(arguments)
    if options.side:
        passed = SIDES[options.side](Job(**json.loads(options.job)))
        print(json.dumps(asdict(passed)))  # noqa: T201 -- read by the process that started this
        return
    from flywheel.cluster import connect

    with tempfile.TemporaryDirectory() as folder, connect() as cluster:
        _write_records(folder, options.requests)
        passes = _measure(cluster, folder, options.requests, options.rounds)
    console.print(table(passes))
    if options.quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        sweep = two_bases.run(Path(folder), eval_size=SWEEP_RECORDS)
        starts = sum(sweep.engine_starts().values())
    console.print(f"engines started by a sweep of {two_bases.TRIALS} trials on two bases: {starts}")
    results.write("serving", {**figures(passes), "engine_starts": starts})


def figures(passes: Sequence[Pass]) -> Json:
    """The figures that documents quote."""
    flywheel, vllm = (_per_second(passes, side) for side in ("flywheel", "vllm"))
    return {
        "ratio_vs_vllm_client": round(flywheel / vllm, 3),
        "completions_per_second": round(flywheel, 2),
        "vllm_client_completions_per_second": round(vllm, 2),
        "concurrency": CONCURRENCY,
        "passes": [asdict(each) for each in passes],
    }


def table(passes: Sequence[Pass]) -> Table:
    """One line per pass, and the ratio."""
    ratio = figures(passes)["ratio_vs_vllm_client"]
    shown = Table(
        title=f"{MODEL} at concurrency {CONCURRENCY}: flywheel / vllm = {ratio}",
        caption="flywheel: records in, completions and scores on disk. vllm: its benchmark client.",
    )
    for title in ("", "completions", "tokens", "seconds", "completions/s", "client CPU ms each"):
        shown.add_column(title, justify="right" if title else "left")
    for each in passes:
        shown.add_row(
            each.side,
            f"{each.completions}",
            f"{each.tokens}",
            f"{each.seconds:.1f}",
            f"{each.completions / each.seconds:.2f}",
            f"{1000 * each.cpu_s / each.completions:.1f}",
        )
    return shown


def ask_as_flywheel(job: Job) -> Pass:
    """Answer a trial; everything from the dataset to the trial's last file."""
    from flywheel import config, planning, trials
    from flywheel.folders import Desk
    from flywheel.inference import read
    from flywheel.serving import Endpoint
    from flywheel.storage import Storage

    experiment = config.validate(
        {
            "name": "benchmark",
            "logs": "none",
            "workload": "none",
            "candidates": [{"model": MODEL, "concurrency": CONCURRENCY}],
            "methods": {"base": {}},
            "sampling": {"max_tokens": ANSWER_TOKENS},
            "judge": None,
        },
        "benchmark",
    )
    (trial,) = planning.plan(experiment, DATASET)
    desk = Desk(Storage(job.storage), f"run-{time.time_ns()}")
    began, cpu = time.perf_counter(), time.process_time()
    trials.answer(trial, desk, Endpoint(job.url, job.model), lambda done, total: None)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    completions = read(desk.folder(trial).at("completions"))
    failed = [c.error for c in completions if c.error]
    assert not failed, failed[0]
    tokens = sum(c.completion_tokens for c in completions)
    return Pass("flywheel", seconds, cpu, len(completions), tokens)


def ask_as_vllm(job: Job) -> Pass:
    """The same requests through vLLM's benchmark client."""
    from transformers import AutoTokenizer
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import SampleRequest

    from flywheel import curation
    from flywheel.methods import base
    from flywheel.models import fetch
    from flywheel.storage import Storage
    from flywheel.types import json_text

    bodies = map(base.request, curation.load_split(Storage(job.storage), DATASET, "eval"))
    requests = [
        SampleRequest(
            prompt=json_text(body["messages"]),
            prompt_len=0,
            expected_output_len=ANSWER_TOKENS,
            chat_messages=body["messages"],
            request_overrides={name: body[name] for name in body if name != "messages"},
        )
        for body in bodies
    ]
    cpu = time.process_time()
    with redirect_stdout(sys.stderr):
        got = asyncio.run(
            serve.benchmark(
                task_type=serve.TaskType.GENERATION,
                endpoint_type="openai-chat",
                api_url=f"{job.url}/chat/completions",
                base_url=job.url,
                model_id=job.model,
                model_name=job.model,
                tokenizer=AutoTokenizer.from_pretrained(fetch(MODEL)),
                input_requests=requests,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[50.0],
                ignore_eos=False,
                goodput_config_dict={},
                max_concurrency=CONCURRENCY,
                lora_modules=None,
                extra_headers=None,
                extra_body={"temperature": 0.0},
                ready_check_timeout_sec=0,
            )
        )
    cpu = time.process_time() - cpu
    assert got["failed"] == 0, next(filter(None, got["errors"]))
    return Pass("vllm", got["duration"], cpu, got["completed"], got["total_output_tokens"])


SIDES = {"flywheel": ask_as_flywheel, "vllm": ask_as_vllm}


def _measure(cluster: Any, folder: str, requests: int, rounds: int) -> list[Pass]:
    """Start the engine, warm it, and let the sides take turns; each goes first as often."""
    from flywheel.config import ModelConfig
    from flywheel.serving import engine
    from flywheel.serving.engine import EngineSpec

    config = ModelConfig(model=MODEL, engine={"max_model_len": 2048})
    needs = cluster.engine_needs(config)
    spec = EngineSpec("benchmark", config, needs.cpus, needs.gpus)
    console.print(f"starting the engine of {MODEL}")
    with engine.serve(spec, local=cluster.ours) as served:
        endpoint = served.endpoint()
        job = Job(endpoint.url, endpoint.model, folder, requests)
        _run("flywheel", job)
        order = ["vllm", "flywheel", "flywheel", "vllm"] * rounds
        return [_run(side, job) for side in order[: 2 * rounds]]


def _run(side: str, job: Job) -> Pass:
    arguments = ["--side", side, "--job", json.dumps(asdict(job))]
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.serving", *arguments],
        cwd=ROOT,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}: {done.stderr[-2000:]}")
    passed = Pass(**json.loads(done.stdout.splitlines()[-1]))
    console.print(f"{side}: {passed.completions} completions in {passed.seconds:.1f} s")
    return passed


def _write_records(folder: str, count: int) -> None:
    """A dataset whose eval split is the first records of made-up router traffic."""
    import pyarrow as pa

    from flywheel.records import parse_line
    from flywheel.sample_logs import ROUTER, write_sample_logs
    from flywheel.storage import Storage
    from flywheel.types import Record

    logs = Path(folder) / "logs"
    write_sample_logs(logs, 3 * count)
    lines = (line for path in sorted(logs.glob("*.jsonl")) for line in path.open("rb"))
    parsed = (parse_line(line, "logs", 0) for line in lines)
    records = {r.id: r for r in parsed if isinstance(r, Record) and r.workload_id == ROUTER}
    rows = [record.to_row() for record in list(records.values())[:count]]
    dataset = Storage(folder).at("datasets", DATASET)
    dataset.write_table("eval/00000.parquet", pa.Table.from_pylist(rows))


def _per_second(passes: Sequence[Pass], side: str) -> float:
    mine = [each for each in passes if each.side == side]
    return sum(each.completions for each in mine) / sum(each.seconds for each in mine)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--quick", action="store_true", help="writes no results")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2, help="passes of each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    logging.disable(logging.INFO)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
