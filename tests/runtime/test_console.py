"""Output for people, with and without a terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console as RichConsole

from firstcli.runtime.console import Console, size


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Replace the clock by the only entry of a list."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_text_is_printed_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    long = "[bold]not markup[/bold] " + "x" * 300
    console.say(long)
    console.warn("[red]neither[/red]")
    shown = capsys.readouterr()
    assert shown.out == long + "\n"
    assert shown.err == "warning: [red]neither[/red]\n"


def test_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for text in ("one", "other", "one"):
        console.warn(text)
    assert capsys.readouterr().err == "warning: one\nwarning: other\n"


def test_json_keeps_stdout_free(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).say("text")
    assert capsys.readouterr() == ("", "text\n")


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("text")
    console.warn("text")
    with console.progress("work", 3, "steps") as advance:
        advance(3)
    with console.status("checking"):
        pass
    assert capsys.readouterr() == ("", "")


def test_collected_warnings_include_repeated_ones(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.warn("one")
    with console.collect_warnings() as outer:
        console.warn("one")
        with console.collect_warnings() as inner:
            console.warn("other")
        console.warn("one")
    console.warn("late")
    assert outer == ["one", "other", "one"]
    assert inner == ["other"]
    assert capsys.readouterr().err == "warning: one\nwarning: other\nwarning: late\n"


def test_quiet_collects_warnings() -> None:
    console = Console(quiet=True)
    with console.collect_warnings() as collected:
        console.warn("one")
    assert collected == ["one"]


def test_status_without_a_terminal_is_a_line_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().status("checking [x] ..."):
        assert capsys.readouterr() == ("checking [x] ...\n", "")
    with Console(json=True).status("checking"):
        assert capsys.readouterr() == ("", "checking\n")


def test_status_on_a_terminal_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    console = Console()
    console._out = RichConsole(file=screen, force_terminal=True, width=120)
    with console.status("checking [x]"):
        assert "checking [x]" in screen.getvalue()
        console.say("a line")
    assert "a line" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_progress_without_a_terminal_is_printed_every_15_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().progress("training", 100, "steps", done=20) as advance:
        for clock[0] in range(1, 41):
            advance(2)
    assert capsys.readouterr().out.splitlines() == [
        "  training: 50/100 steps, 2.0/s, 25 s left",
        "  training: 80/100 steps, 2.0/s, 10 s left",
    ]


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    screen = io.StringIO()
    console = Console()
    console._out = RichConsole(file=screen, force_terminal=True, width=120)
    with console.progress("training [x]", 4, "steps", done=1) as advance:
        advance(1)
        advance(2)
    shown = screen.getvalue()
    assert "training [x]" in shown and "steps/s" in shown and "4/4" in shown
    assert "\x1b[" in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (125_400, "125 kB"), (13e9, "13 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
