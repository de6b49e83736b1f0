"""Shifted evaluations in the plan: one row for all of them, and how many questions they add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from firstcli.recipe.shift import unshifted
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, shifts_of


class AddedQuestions(NamedTuple):
    """What the shifts of an evaluation add to the work."""

    evaluation: str
    shifts: int
    questions: int
    """Questions that each model is asked, over all shifts."""
    models: int
    """Models that are asked; a post-hoc temperature asks none."""

    def __str__(self) -> str:
        kinds = f"{self.shifts} shift{'s' * (self.shifts != 1)}"
        asked = f"{self.models} model{'s' * (self.models != 1)}"
        return (
            f"{kinds} of {self.evaluation}: {self.questions:,} further questions for each of "
            f"{asked}; nothing is trained on them"
        )


def added_questions(run: Run, units: Sequence[Unit]) -> Iterator[AddedQuestions]:
    """Yield what the shifts of each evaluation add to the work on some units."""
    for name, shifts in shifts_of(run.recipe).items():
        asked = {unit.model for unit in units if unit.evaluation in shifts}
        models = sum(not model.posthoc for model in asked)
        if not models:
            continue
        content = {"samples": run.evaluation_content(name)}
        what = f"number of questions of {name}"
        count = run.memory.recall(what, content, partial(_count, run, name))
        yield AddedQuestions(name, len(shifts), len(shifts) * count, models)


def _count(run: Run, evaluation: str) -> int:
    return len(run.evaluation_samples(evaluation))


class ShownUnit(NamedTuple):
    """A unit as the plan shows it."""

    unit: Unit
    state: str
    size: str
    current: bool


def cells(rows: Sequence[ShownUnit]) -> list[tuple[str, str, str]]:
    """Return unit, state and size of each row; the shifts of an evaluation share one row."""
    shared: dict[str, list[ShownUnit]] = {}
    for row in rows:
        if (evaluation := unshifted(row.unit.evaluation)) != row.unit.evaluation:
            shared.setdefault(evaluation, []).append(row)
    found = {}
    for row in rows:
        evaluation = unshifted(row.unit.evaluation)
        if evaluation == row.unit.evaluation:
            found[row.unit.key] = (row.unit.key, row.state, row.size)
        else:
            key = f"{row.unit.stage} {evaluation}, shifted"
            found.setdefault(key, (key, *_together(shared[evaluation])))
    return list(found.values())


def _together(rows: Sequence[ShownUnit]) -> tuple[str, str]:
    """Return the state and the size of all shifts of an evaluation."""
    shifts = len({row.unit.evaluation for row in rows})
    size = f"{shifts} shift{'s' * (shifts != 1)}, {len(rows)} units"
    pending = sum(not row.current for row in rows)
    return f"will run: {pending} of {len(rows)}" if pending else "up to date", size
