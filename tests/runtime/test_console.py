"""Output for people, with and without a terminal."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator

import pytest
from rich.console import Console as RichConsole
from rich.table import Table

from firstcli.runtime.console import Console, duration, percent, size


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


def test_status_without_a_terminal_is_stated_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for text in ("loading", "encoding", "loading"):
        with console.status(text):
            pass
    assert capsys.readouterr().out.splitlines() == ["loading", "encoding"]


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


def on_a_terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    """Return a console that takes its output for a terminal, and the output."""
    screen, console = io.StringIO(), Console()
    console._out = RichConsole(file=screen, force_terminal=True, width=width, color_system=None)
    console._err = console._out
    return console, screen


PHRASES = ("4,420 positions", "25 kB", "top 5 hold 99.6 %", "teacher right 84.1 %, says 78.6 %")


def test_phrases_are_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say_phrases("✓ extract train", PHRASES, "5.6 s")
    expected = f"✓ extract train   {' · '.join(PHRASES)}   5.6 s\n"
    assert capsys.readouterr().out == expected
    Console().say_phrases("✓ report", [])
    assert capsys.readouterr().out == "✓ report\n"


def test_a_narrow_terminal_breaks_a_line_between_phrases() -> None:
    console, screen = on_a_terminal(60)
    console.say_phrases("✓ extract train", PHRASES, "5.6 s")
    assert screen.getvalue().splitlines() == [
        "✓ extract train   4,420 positions · 25 kB",
        "                  top 5 hold 99.6 %",
        "                  teacher right 84.1 %, says 78.6 %   5.6 s",
    ]


@pytest.mark.parametrize("width", [40, 41, 57, 80, 120])
def test_no_phrase_is_lost_in_any_width(width: int) -> None:
    console, screen = on_a_terminal(width)
    console.say_phrases("✓ eval known-world/fine-tune+T", PHRASES, "5.6 s")
    shown = " ".join(screen.getvalue().replace("·", " ").split())
    assert shown == f"✓ eval known-world/fine-tune+T {' '.join(PHRASES)} 5.6 s"
    assert max(map(len, screen.getvalue().splitlines())) <= width


def fitted(*arms: str) -> Table:
    table = Table("fitted for", "T", "confidence", "folder", title="recalibrators")
    for arm in arms:
        table.add_row(arm, "0.42 (0.34 to 0.44)", "77.2 -> 58.6", f"runs/quickstart/{arm}")
    return table


def test_one_row_that_does_not_fit_is_a_list_of_keys_and_values() -> None:
    console, screen = on_a_terminal(60)
    console.show(fitted("first"))
    assert screen.getvalue().splitlines() == [
        "recalibrators",
        "fitted for  first",
        "T           0.42 (0.34 to 0.44)",
        "confidence  77.2 -> 58.6",
        "folder      runs/quickstart/first",
    ]


def test_a_table_wraps_between_words_and_breaks_none() -> None:
    console, screen = on_a_terminal(60)
    console.show(fitted("first", "distill"))
    assert "┃" in screen.getvalue()
    for word in ("fitted", "confidence", "(0.34", "runs/quickstart/distill"):
        assert re.search(rf" {re.escape(word)} ", screen.getvalue())
    assert max(map(len, screen.getvalue().splitlines())) <= 60
    console, screen = on_a_terminal(50)
    console.show(fitted("first", "distill"))
    shown = screen.getvalue()
    assert shown.count("┃ fitted for ┃") == 2 and shown.count("│ distill ") == 2
    assert shown.count(" runs/quickstart/distill ") == 1
    console, screen = on_a_terminal(40)
    console.show(fitted("first", "x" * 30))
    assert screen.getvalue().count("folder      runs/quickstart/") == 2
    assert "┃" not in screen.getvalue()


def test_a_warning_does_not_end_up_in_what_is_drawn() -> None:
    console, screen = on_a_terminal()
    with console.status("checking"), console.status("more"):
        console.warn("careful")
    *_, before = screen.getvalue().partition("warning: careful")[0].rpartition("checking")
    assert before.endswith("\x1b[2K")  # the line was erased first


def test_a_unit_shows_the_progress_of_the_whole_command() -> None:
    console, screen = on_a_terminal()
    with console.work("distill first", lambda: "5 of 8 done, about 2 min left"):
        with console.progress("distilling first", 4, "steps") as advance:
            advance(2)
            assert console.seconds_left() is not None
        assert console.seconds_left() is None
    assert "distill first · 5 of 8 done, about 2 min left" in screen.getvalue()


def test_lines_of_progress_end_with_that_of_the_whole_command(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    work = console.work("distill a", lambda: "0 of 2 done")
    with work, console.progress("distilling a", 4, "steps") as advance:
        clock[0] = 20.0
        advance(2)
    for clock[0] in (21.0, 36.0, 40.0):
        console.say_if_due(f"1 of 2 done at {clock[0]:.0f}")
    assert capsys.readouterr().out.splitlines() == [
        "  distilling a: 2/4 steps, 0.1/s, 20 s left · 0 of 2 done",
        "  1 of 2 done at 36",
    ]


def test_shares_and_times() -> None:
    assert percent(0.9959) == "99.6 %" and percent(-0.072) == "-7.2 %"
    assert [duration(s) for s in (5.61, 35.7, 200, 9000)] == ["5.6 s", "36 s", "3 min", "2.5 h"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (125_400, "125 kB"), (13e9, "13 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
