"""The training task of a recipe: one task, or a mixture of several."""

from __future__ import annotations

from typing import Any, cast

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from firstcli.recipe.references import FolderName, RecipeSection, TaskRef, mistake


class Mixture(RecipeSection):
    """Several training tasks, whose shares in a student's training follow its gap to the teacher.

    DDK (arXiv 2407.16154): the further the student's perplexity on a task's held-out samples is
    above the teacher's, the more samples are drawn from that task.
    """

    tasks: dict[FolderName, TaskRef] = Field(min_length=2)
    """The tasks by the names of their domains; evaluations of them also average over domains."""
    every: int = Field(default=100, ge=1)
    """Steps between two updates of the shares; the paper uses 1,000."""
    smoothing: float = Field(default=0.5, ge=0, le=1)
    """Weight of the gaps in the shares; the rest is shared evenly. The paper uses 0.5."""
    samples: int = Field(default=500, ge=1)
    """Held-out samples of each task on which the losses are measured, at most; the paper uses 500.
    """

    @field_validator("tasks")
    @classmethod
    def _are_rendered_alike(cls, tasks: dict[str, TaskRef]) -> dict[str, TaskRef]:
        (first, one), *others = tasks.items()
        for name, other in others:
            if (one.chat, one.system) != (other.chat, other.system):
                text = f"'{first}' and '{name}' differ in `chat` or `system`; give both the same"
                raise mistake(text)
        return tasks

    @property
    def task(self) -> TaskRef:
        """All tasks as one."""
        first = next(iter(self.tasks.values()))
        inner = {
            name: {"name": ref.name, "options": ref.options} for name, ref in self.tasks.items()
        }
        return TaskRef.model_validate(
            {
                "name": "mixture" if first.plugin.has_candidates else "mixture-texts",
                "options": {"tasks": inner},
                "chat": first.chat,
                "system": first.system,
            }
        )


class TrainingTasks(RecipeSection):
    """Where training samples come from."""

    # Messages and editors call `task` required: few recipes have a mixture.
    model_config = ConfigDict(json_schema_extra={"required": ["task"]})

    mixture: Mixture | None = None
    """Several training tasks instead of one, whose shares in a student's training follow its gap to
    the teacher. Default: one task, `task`."""
    task: TaskRef = Field(default=cast(Any, None), validate_default=True)
    """The task whose training split is used. Required without `mixture`, which takes its place."""

    @field_validator("task", mode="wrap")
    @classmethod
    def _or_a_mixture(
        cls, task: Any, validated: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        if "mixture" not in info.data:  # its mistakes are reported, and the recipe is invalid
            return None
        mixture: Mixture | None = info.data["mixture"]
        if mixture is None and task is None:
            raise mistake("missing, expected a mapping with 'name'")
        if mixture is not None and task is not None:
            raise mistake("found besides `mixture`, which takes its place; leave one of them out")
        return validated(task) if mixture is None else mixture.task

    @model_serializer(mode="wrap")
    def _without_implied_task(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the task that a mixture implies: a recipe may not state it."""
        values: dict[str, Any] = handler(self)
        if self.mixture is not None:
            values.pop("task", None)
        return values
