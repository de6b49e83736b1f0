"""`first init`: print a starter, the list of starters, the JSON Schema, or a recipe for a file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from firstcli.errors import UserError, shortened
from firstcli.recipe.starters import starter, starters


def text(name: str | None, *, schema: bool) -> str:
    """Return what `first init` prints: the starter `name`, or the list of all starters.

    Raises:
        UserError: no starter has that name.
    """
    if schema:
        from firstcli.recipe import load  # here, because the starters need no pydantic

        return json.dumps(load.schema(), indent=2) + "\n"
    if name is not None:
        return starter(name).text
    return f"Starters, for example `first init classification > recipe.yaml`:\n{_listed()}"


def _listed() -> str:
    """Return the starters with their descriptions, under headings."""
    width = max(len(each.name) for each in starters())
    lines: list[str] = []
    for heading, group in groupby(starters(), lambda each: each.heading):
        lines += ["", f"{heading}:"]
        lines += [f"  {each.name:<{width}}  {each.description}" for each in group]
    return "\n".join(lines) + "\n"


def from_data(
    file: Path,
    text: Sequence[str] = (),
    label: str | None = None,
    task: str | None = None,
    answer_as: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    out: Path | None = None,
) -> None:
    """Say on standard error what a data file contains, and print or save a recipe for it.

    Args:
        file: a file, a folder or a glob, as the tasks read them.
        text: the text columns; default: a guess.
        label: the column of the label, the answer or the response; default: a guess.
        task: the task; default: a guess.
        answer_as: how answers name choices; default: what fits all answers.
        teacher: the teacher's checkpoint; default: a small model of the hub.
        student: the student's checkpoint.
        out: where to save the recipe; default: standard output.

    Raises:
        UserError: the data cannot be read, or the roles of its columns remain unclear.
    """
    from firstcli.runtime.console import Console
    from firstcli.runtime.files import write_text
    from firstcli.wizard import guess, look, show, source, write
    from firstcli.wizard.roles import LabelledTexts, Overrides

    if out is not None and out.exists():
        raise UserError(f"--out {out}: this file exists; choose a different name, or delete it")
    console = Console(json=True)  # the recipe alone goes to standard output
    notes: list[str] = []
    with console.status(f"reading {file} ..."):
        data = source.source_at(file)
        table = look.look(data.rows(notes=notes))
        others = {split: look.look(data.rows(split)) for split in data.others}
    console.show(show.columns_table(table))
    console.say(show.rows_line(table, others))
    for note in notes:
        console.warn(note)
    overrides = Overrides(tuple(text), label, task, answer_as)
    roles = guess.guess(data, table, overrides, _choose)
    if problem := show.unusable_test(others, roles):
        console.warn(problem)
        data = data.without_splits()
    console.say(f"read as {show.reading(roles)}")
    if isinstance(roles, LabelledTexts):
        for line in show.label_lines(table, roles.label):
            console.say(line)
    with console.status("looking for repeated rows ..."):
        findings = list(show.findings(data, table, roles))
    for finding in findings:
        console.warn(finding)
    usual = write.default_models(roles)
    models = write.Models(teacher or usual.teacher, student or usual.student)
    if problem := write.lacks_template(roles, models):
        console.warn(problem)
    recipe = write.recipe_text(data, table, roles, models, out.parent if out else None)
    if out is None:
        print(recipe, end="")
        return
    try:
        write_text(out, recipe)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    console.say(f"saved {out}; next: first plan {out}")


def _choose(question: str, candidates: Sequence[str], option: str) -> str:
    """Ask in a terminal; elsewhere refuse, and name the candidates and the option that decides.

    Raises:
        UserError: standard input or standard error is not a terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            f"{question} found {shortened(list(candidates), 20)}; state {option}, for example "
            f"{option} {shlex.quote(candidates[0])}"
        )
    from rich.console import Console as RichConsole
    from rich.prompt import IntPrompt
    from rich.text import Text

    from firstcli.wizard.look import printable

    console = RichConsole(stderr=True, highlight=False)
    console.print(Text(question))
    for number, candidate in enumerate(candidates, 1):
        console.print(Text(f"  {number}  {printable(candidate)}"))
    numbers = [str(number) for number in range(1, len(candidates) + 1)]
    answer = IntPrompt.ask("number", choices=numbers, console=console, show_choices=False)
    return candidates[answer - 1]
