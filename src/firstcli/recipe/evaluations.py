"""The entries of a recipe's `evaluate`, and how models generate their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from pydantic import Field, ValidationInfo, field_validator

from firstcli.recipe.references import FolderName, RecipeSection, TaskRef, mistake
from firstcli.recipe.sections import TEST
from firstcli.recipe.shift import Shifts


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How models answer by generating an explanation and an answer."""

    samples: int = 1
    confidence: Literal["probability", "agreement"] = "probability"
    temperature: float = 0.0
    max_new_tokens: int = 256


class Evaluation(RecipeSection):
    """A task on which teacher and students are evaluated."""

    task: TaskRef = Field(default=cast(TaskRef, None))
    """A task whose samples have candidate answers, or explanations that end with an answer.
    Default: the training task."""
    name: FolderName = Field(default=None, validate_default=True)
    """Unique name of the evaluation. Default: the task's name."""
    split: str = TEST
    """The task's split to evaluate on."""
    limit: int | None = Field(default=None, ge=1)
    """For a quick trial, evaluate on only this many rows from the start of the split. Default:
    all."""
    answers: Literal["scored", "generated"] | None = Field(default=None, validate_default=True)
    """How models answer: by the probability of each candidate after the prompt, and after the
    explanation of the data if there is one (`scored`), or by generating an explanation of their own
    and an answer (`generated`). Default: `generated` for tasks with explanations."""
    samples: int | None = Field(default=None, ge=1)
    """Explanations that are generated for each question. With one, the most likely tokens are
    taken; with more, the explanations are sampled. Default: 1."""
    confidence: Literal["probability", "agreement"] | None = None
    """What counts as a generated answer's probability: the probability of its tokens after the
    explanation, averaged over the explanations (`probability`), or the share of the explanations
    that end with it (`agreement`). Default: `agreement` if there are several, otherwise
    `probability`."""
    temperature: float | None = Field(default=None, gt=0)
    """Temperature of sampled explanations. Default: 0.7."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens after which a generated response is cut off. Default: 256."""
    shift: Shifts | None = None
    """Also evaluate on these questions with typing errors, in another case, without some words or
    in other words. Default: only as they are."""

    @field_validator("task")
    @classmethod
    def _has_candidates(cls, task: TaskRef) -> TaskRef:
        if not task.can_be_evaluated:
            raise mistake(
                f"task '{task.name}' has neither candidates nor explanations that end with an "
                "answer, so models cannot be evaluated on it"
            )
        return task

    @field_validator("answers")
    @classmethod
    def _suits_the_task(cls, answers: str | None, info: ValidationInfo) -> str | None:
        task: TaskRef | None = info.data.get("task")
        if task and answers == "generated" and task.explanations is None:
            raise mistake(
                f"found 'generated', but task '{task.name}' has no explanations; leave it out"
            )
        if task and answers == "scored" and not task.plugin.has_candidates:
            raise mistake(f"found 'scored', but task '{task.name}' has no candidates; leave it out")
        return answers

    @field_validator("samples", "confidence", "temperature", "max_new_tokens")
    @classmethod
    def _of_generated_answers(cls, value: object, info: ValidationInfo) -> object:
        if value is None or info.data.get("task") is None or "answers" not in info.data:
            return value
        if not _generates(info.data["task"], info.data["answers"]):
            raise mistake("has no effect unless answers are generated; leave it out")
        if info.field_name == "samples" or "samples" not in info.data:
            return value
        is_one = (info.data["samples"] or 1) == 1
        if is_one and (info.field_name == "temperature" or value == "agreement"):
            raise mistake(
                "has no effect with one explanation for each question; add `samples: 10`, or leave "
                "it out"
            )
        return value

    @property
    def generation(self) -> GenerationSettings | None:
        """How models generate their answers; None if candidates are scored."""
        if not _generates(self.task, self.answers):
            return None
        count = self.samples or 1
        return GenerationSettings(
            samples=count,
            confidence=self.confidence or ("agreement" if count > 1 else "probability"),
            temperature=0.0 if count == 1 else self.temperature or 0.7,
            max_new_tokens=self.max_new_tokens or 256,
        )

    @field_validator("name", mode="before")
    @classmethod
    def _task_name_by_default(cls, name: object, info: ValidationInfo) -> object:
        if name is not None:
            return name
        task: TaskRef | None = info.data.get("task")
        return task.name if task else "unnamed"


def _generates(task: TaskRef, answers: str | None) -> bool:
    return answers == "generated" or (answers is None and task.explanations is not None)
