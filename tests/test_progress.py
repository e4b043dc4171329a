"""Bars for people, lines for logs."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from flywheel.progress import Bars, Lines, display


def console(terminal: bool) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, force_terminal=terminal, width=120, color_system=None), file


def test_a_terminal_gets_bars_and_a_log_gets_lines() -> None:
    bars = display(console(terminal=True)[0])
    bars.close()
    assert isinstance(bars, Bars)
    assert isinstance(display(console(terminal=False)[0]), Lines)


def test_a_line_is_printed_when_a_stage_begins_and_ends_not_at_every_step() -> None:
    shown, file = console(terminal=False)
    lines = Lines(shown)
    for done in range(101):
        lines.update("reading logs", done, 100)
    lines.update("starting Ray", 0, 0)
    lines.update("starting Ray", 0, 0)
    lines.close()
    assert file.getvalue().splitlines() == [
        "reading logs 0/100 (0 s)",
        "reading logs 100/100 (0 s)",
        "starting Ray (0 s)",
    ]


def test_names_in_stages_are_no_markup() -> None:
    for terminal in (False, True):
        shown, file = console(terminal)
        one = display(shown)
        one.update("answering with [bold]m[/x]", 0, 0)
        one.close()
        assert "answering with [bold]m[/x]" in file.getvalue()


def test_a_bar_ends_when_the_next_stage_begins_and_all_stay() -> None:
    shown, file = console(terminal=True)
    bars = Bars(shown)
    bars.update("reading logs", 3, 10)
    bars.update("training", 0, 0)
    bars.update("training", 2, 4)
    bars.close()
    last = file.getvalue().replace("\x1b", "\n")
    assert "✓ reading logs" in last
    assert "3/3" in last
    assert "2/4" in last
    assert "0/" not in last
