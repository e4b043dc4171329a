"""The report in a real browser: it opens, filters, fits a phone, and traffic in it stays text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_run import a_sample_run
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from flywheel.report import render

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = [
    '<script>document.title="owned"</script>',
    "<img src=https://example.org/x onerror=document.title='owned'>",
    "gnp.\u202eexe\u202c and مرحبا",
    "A" * 100_000,
]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver is installed"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, Service(DRIVER)) as driver:
        yield driver


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(a_sample_run(HOSTILE).material()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser: Chrome, report: str) -> Chrome:
    browser.get("about:blank")
    browser.get(report)
    return browser


def shown(page: Chrome) -> list[str]:
    """The answers that are not filtered away, each with all its text."""
    found: list[str] = page.execute_script(
        "return [...document.querySelectorAll('#cases > .case')]"
        ".filter(one => one.checkVisibility()).map(one => one.textContent)"
    )
    return found


def choose(page: Chrome, name: str, value: str) -> None:
    Select(page.find_element(By.NAME, name)).select_by_value(value)


def test_the_browser_reports_errors_on_its_console(browser: Chrome, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>missing()</script>")
    browser.get(broken.as_uri())
    assert "missing is not defined" in str(browser.get_log("browser"))


def test_it_opens_without_a_word_on_the_console(page: Chrome) -> None:
    assert page.get_log("browser") == []
    assert page.title == "demo · flywheel"
    assert len(page.find_elements(By.TAG_NAME, "svg")) == 5


def test_traffic_stays_text(page: Chrome) -> None:
    assert page.find_elements(By.TAG_NAME, "img") == []
    assert len(page.find_elements(By.TAG_NAME, "script")) == 1
    search = page.find_element(By.NAME, "text")
    search.send_keys("<script>document.title")
    found = shown(page)
    assert found
    assert all('<script>document.title="owned"</script>' in text for text in found)
    assert page.title == "demo · flywheel"


def test_no_script_may_make_markup_of_text(page: Chrome) -> None:
    errors = page.execute_script(
        """
        try { document.body.innerHTML += "<img src=x onerror=alert(1)>"; return ""; }
        catch (error) { return error.name; }
        """
    )
    assert errors == "TypeError"
    assert page.find_elements(By.TAG_NAME, "img") == []


def test_bidirectional_text_and_long_answers_are_tamed(page: Chrome) -> None:
    page.find_element(By.NAME, "text").send_keys("gnp.")
    assert "⟨U+202E⟩exe⟨U+202C⟩" in shown(page)[0]
    longest = page.execute_script(
        "return Math.max(...[...document.querySelectorAll('.text')]"
        ".map(text => text.textContent.length))"
    )
    assert longest < 2_100
    assert "100,000 characters in all" in page.page_source


def test_filters_and_search_work_together(page: Chrome) -> None:
    everything = page.find_element(By.ID, "told").text
    choose(page, "kind", "wrong_tool")
    wrong = shown(page)
    assert wrong
    assert all("wrong tool" in text for text in wrong)
    assert page.find_element(By.ID, "told").text != everything
    choose(page, "group", "get_weather")
    page.find_element(By.NAME, "text").send_keys("Oslo WEATHER")
    both = shown(page)
    assert 0 < len(both) < len(wrong)
    assert all("Oslo" in text for text in both)
    trials = Select(page.find_element(By.NAME, "trial")).options[1:]
    counts = []
    for trial in [option.get_attribute("value") for option in trials]:
        choose(page, "trial", str(trial))
        counts.append(int(page.find_element(By.ID, "told").text.split()[2]))
    choose(page, "trial", "")
    assert sum(counts) == int(page.find_element(By.ID, "told").text.split()[2])
    page.find_element(By.NAME, "text").send_keys(" no such words")
    assert shown(page) == []


def test_what_is_chosen_stands_in_the_address(page: Chrome, report: str) -> None:
    choose(page, "kind", "wrong_value")
    address = page.current_url
    assert address.endswith("#answers?kind=wrong_value")
    found = shown(page)
    page.get("about:blank")
    page.get(address)
    assert shown(page) == found


def test_a_kind_of_mistake_leads_to_its_answers(page: Chrome) -> None:
    page.find_element(By.PARTIAL_LINK_TEXT, "missing argument").click()
    assert all("missing argument" in text for text in shown(page))


def test_more_answers_are_shown_when_asked_for(page: Chrome) -> None:
    assert len(shown(page)) == 20
    page.execute_script("document.getElementById('more').click()")
    assert len(shown(page)) == 40


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_phones_and_desks_in_light_and_dark(page: Chrome, width: int, theme: str) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": theme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    try:
        wide, background, drawn = page.execute_script(
            "return [document.documentElement.scrollWidth,"
            " getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill]"
        )
        assert wide <= width
        dark = [sum(map(int, colour[4:-1].split(","))) < 382 for colour in (background, drawn)]
        assert dark == [theme == "dark", theme == "light"]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
