"""How fast curation is, in how much memory: against one process doing what the blueprint does.

    python -m tests.benchmarks.curation [--quick] [--work-dir DIR]

Makes `traffic` of several sizes, curates each in a fresh process with a fresh Ray, runs the
`baseline` on as much as fits into memory, and prints a table. A full run writes
``results/curation.json``, from which documents quote. Files are read once before each run, so that
neither side waits for the disk. What a dataset's manifest counts is held against what was planted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from . import scan, traffic, wording
from .measure import measure

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "curation.json"

FLYWHEEL, BASELINE = "flywheel", "single process"
MILLION = 1_000_000
_BASELINE_BYTES = 25_000
"""What one record takes as Python objects."""
_MOST_BASELINE = 400_000

console = Console(width=110, highlight=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    sizes: tuple[int, ...]
    baseline: int
    scaling: int
    cpus: tuple[int, ...] = (1, 2, 4)
    documents: int = 20_000
    """In Elasticsearch; noida-db takes some 250 KB of memory for each."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured curation."""

    side: str
    records: int
    seconds: float
    """flywheel: from the call, with Ray up, to the manifest on disk; the single process: from the
    first file opened to the last one written."""
    peak_bytes: int
    """Of all processes together, from their start to their end."""
    sampling_s: float
    """Processor time taken by measuring memory, which ran beside it."""
    cpus: int | None = None
    """Ray CPUs, where they were set."""
    details: Json | None = None
    """The baseline's phases and counts; where flywheel's counts are not those planted."""

    @property
    def per_second(self) -> float:
        """Lines in, divided by seconds."""
        return self.records / self.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results of a full run."""
    options = _options(arguments)
    plan = _plan(options)
    work = Path(options.work_dir)
    baseline = _show(run_baseline(work, plan.baseline))
    runs = [_show(run_flywheel(work, size)) for size in plan.sizes]
    scaling = [_show(run_flywheel(work, plan.scaling, cpus)) for cpus in plan.cpus]
    size = min(plan.sizes)
    store = scan.compare(_traffic(work, size), min(plan.documents, size * 9 // 10))
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        **figures(runs, baseline),
        "elasticsearch_speedup": store and store["speedup"],
        "elasticsearch": store,
        "scaling": efficiency(scaling),
        "runs": [_row(run) for run in (baseline, *runs)],
    }
    console.print(runs_table([baseline, *runs]), scaling_table(results["scaling"]))
    console.print(figures_table(results))
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def run_baseline(work: Path, records: int) -> Run:
    """Curate in a single process."""
    logs = _traffic(work, records)
    with tempfile.TemporaryDirectory(dir=work) as output:
        command = _module("baseline", str(logs), output, traffic.WORKLOAD)
        measured = measure(command, cwd=ROOT)
    result = json.loads(measured.output)
    details = {"phases": result["phases"], "counts": result["counts"]}
    return Run(
        BASELINE,
        records,
        result["seconds"],
        measured.peak_bytes,
        measured.sampling_s,
        details=details,
    )


def run_flywheel(work: Path, records: int, cpus: int | None = None) -> Run:
    """Curate with flywheel on a local Ray."""
    logs = _traffic(work, records)
    with tempfile.TemporaryDirectory(dir=work) as storage:
        extra = [] if cpus is None else [str(cpus)]
        command = _module("driver", str(logs), storage, traffic.WORKLOAD, *extra)
        measured = measure(command, cwd=ROOT)
    result = json.loads(measured.output.splitlines()[-1])
    return Run(
        FLYWHEEL,
        records,
        result["seconds"],
        measured.peak_bytes,
        measured.sampling_s,
        cpus,
        details=differences(result["manifest"], traffic.planted(records)),
    )


def differences(manifest: Json, planted: traffic.Planted) -> Json:
    """What the manifest counts otherwise than planted: by name, found and planted."""
    duplicates = manifest["duplicates"]
    pairs = {
        "lines": (manifest["lines"], planted.lines),
        "records": (manifest["records"], planted.records),
        "rejected": (manifest["rejected"], planted.rejected),
        "masked": (manifest["masked"], planted.personal),
        "exact": (duplicates["exact"], planted.exact),
        "normalised": (duplicates["normalised"], planted.normalised),
        "near": (duplicates["near"], planted.near),
    }
    return {
        name: {"found": found, "planted": expected}
        for name, (found, expected) in pairs.items()
        if found != expected
    }


def figures(runs: Sequence[Run], baseline: Run) -> Json:
    """The figures that documents quote; None where a size they need was not measured.

    Speed and memory are those at a million records, or at the largest size below.
    """
    by_size = {run.records: run for run in runs}
    main_run = by_size.get(MILLION) or by_size[max(by_size)]
    quarter, million = by_size.get(250_000), by_size.get(MILLION)
    small, large = by_size.get(100_000), by_size.get(2 * MILLION)
    return {
        "speedup_vs_single_process": round(main_run.per_second / baseline.per_second, 2),
        "records_per_second": round(main_run.per_second),
        "peak_memory_gb": round(main_run.peak_bytes / 1e9, 2),
        "memory_growth_250k_to_1m": (
            round(million.peak_bytes / quarter.peak_bytes, 3) if million and quarter else None
        ),
        "time_per_record_growth_100k_to_2m": (
            round(small.per_second / large.per_second, 3) if small and large else None
        ),
    }


def efficiency(runs: Sequence[Run]) -> list[Json]:
    """Speed on more Ray CPUs against the first run's, and the share of it that one would hope for.

    Hoped for is a speed in proportion to the CPUs, of which no more can work than there are cores.
    """
    cores = os.cpu_count() or 1
    rows = []
    for run in runs:
        speedup = run.per_second / runs[0].per_second
        ideal = min(run.cpus or cores, cores) / min(runs[0].cpus or cores, cores)
        rows.append({**_row(run), "speedup": round(speedup, 3)} | {"efficiency": speedup / ideal})
    return rows


def runs_table(runs: Sequence[Run]) -> Table:
    """One line per run."""
    table = Table(
        title="Curation: from log lines to a dataset on disk",
        caption=(
            "flywheel: from the call, with Ray up, to the manifest written; near-duplicates, "
            "masking and leak check included. Single process: from the first file opened to the "
            "last one written; exact duplicates only. Files in the page cache. Memory: peak of "
            "all processes, Ray's included, shared pages once, sampled every 0.25 s."
        ),
    )
    for title in ("", "records", "seconds", "records/s", "µs/record", "peak GB", "counts"):
        table.add_column(title, justify="right" if title else "left")
    for run in runs:
        table.add_row(
            run.side,
            f"{run.records:,}",
            f"{run.seconds:.1f}",
            f"{run.per_second:,.0f}",
            f"{1e6 / run.per_second:.1f}",
            f"{run.peak_bytes / 1e9:.2f}",
            _counts(run),
        )
    return table


def scaling_table(rows: Sequence[Json]) -> Table:
    """One line per number of Ray CPUs."""
    table = Table(
        title=f"Ray CPUs on {os.cpu_count()} cores",
        caption="Efficiency: speed against 1 CPU, divided by the CPUs that there are cores for.",
    )
    for title in ("CPUs", "records", "seconds", "records/s", "speed", "efficiency"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["cpus"]),
            f"{row['records']:,}",
            f"{row['seconds']:.1f}",
            f"{row['records_per_second']:,}",
            f"{row['speedup']:.2f}x",
            f"{row['efficiency']:.0%}",
        )
    return table


def figures_table(results: Json) -> Table:
    """The figures by name."""
    table = Table("figure", "value", title="Figures")
    for name, value in results.items():
        if isinstance(value, int | float | None):
            table.add_row(name, "not measured" if value is None else f"{value:,}")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.curation")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes no results")
    parser.add_argument("--sizes", type=int, nargs="+", help="records of flywheel's runs")
    parser.add_argument("--baseline-records", type=int, help="default: what fits into memory")
    parser.add_argument(
        "--work-dir",
        default=str(Path(tempfile.gettempdir()) / "flywheel-benchmarks"),
        help="where traffic is kept for the next time (up to 10 GB)",
    )
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    if options.quick:
        plan = Plan((20_000, 50_000), baseline=20_000, scaling=20_000, documents=5_000)
    else:
        sizes = (100_000, 250_000, MILLION, 2 * MILLION)
        plan = Plan(sizes, baseline=_fits_into_memory(), scaling=250_000)
    return Plan(
        tuple(options.sizes or plan.sizes),
        options.baseline_records or plan.baseline,
        plan.scaling,
        documents=plan.documents,
    )


def _fits_into_memory() -> int:
    """Records of the baseline that leave a third of what is free, in steps of 50,000."""
    fitting = int(psutil.virtual_memory().available * 2 / 3 / _BASELINE_BYTES)
    return max(50_000, min(_MOST_BASELINE, fitting // 50_000 * 50_000))


def _traffic(work: Path, records: int) -> Path:
    """A folder with so many records, made if it is not there, read once."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (traffic, wording))
    folder = work / f"traffic-{records}-{sha256(code).hexdigest()[:8]}"
    if not folder.is_dir():
        console.print(f"making {records:,} records")
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        traffic.write(unfinished, records)
        unfinished.rename(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return folder


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


def _show(run: Run) -> Run:
    console.print(
        f"{run.side}: {run.records:,} records"
        f"{f' on {run.cpus} Ray CPUs' if run.cpus else ''}: {run.seconds:.1f} s, "
        f"{run.per_second:,.0f} records/s, {run.peak_bytes / 1e9:.2f} GB"
    )
    return run


def _counts(run: Run) -> str:
    if run.side == BASELINE:
        return ""
    return "other: " + ", ".join(run.details) if run.details else "as planted"


def _row(run: Run) -> Json:
    return {**asdict(run), "records_per_second": round(run.per_second)}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _machine() -> Json:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
