"""`first --help` against a Typer app with the same commands and options and empty bodies.

    python benchmarks/startup.py [--repeats 15]

Whole processes of the same interpreter, in turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
from measure import Report, Row

REPEATS = 15  # at least

HEAD = """from typing import Annotated
import typer
app = typer.Typer(no_args_is_help=True)
"""


def empty_app() -> str:
    """Write firstcli's command line without its bodies."""
    from typer.main import get_command

    from firstcli.cli import app

    group: Any = get_command(app)
    commands = [_command(name, command) for name, command in group.commands.items()]
    return "\n\n".join([HEAD, *commands, "app()\n"])


def _command(name: str, command: Any) -> str:
    lines = [f"@app.command({name!r}, help={command.help!r})", f"def {name}("]
    for one in command.params:
        if one.param_type_name == "argument":
            lines.append(f"    {one.name}: Annotated[str, typer.Argument(help={one.help!r})],")
        elif one.name != "help":
            kind, default = ("bool", False) if one.is_flag else ("str", "")
            option = f"typer.Option({one.opts[0]!r}, help={one.help!r})"
            lines.append(f"    {one.name}: Annotated[{kind}, {option}] = {default!r},")
    return "\n".join([*lines, ") -> None: ..."])


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def report(repeats: int) -> Report:
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.py")
        path.write_text(empty_app(), "utf-8")
        times = measure.in_turns(
            {
                "first": measure.clocked(lambda: run("-m", "firstcli", "--help")),
                "empty": measure.clocked(lambda: run(str(path), "--help")),
            },
            max(repeats, REPEATS),
        )
    figures = " and ".join(f"{statistics.median(found):.3f}" for found in times.values())
    found = measure.ratios(times["first"], times["empty"])
    return Report([Row("`first --help`", "an empty Typer app", found, 1.3, figures=figures + " s")])


if __name__ == "__main__":
    measure.alone(report, __doc__)
