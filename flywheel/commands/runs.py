"""Commands about the runs there are: their results, reports and state, people's labels."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flywheel import leaderboard, printing, runs
from flywheel.commands.options import AsJson, StorageOption, hush
from flywheel.errors import RequestError, StorageError, boundary
from flywheel.progress import display
from flywheel.storage import Storage


class ReportFormat(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "md"
    CSV = "csv"
    JSON = "json"


def results(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run's leaderboard."""
    folder = runs.find(Storage(storage), run_id)
    board = _board(folder)
    if markdown:
        sys.stdout.write(leaderboard.to_markdown(board))
        return
    printing.board(folder, as_json=as_json)


def label(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here, not on a page.")] = False,
    write_csv: Annotated[
        Path | None, typer.Option("--write-csv", help="Write the pairs to label, and stop.")
    ] = None,
    read_csv: Annotated[
        Path | None, typer.Option("--read-csv", help="Take labels from such a file.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Label answers that a judge has rated; show how far judge and people agree."""
    from flywheel import labelling

    if write_csv and read_csv:
        raise RequestError("--write-csv and --read-csv: one at a time")
    pool = labelling.Pool(Storage(storage), runs.find(Storage(storage), run_id))
    if write_csv:
        count = labelling.sheet.write(pool, write_csv)
        printing.err.print(f"{count} pairs in {printing.escape(str(write_csv))}", highlight=False)
        return
    try:
        if read_csv:
            labelling.sheet.read(pool, read_csv)
        elif terminal:
            labelling.terminal.ask(pool, printing.err)
        else:
            server = labelling.page.LabelServer(pool, port)
            printing.err.print(f"label on {server.url}", highlight=False, soft_wrap=True)
            server.serve()
    except KeyboardInterrupt:
        pass  # what was said is kept
    printing.labels(pool.close(), as_json=as_json)


def report(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run; default: the latest.")
    ] = None,
    storage: StorageOption = "flywheel-data",
    form: Annotated[
        ReportFormat, typer.Option("--format", help="The page, or the board alone.")
    ] = ReportFormat.HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: the run's report.html, else the terminal."),
    ] = None,
) -> None:
    """Make a run's report anew from its files: one HTML page, or the board for other programs."""
    folder = runs.find(Storage(storage), run_id)
    text = _written(form, storage, folder)
    if form is not ReportFormat.HTML and out is None:
        sys.stdout.write(text)
        return
    data = text.encode("utf-8", "replace")
    if out is None:
        folder.write_bytes("report.html", data)
    else:
        with boundary(StorageError, f"writing {out}"):
            out.write_bytes(data)
    where = out or f"{folder.url}/report.html"
    printing.out.print(f"report  {where}", soft_wrap=True, highlight=False)


def status(
    run_id: Annotated[str | None, typer.Argument(help="Run; default: the latest.")] = None,
    storage: StorageOption = "flywheel-data",
    once: Annotated[bool, typer.Option("--once", help="Print it once, do not follow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands, and follow it to its end: stages, trials, engines, money."""
    from flywheel import status

    folder = runs.find(Storage(storage), run_id)
    if as_json:
        printing.dump(status.read(folder).to_json())
    elif once:
        printing.out.print(status.view(status.read(folder)))
    else:
        status.show(folder, printing.out)


def sync(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    storage: StorageOption = "flywheel-data",
) -> None:
    """Send MLflow what it lacks of a run; twice changes nothing."""
    from functools import partial

    from flywheel import recording

    hush()
    shown = display(printing.err)
    try:
        where = recording.sync(Storage(storage), run_id, partial(shown.update, f"sending {run_id}"))
    finally:
        shown.close()
    printing.out.print(f"{run_id} is in MLflow at {where}", highlight=False, soft_wrap=True)


def _board(folder: Storage) -> leaderboard.Leaderboard:
    if not folder.exists("leaderboard.json"):
        note = folder.read_json("run.json")
        raise RequestError(f"run {note['run']} has no leaderboard yet; it is {note['status']}")
    return leaderboard.Leaderboard.from_json(folder.read_json("leaderboard.json"))


def _written(form: ReportFormat, storage: str, folder: Storage) -> str:
    """A run's report, or its board alone."""
    board = _board(folder)
    if form is ReportFormat.MARKDOWN:
        return leaderboard.to_markdown(board)
    if form is ReportFormat.CSV:
        return leaderboard.to_csv(board)
    if form is ReportFormat.JSON:
        return json.dumps(board.to_json(), indent=2, ensure_ascii=False) + "\n"
    from flywheel import report
    from flywheel.folders import Desk

    run_id = folder.url.rsplit("/", 1)[-1]
    return report.render(report.read(Desk(Storage(storage), run_id)))
