"""Shifted evaluations in the plan: one row for all of them, and how many questions they add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from firstcli.recipe.shift import unshifted
from firstcli.workspace.run import Run
from firstcli.workspace.units import models_of, shifts_of

if TYPE_CHECKING:
    from firstcli.pipeline.plan import PlanRow


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


def added_questions(run: Run) -> Iterator[AddedQuestions]:
    """Yield what the shifts of each evaluation add."""
    models = sum(not model.posthoc for model in models_of(run.recipe))
    for name, shifts in shifts_of(run.recipe).items():
        content = {"samples": run.evaluation_content(name)}
        what = f"number of questions of {name}"
        count = run.memory.recall(what, content, partial(_count, run, name))
        yield AddedQuestions(name, len(shifts), len(shifts) * count, models)


def _count(run: Run, evaluation: str) -> int:
    return len(run.evaluation_samples(evaluation))


def cells(rows: Sequence[PlanRow]) -> list[tuple[str, str, str]]:
    """Return unit, state and size of each row; the shifts of an evaluation share one row."""
    found: list[tuple[str, str, str]] = []
    of_evaluation: dict[str, list[PlanRow]] = {}
    for row in rows:
        name = row.unit.evaluation
        if (evaluation := unshifted(name)) == name:
            found.append((row.unit.key, row.state, row.size))
            continue
        if evaluation not in of_evaluation:
            of_evaluation[evaluation] = []
            found.append((f"{row.unit.stage} {evaluation}", "", ""))
        of_evaluation[evaluation].append(row)
    return [cell if cell[1] else _shared(cell[0], of_evaluation) for cell in found]


def _shared(key: str, of_evaluation: dict[str, list[PlanRow]]) -> tuple[str, str, str]:
    rows = of_evaluation[key.partition(" ")[2]]
    shifts = len({row.unit.evaluation for row in rows})
    units = f"{shifts} shift{'s' * (shifts != 1)}, {len(rows)} units"
    pending = [row for row in rows if not row.current]
    if not pending:
        return f"{key}, shifted", "up to date", units
    return f"{key}, shifted", f"will run: {len(pending)} of {len(rows)}", units
