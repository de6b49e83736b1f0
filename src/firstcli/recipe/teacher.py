"""The section `teacher` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticKnownError

from firstcli.recipe.from_run import FromRun
from firstcli.recipe.references import ModelSection, PosthocRef, RecipeSection, mistake
from firstcli.recipe.sections import Finetuning


class Teacher(RecipeSection):
    """The teacher: the model whose probabilities the students learn."""

    from_run: FromRun | None = None
    """A student of another run as the teacher, instead of `model` (a mentor, arXiv 2410.09037): a
    run folder or a recipe, or `{run: ..., arm: ...}`. It is not fine-tuned again unless `finetune`
    says so."""
    model: ModelSection = Field(default=cast(Any, None), validate_default=True)
    """The teacher's family and initial weights."""
    finetune: Finetuning | None = None
    """How the teacher is fine-tuned on the training part. Leave it out if the checkpoint is already
    fine-tuned."""
    posthoc: PosthocRef | None = None
    """Also evaluate the teacher with a post-hoc recalibrator, as `teacher + T`."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = ()
    """Fine-tune a teacher with each of these seeds, for arms that learn a mean (`teachers`). The
    first is the teacher that is evaluated and that other arms learn from. Default: one, with
    `seed`."""

    @field_validator("model", mode="wrap")
    @classmethod
    def _given_or_of_a_run(
        cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        if "from_run" not in info.data:
            return value  # the mistake in it fails the recipe
        source: FromRun | None = info.data["from_run"]
        if source is None and value is None:
            raise PydanticKnownError("missing")
        model = handler(source.model if value is None and source else value)
        if source and model != handler(source.model):
            raise mistake(
                "'from_run' gives the teacher another model; leave one of them out (an inherited "
                "one with `model: null`)"
            )
        return model
