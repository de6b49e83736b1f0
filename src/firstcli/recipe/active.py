"""The section `active`: a pool of questions, and the budget for annotating some of them."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field

from firstcli.recipe.budget import Budget, Prices
from firstcli.recipe.references import AnnotatorRef, RecipeSection, SelectorRef, TaskRef
from firstcli.recipe.sections import Arm

STOP_EVALUATION = "active-held-out"
"""Name of the evaluation on the held-out samples, which decides when an arm stops."""
RECALIBRATED = frozenset({"answers", "thoughts"})
"""What a selector may read of a student that depends on its post-hoc recalibrator."""


class PoolSection(RecipeSection):
    """The questions from which some are annotated."""

    task: TaskRef | None = None
    """The task of the questions. Default: the training task."""
    split: str = "train"
    """The task's split. Questions of it that are held out or known from the start are left out."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many questions, the first ones. Default: all."""


class Stop(RecipeSection):
    """When the rounds end before the budget is spent."""

    patience: int = Field(default=2, ge=1)
    """Rounds without a new best value after which an arm ends."""
    metric: Literal["accuracy", "ece", "trust", "nll"] = "accuracy"
    """The metric of the student on the held-out samples, never on an evaluation."""


class Active(RecipeSection):
    """Active distillation: rounds of choosing questions, annotating them, and training."""

    pool: PoolSection = PoolSection()
    """The questions. By default those of the training split."""
    seed_samples: int = Field(ge=1)
    """Number of labelled training samples with which every student starts, drawn by the seed."""
    budget: Budget
    """What may be spent on annotations. An arm may have its own."""
    rounds: int = Field(default=5, ge=1)
    """Number of rounds over which the budget is spread evenly."""
    selector: SelectorRef = Field(default=cast(Any, {"name": "random"}), validate_default=True)
    """Which questions are annotated next. An arm may have its own."""
    annotator: AnnotatorRef = Field(default=cast(Any, {"name": "answer"}), validate_default=True)
    """What is bought of a chosen question. An arm may have its own."""
    confidence: Literal["raw", "recalibrated"] = "recalibrated"
    """Which of the student's probabilities the selector sees: as they are, or with the arm's
    post-hoc recalibrator (default: `logit-temperature`), fitted to the held-out samples."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which the student's explanations are cut off."""
    train: Literal["continue", "from-scratch"] = "from-scratch"
    """Where the student of a round starts: as that of the recipe, or from the previous round's."""
    stop: Stop | None = None
    """When the rounds end early. Default: when the budget is spent."""
    prices: Prices | None = None
    """What tokens cost. Needed for `budget.cost`."""
    check_labels: bool = False
    """Buy the labels of annotated questions, too, and count the annotations that contradict them.
    Nothing else reads these labels, and the budget does not contain them."""
    max_failures: int = Field(default=20, ge=0)
    """Annotations that may fail in a round, for example because they cannot be parsed."""

    def of_arm(self, arm: Arm) -> Active:
        """Return the section with an arm's own budget in place of the common one, if it has one."""
        return self if arm.budget is None else self.model_copy(update={"budget": arm.budget})

    def selector_of(self, arm: Arm) -> SelectorRef:
        """Return what chooses an arm's questions."""
        return arm.selector or self.selector

    def annotator_of(self, arm: Arm) -> AnnotatorRef:
        """Return what is bought of an arm's questions."""
        return arm.annotator or self.annotator

    def recalibrates(self, arm: Arm) -> bool:
        """Return whether an arm's selector sees recalibrated probabilities."""
        reads = bool(RECALIBRATED & self.selector_of(arm).plugin.needs)
        return reads and self.confidence_of(arm) == "recalibrated"

    def confidence_of(self, arm: Arm) -> Literal["raw", "recalibrated"]:
        """Return which probabilities an arm's selector sees."""
        return arm.confidence or self.confidence
