"""Commands about logs and datasets: what there is, loading it, making a dataset of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flywheel import config, printing
from flywheel.commands.options import (
    Address,
    AsJson,
    LogsOption,
    Settings,
    StorageOption,
    hush,
    overrides,
)
from flywheel.errors import DataError, RequestError
from flywheel.progress import display
from flywheel.storage import Storage
from flywheel.stores import open_store


def ingest(
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs to read.")],
    to: Annotated[str, typer.Option("--to", help="Log store: elasticsearch://host:9200/index.")],
    workload_id: Annotated[str, typer.Option(help="For exports that name no workload.")] = "",
    client_id: Annotated[str, typer.Option(help="For exports that name no client.")] = "",
    as_json: AsJson = False,
) -> None:
    """Load logs, or exports in another format, into a log store; twice changes nothing."""
    from dataclasses import asdict
    from functools import partial

    from flywheel import ingest as loading

    hush()
    shown = display(printing.err)
    try:
        report = loading.ingest(
            files,
            to,
            partial(shown.update, f"loading into {to}"),
            workload_id=workload_id,
            client_id=client_id,
        )
    finally:
        shown.close()
    if as_json:
        printing.dump(asdict(report))
        return
    counts = f"{report.written} written, {report.unchanged} there already, {report.refused} refused"
    mended = f", {report.mended} mended" if report.mended else ""
    printing.out.print(f"{report.lines} lines: {counts}{mended}", highlight=False)
    if report.listed:
        table = Table("refused", "at", "why")
        for one in report.listed[:20]:
            table.add_row(printing.escape(one.source), str(one.offset), printing.escape(one.reason))
        printing.out.print(table)


def curate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    settings: Settings = None,
    logs: LogsOption = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Make an experiment's dataset and nothing else; show what became of every line."""
    from flywheel import curation, nodes
    from flywheel.cluster import connect

    loaded = config.load(experiment, overrides(settings, logs))
    storage = Storage(loaded.storage)
    hush()
    shown = display(printing.err)
    try:
        shown.update("starting Ray", 0, 0)
        with connect(address) as cluster:
            nodes.check(cluster, storage)
            manifest = curation.curate(loaded, storage, shown.update)
    finally:
        shown.close()
    if as_json:
        printing.dump(manifest.to_json())
        return
    printing.funnel(manifest)
    printing.out.print(
        f"dataset {storage.at('datasets', manifest.fingerprint).url}", soft_wrap=True
    )


def datasets(
    compare: Annotated[
        list[str] | None, typer.Argument(help="Two fingerprints (or their beginnings) to compare.")
    ] = None,
    storage: StorageOption = "flywheel-data",
    as_json: AsJson = False,
) -> None:
    """List datasets; with two fingerprints, show what came in, what left, and what moved."""
    from flywheel import catalogue

    place = Storage(storage)
    if not compare:
        printing.datasets(catalogue.manifests(place), as_json=as_json)
        return
    if len(compare) != 2:
        raise RequestError(f"datasets: name two to compare, not {len(compare)}")
    old, new = (catalogue.find(place, name) for name in compare)
    printing.difference(catalogue.difference(place, old, new), as_json=as_json)


def sample_logs(
    directory: Annotated[Path, typer.Argument(help="Folder to write into.")],
    records: Annotated[int, typer.Option(min=100, max=5000, help="Well-formed records.")] = 3000,
    seed: Annotated[int, typer.Option(help="Another seed is other traffic.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write synthetic traffic of a made-up web shop's assistant, defects included."""
    from dataclasses import asdict

    from flywheel.sample_logs import NOTICE, write_sample_logs

    summary = asdict(write_sample_logs(directory, records, seed))
    if as_json:
        printing.dump(summary)
        return
    del summary["notice"]
    printing.out.print(NOTICE.strip(), highlight=False, soft_wrap=True)
    for name, value in summary.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        if not isinstance(value, list):
            printing.out.print(
                f"  {name.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True
            )


def workloads(
    store: Annotated[str, typer.Argument(help="Log store: file, folder, glob or URL.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a log store: workloads, clients, records, class mix, time range."""
    from dataclasses import asdict

    found = open_store(store).workloads()
    if not found:
        raise DataError(f"{store}: holds no lines")
    if as_json:
        printing.dump([asdict(summary) for summary in found])
        return
    table = Table(
        "workload", "records", "rejected", "clients", "classes", "from", "to", show_lines=True
    )
    for one in found:
        table.add_row(
            printing.escape(one.workload_id) or "[dim](none named)[/]",
            str(one.records),
            printing.counts(one.rejected),
            printing.counts(one.clients),
            printing.counts(one.classes),
            printing.day(one.first),
            printing.day(one.last),
        )
    printing.out.print(table)
