"""The report in a real browser: it opens, says nothing on the console, and runs nothing."""

import re
import shutil
import subprocess

import pytest
from sample_run import MANIFEST, a_sample_run

from flywheel.report import render

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]
HOSTILE = ['<script>document.title="owned"</script>', "<img src=https://example.org/x onerror=x()>"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome is installed"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = a_sample_run(HOSTILE)
    path = tmp_path_factory.mktemp("report") / "report.html"
    page = render(
        run.board,
        MANIFEST,
        run.experiment,
        completions=run.completions,
        scores=run.scores,
        records=run.records,
    )
    path.write_text(page, encoding="utf-8")
    return path


def browse(report, tmp_path, *flags):
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, report.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_browser_reports_errors_on_its_console(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>missing()</script>")
    assert "CONSOLE" in browse(broken, tmp_path, "--dump-dom").stderr


def test_it_opens_without_console_errors_and_runs_nothing(report, tmp_path):
    shown = browse(report, tmp_path, "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    assert "<title>demo · flywheel</title>" in shown.stdout
    assert "<svg" in shown.stdout
    assert "onerror=x()&gt;" in shown.stdout
    assert not re.search(r"<script|<img", shown.stdout)


@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_it_draws_a_page(report, tmp_path, size):
    picture = tmp_path / "page.png"
    browse(report, tmp_path, f"--window-size={size}", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
