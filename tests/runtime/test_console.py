"""What a person sees, with and without a terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console as RichConsole

from firstcli.runtime.console import Console, size


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that shows what its list's only entry says."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    long = "[bold]not markup[/bold] " + "x" * 300
    console.say(long)
    console.warn("[red]neither[/red]")
    shown = capsys.readouterr()
    assert shown.out == long + "\n"
    assert shown.err == "warning: [red]neither[/red]\n"


def test_a_warning_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for text in ("one", "other", "one"):
        console.warn(text)
    assert capsys.readouterr().err == "warning: one\nwarning: other\n"


def test_json_keeps_stdout_free(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).say("text")
    assert capsys.readouterr() == ("", "text\n")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("text")
    console.warn("text")
    with console.progress("work", 3, "steps") as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_progress_without_a_terminal_is_a_line_now_and_then(
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
