"""The recipe as a whole: its keys, its defaults and how its sections fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails

from firstcli.api import WritingSettings
from firstcli.errors import UserError, shortened
from firstcli.recipe.active import Active
from firstcli.recipe.conflicts import conflicts, conflicts_elsewhere
from firstcli.recipe.evaluations import Evaluation, GenerationSettings
from firstcli.recipe.files import DEFAULT_ARMS
from firstcli.recipe.references import (
    ArmName,
    FolderName,
    RecipeSection,
    TaskRef,
    mistake,
)
from firstcli.recipe.run_folders import default_folder
from firstcli.recipe.sections import (
    TEST,
    VALIDATION,
    Arm,
    Augment,
    KnowledgeSection,
    MetricsSettings,
    PublishedValues,
    Student,
    Train,
)
from firstcli.recipe.teacher import Teacher


class Recipe(RecipeSection):
    """A run of firstcli: the data, the teacher, the student and the arms to compare."""

    name: FolderName
    """Name of the run and of its folder: letters, digits, '.', '_', '-'."""
    seed: int = Field(default=1234, ge=0, lt=2**32)
    """Seed of every random choice in the run."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = ()
    """Train every arm once with each of these seeds, to report mean and spread. Default: once, with
    `seed`."""
    train: Train
    """The training data of teacher and students."""
    evaluate: Annotated[tuple[Evaluation, ...], Field(strict=False)] = Field(
        default=cast(Any, None), validate_default=True, min_length=1
    )
    """The evaluations of teacher and students. Default: the split `test` of the training task."""
    metrics: MetricsSettings = MetricsSettings()
    """Settings of the report. Changing them reruns no model."""
    teacher: Teacher | None = None
    """The teacher. It may be left out if every arm learns from labels."""
    student: Student
    """The student."""
    knowledge: KnowledgeSection = KnowledgeSection()
    """What is stored of the teacher's predictions."""
    arms: dict[ArmName, Arm] = Field(
        default_factory=lambda: cast(Any, DEFAULT_ARMS), validate_default=True, min_length=1
    )
    """The arms by name; each trains one student. Default: the arm `first`, with temperature
    scaling."""
    active: Active | None = Field(default=None, validate_default=True)
    """Which questions of a pool the teacher annotates, and on what budget; for `first select`."""
    paper: dict[FolderName, dict[str, PublishedValues]] = Field(default_factory=dict)
    """Published values to compare with, by evaluation and row (`teacher`, an arm, or either with
    ` + T`). `first compare` shows them beside those of the run."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any field of transformers.TrainingArguments that firstcli does not set itself."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run, unless `--run-dir` names a different one."""
        return default_folder(self.name)

    @property
    def answers_only(self) -> bool:
        """Whether the answer position is the only supervised one of every question.

        A remote teacher that returns the probabilities of the first generated token knows no more.
        """
        teacher = self.teacher
        if teacher is None or not teacher.model.plugin.is_remote:
            return False
        return bool(teacher.model.build().answers_only)  # type: ignore[attr-defined]

    @property
    def augmentation(self) -> Augment | None:
        """How copies of the training samples are made and used, if something learns them."""
        teacher = self.teacher
        learned = any(arm.augment for arm in self.arms.values())
        if not learned and not (teacher and teacher.finetune and teacher.finetune.augment):
            return None
        return self.train.augment or Augment()

    @property
    def writing(self) -> WritingSettings | None:
        """How the teacher writes text for copies, if an augmenter needs some; one at most does."""
        section = self.augmentation
        found = [ref.build().writing for ref in section.augmenters] if section else []
        return next((settings for settings in found if settings is not None), None)

    @property
    def validation_answers(self) -> GenerationSettings | None:
        """How models generate their answers to the validation questions; None if they are scored.

        That is greedily, and as long as in the evaluations that are greedy, too: what is fitted to
        these answers is for those evaluations.
        """
        if self.train.task.explanations is None:
            return None
        found = [settings for each in self.evaluate if (settings := each.generation)]
        lengths = [settings.max_new_tokens for settings in found if settings.samples == 1]
        default = GenerationSettings()
        return replace(default, max_new_tokens=max(lengths, default=default.max_new_tokens))

    def is_validation(self, evaluation: str) -> bool:
        """Whether this names the questions of the validation part.

        A recipe that does not use them may have an evaluation of its own with that name.
        """
        return evaluation == VALIDATION and all(each.name != VALIDATION for each in self.evaluate)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain YAML values, with defaults and absolute local paths."""
        return self.model_dump(mode="json", exclude_none=True)

    @field_validator("evaluate", mode="before")
    @classmethod
    def _of_the_training_task_by_default(cls, entries: object, info: ValidationInfo) -> object:
        train: Train | None = info.data.get("train")
        if entries is None and train:
            _require_test_split(train.task)
        entries = [{}] if entries is None else entries
        if not isinstance(entries, list | tuple):
            return entries

        def completed(entry: object) -> object:
            if not isinstance(entry, dict) or entry.get("task") is not None:
                return entry
            # Without a valid training task the recipe is invalid anyway.
            return entry if train is None else {**entry, "task": train.task}

        return [completed(entry) for entry in entries]

    @field_validator(
        *("train", "evaluate", "metrics", "seeds", "teacher", "student", "knowledge", "arms"),
        *("active", "paper", "trainer"),
    )
    @classmethod
    def _fits_the_recipe(cls, section: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        own, others = (find(name, section, info.data) for find in (conflicts, conflicts_elsewhere))
        details = [InitErrorDetails(type=mistake(text), loc=keys, input=None) for keys, text in own]
        details += [
            InitErrorDetails(type=mistake(text, keys), loc=keys, input=None)
            for keys, text in others
        ]
        if details:
            raise ValidationError.from_exception_data("recipe", details)
        return section


def _require_test_split(task: TaskRef) -> None:
    """Refuse a recipe without `evaluate` whose training task cannot be evaluated."""
    example = "for example `evaluate: [{split: validation}]`"
    if not task.can_be_evaluated:
        raise mistake(
            f"missing, and the training task '{task.name}' has no candidates, so models cannot be "
            "evaluated on it; list a task that has, as `evaluate: [{task: {name: ...}}]`"
        )
    try:
        splits = task.build().splits
    except UserError:
        return  # the data cannot be read, which is a mistake in `train.task`
    if TEST not in splits:
        raise mistake(
            f"missing, and the training task '{task.name}' has no split '{TEST}'; it has "
            f"{shortened(splits)}; {task.advice_on_test_split}list a different split, {example}"
        )
