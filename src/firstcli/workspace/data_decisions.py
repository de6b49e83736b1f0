"""What the data decides about the recipe, and so about the units."""

from __future__ import annotations

from contextlib import suppress

from firstcli.errors import UserError
from firstcli.recipe.sections import Unlabelled
from firstcli.workspace.run import Run
from firstcli.workspace.training_split import has_teacher_arm


def state_data(run: Run) -> None:
    """State in the recipe what the data decides about the units, which follow from it alone."""
    _state_unlabelled(run)
    _state_responses(run)


def _state_responses(run: Run) -> None:
    """State that the teacher writes all responses if the data has none."""
    knowledge = run.recipe.knowledge
    if knowledge.responses != "teacher":
        return
    with suppress(UserError):  # a mistake in the data, which the checks report
        if not run.training.train:
            stated = knowledge.model_copy(update={"responses": "teacher-always"})
            run.recipe = run.recipe.model_copy(update={"knowledge": stated})


def _state_unlabelled(run: Run) -> None:
    """State that the training split has rows without a label, if it has some.

    What students learn of such rows is a unit.
    """
    train = run.recipe.train
    usable = has_teacher_arm(run.recipe) and train.task.plugin.has_candidates
    if train.unlabelled or not usable:
        return
    with suppress(UserError):  # a mistake in the data, which the checks report
        if run.part_content("unlabelled"):
            stated = train.model_copy(update={"unlabelled": Unlabelled()})
            run.recipe = run.recipe.model_copy(update={"train": stated})
