"""Output to terminals with few characters, of any width, and to readers that leave early."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TABLE = """
import sys
from firstcli.runtime import streams
from firstcli.runtime.console import Console
streams.make_tolerant()
sys.path.insert(0, "tests")
from firstcli.reporting.terminal import Cell, Group, ReportRow, Table, TerminalTable
console = Console()
cells = (Cell("16.5", True, "[14.4, 18.4]", ("not distinguishable",)), Cell("58.2", False, ""))
group = Group("Frage – é 日", "e", ("ece", "accuracy"), ("ECE ↓", "Acc ↑"))
console.show(TerminalTable(Table("run → x", "n = 5", "best", (group,),
                                 (ReportRow("modèle", "teacher", (cells,)),))))
console.warn("half … done ± 1")
console.say_phrases("✓ extract", ["4 positions", "25 kB"])
with console.status("reading 日"):
    pass
with console.progress("work", 2, "steps") as advance:
    advance(2)
print("end")
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "shift_jis"},
        {"PYTHONIOENCODING": "cp1252", "PYTHONUNBUFFERED": "1"},
        {"PYTHONIOENCODING": "cp1252", "COLUMNS": "1"},
        {"PYTHONIOENCODING": "cp1252", "FORCE_COLOR": "1", "TERM": "dumb"},
        {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "7"},
    ],
    ids=lambda env: ",".join(env.values()),
)
def test_any_terminal_shows_the_whole_output(env: dict[str, str]) -> None:
    result = run(TABLE, **env)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert result.stdout.rstrip().endswith(b"end")
    assert b"16.5" in result.stdout and b"Traceback" not in result.stderr


def test_missing_characters_become_their_closest_equivalent() -> None:
    result = run(TABLE, PYTHONIOENCODING="ascii")
    assert b"run -> x" in result.stdout and b"modele" in result.stdout
    assert b"ok extract   4 positions . 25 kB" in result.stdout
    assert b"ECE v" in result.stdout and b"Frage - e ?" in result.stdout
    assert result.stderr == b"warning: half ... done +- 1\n"


CLOSED = """
import os, sys
from firstcli.runtime import streams
from firstcli.runtime.console import Console
read, write = os.pipe()
os.dup2(write, 1)
os.close(read); os.close(write)
streams.make_tolerant()
for _ in range(3):
    Console().say("text " * 10_000)
    print("more")
    sys.stdout.flush()
print("the work went on", file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_work_goes_on_after_its_reader_has_gone(unbuffered: str) -> None:
    result = run(CLOSED, PYTHONUNBUFFERED=unbuffered)
    assert (result.returncode, result.stderr) == (0, b"the work went on\n")


@pytest.mark.parametrize("env", [{}, {"PYTHONIOENCODING": "cp1252"}], ids=["utf-8", "cp1252"])
def test_a_command_ends_well_without_a_reader(env: dict[str, str]) -> None:
    code = "import sys; from firstcli.cli import main; sys.argv = ['first', 'plugins']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
