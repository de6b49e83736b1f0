"""`first --help` against a Typer app with the same commands and options and empty bodies.

    python benchmarks/startup.py [--repeats 15]

Both run as whole processes of the same interpreter, alternately.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
from measure import Comparison, Report

MIN_REPEATS = 15

HEAD = """from typing import Annotated
import typer
app = typer.Typer(no_args_is_help=True)
"""


def empty_app() -> str:
    """Return the source of firstcli's command line with empty bodies."""
    from typer.main import get_command

    from firstcli.cli import app

    group: Any = get_command(app)
    commands = [_command(name, command) for name, command in group.commands.items()]
    return "\n\n".join([HEAD, *commands, "app()\n"])


def _command(name: str, command: Any) -> str:
    lines = [f"@app.command({name!r}, help={command.help!r})", f"def {name}("]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            argument = f"typer.Argument(help={parameter.help!r})"
            lines.append(f"    {parameter.name}: Annotated[str, {argument}],")
        elif parameter.name != "help":
            kind, default = ("bool", False) if parameter.is_flag else ("str", "")
            option = f"typer.Option({parameter.opts[0]!r}, help={parameter.help!r})"
            lines.append(f"    {parameter.name}: Annotated[{kind}, {option}] = {default!r},")
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
            max(repeats, MIN_REPEATS),
        )
    figures = " and ".join(f"{statistics.median(seconds):.3f}" for seconds in times.values())
    ratios = measure.ratios(times["first"], times["empty"])
    return Report(
        [Comparison("`first --help`", "an empty Typer app", ratios, 1.3, figures=figures + " s")]
    )


if __name__ == "__main__":
    measure.main(report, __doc__)
