"""The recipe: what a run is made of, every key documented and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import InitErrorDetails

from firstcli import plugins
from firstcli.api import ModelFamily, Recalibrator, Task
from firstcli.errors import UserError
from firstcli.recipe.references import (
    ArmName,
    FolderName,
    ModelSection,
    PluginRef,
    PosthocRef,
    RecalibratorRef,
    Section,
    TaskRef,
    mistake,
)

DEFAULT_ARMS = {"first": {"recalibrator": {"name": "temperature-scaling"}}}


def _divides(micro_batch_size: int | None, batch_size: int | None) -> bool:
    return not micro_batch_size or not batch_size or batch_size % micro_batch_size == 0


class Training(Section):
    """How a model is trained: AdamW, cosine schedule, 3 % of the steps warm-up (paper, A.1)."""

    epochs: float = Field(default=3, gt=0)
    """Passes over the training part, not necessarily whole ones; the paper's (A.1) by default."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak AdamW step size; the paper (A.1) gives 2e-5 for teachers, for students it is ours."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences an optimizer step, over all processes; the paper (A.1) has 32 on each of 8 GPUs."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences a device takes at a time: divides batch_size, never changes a result; default:
    chosen by firstcli."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the weights train in. With float32 the arithmetic is bfloat16 where the hardware has
    it; bfloat16 weights do not feel small steps."""

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_the_batch(cls, micro: int | None, info: ValidationInfo) -> int | None:
        if not _divides(micro, info.data.get("batch_size")):
            raise mistake(f"{micro} does not divide batch_size {info.data['batch_size']}")
        return micro


class TrainingOverrides(Section):
    """What one arm trains with instead of `student.training`, key by key."""

    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None


class Train(Section):
    """What teacher and students learn from."""

    task: TaskRef
    """The task whose training split is learnt."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training split that is held out: recalibrators are fitted on it, no model is
    trained on it."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of samples that are longer than a model's context."""


class Evaluation(Section):
    """A task that teacher and students are judged on."""

    task: TaskRef
    """A task whose samples have candidates."""
    name: FolderName = Field(default=None, validate_default=True)
    """Unique name of the evaluation; default: the task's."""
    split: str = "test"
    """Which of the task's splits."""

    @field_validator("task")
    @classmethod
    def _has_candidates(cls, task: TaskRef) -> TaskRef:
        if not plugins.load("tasks", task.name).has_candidates:
            raise mistake(f"task '{task.name}' has no candidates, so no model can be judged on it")
        return task

    @field_validator("name", mode="before")
    @classmethod
    def _or_the_task_s(cls, name: object, info: ValidationInfo) -> object:
        if name is not None:
            return name
        return info.data["task"].name if "task" in info.data else "unnamed"


class MetricsSettings(Section):
    """What the report computes; changing it reruns no model."""

    bins: int = Field(default=10, ge=1)
    """Bins of equal width for ECE; the paper (5.3) has 10."""
    confidence: Literal["candidates", "full"] = "candidates"
    """The prediction's probability among the candidates, or in the whole vocabulary."""


class Teacher(Section):
    """The model that knows."""

    model: ModelSection
    """Where the teacher starts."""
    finetune: Training | None = None
    """How it is fine-tuned on the training part; leave out for one that already is."""
    posthoc: PosthocRef | None = None
    """Also evaluate the teacher followed by its own temperature, as `teacher + T`."""


class Student(Section):
    """The model that learns; every arm trains one."""

    model: ModelSection
    """Where every student starts."""
    training: Training = Training()
    """How every student is trained."""


class KnowledgeSection(Section):
    """What is kept of the teacher's predictions."""

    top_k: int = Field(default=5, ge=1)
    """Most likely tokens kept at each position; the paper (4.1) has 5."""
    precision: Literal["standard", "compact"] = "standard"
    """How finely probabilities are stored; for top_k = 5, 10.4 or 8.9 bytes a position of text.

    No probability is off by more than 0.005 (standard) or 0.025 (compact), most by far less.
    """
    folds: int | None = Field(default=None, ge=2)
    """Fine-tune this many more teachers, each on all but one part of the training rows, and take
    each row's probabilities from the one that has not seen it; default: from the teacher itself."""

    def stored(self) -> dict[str, Any]:
        """Return what every shard is made with."""
        return self.model_dump(include={"top_k", "precision"})


class Arm(Section):
    """One way to teach a student.

    Once checked, a knowledge arm has a recalibrator, an objective and a mass; a labels arm none.
    """

    learn: Literal["knowledge", "labels"] = "knowledge"
    """From the teacher's probabilities, or from the data's labels as a baseline."""
    recalibrator: RecalibratorRef | None = Field(default=None, validate_default=True)
    """What re-calibrates the teacher's probabilities; default: `none`."""
    objective: Literal["topk-tail", "topk-renormalized"] | None = Field(
        default=None, validate_default=True
    )
    """The loss (paper, Eq. 5): `topk-tail` (default) takes the student's probabilities as they are,
    `topk-renormalized` renormalizes both sides over the k tokens."""
    mass: Literal["teacher", "one"] | None = Field(default=None, validate_default=True)
    """What the k tokens are taught to sum to: the teacher's sum (default), or 1 (the paper's)."""
    recalibrate: Literal["decisive", "all"] | None = None
    """Which positions are re-calibrated: the one that decides between the candidates, or all of
    the response. Default: `decisive` for tasks with candidates, else `all`."""
    top_k: int | None = Field(default=None, ge=1)
    """How many of the stored `knowledge.top_k` tokens are learnt from; default: all."""
    out_of_fold: bool | None = None
    """From teachers that have not seen the row (`knowledge.folds`); default: where there are some.
    """
    training: TrainingOverrides | None = None
    """What this arm changes of `student.training`."""
    posthoc: PosthocRef | None = None
    """Also evaluate the student followed by its own temperature, as `<arm> + T`."""

    @field_validator(
        "recalibrator", "objective", "mass", "recalibrate", "top_k", "out_of_fold", mode="before"
    )
    @classmethod
    def _meaningful_or_default(cls, value: object, info: ValidationInfo) -> object:
        learn, objective = info.data.get("learn"), info.data.get("objective")
        renormalized = info.field_name == "mass" and objective == "topk-renormalized"
        if value is not None and learn == "labels":
            raise mistake("means nothing with 'learn: labels'; leave it out")
        if value is not None and renormalized:
            raise mistake("means nothing with 'objective: topk-renormalized'; leave it out")
        if value is not None or learn != "knowledge":
            return value
        defaults = {"recalibrator": {"name": "none"}, "objective": "topk-tail"}
        return {**defaults, "mass": "one" if renormalized else "teacher"}.get(str(info.field_name))

    @model_serializer(mode="wrap")
    def _as_a_recipe_says_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the mass that `topk-renormalized` implies: a recipe may not state it."""
        said: dict[str, Any] = handler(self)
        if self.objective == "topk-renormalized":
            said.pop("mass", None)
        return said


class Recipe(Section):
    """A run of firstcli: data, teacher, student and the arms to compare."""

    name: FolderName
    """Name of the run and of its folder: letters, digits, '.', '_', '-'."""
    seed: int = Field(default=1234, ge=0, lt=2**32)
    """Drives every random choice of the run."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = ()
    """Train every arm once with each of these seeds, for mean and spread; default: with `seed`."""
    train: Train
    """What teacher and students learn from."""
    evaluate: Annotated[tuple[Evaluation, ...], Field(strict=False)] = Field(min_length=1)
    """What teacher and students are judged on."""
    metrics: MetricsSettings = MetricsSettings()
    """How the report measures; changing it reruns no model."""
    teacher: Teacher | None = None
    """The teacher; may be left out if every arm learns from labels."""
    student: Student
    """The student."""
    knowledge: KnowledgeSection = KnowledgeSection()
    """What is kept of the teacher's predictions."""
    arms: dict[ArmName, Arm] = Field(
        default_factory=lambda: cast(Any, DEFAULT_ARMS), validate_default=True, min_length=1
    )
    """One student each, by name; default: `first` alone, with temperature scaling."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any field of transformers.TrainingArguments that firstcli does not set itself."""

    @field_validator("evaluate")
    @classmethod
    def _unique_names(cls, evaluations: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
        names = [evaluation.name.casefold() for evaluation in evaluations]
        _raise_all(
            ((i, "name"), f"'{evaluations[i].name}' names two evaluations; give one another 'name'")
            for i, name in enumerate(names)
            if name in names[:i]
        )
        return evaluations

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise mistake(f"found {list(seeds)}, expected seeds that all differ")
        return seeds

    @field_validator("teacher")
    @classmethod
    def _can_be_followed(cls, teacher: Teacher | None, info: ValidationInfo) -> Teacher | None:
        if teacher and teacher.posthoc:
            complaint = _posthoc_misfit(info.data.get("train"))
            _raise_all([(("posthoc",), complaint)] if complaint else [])
        return teacher

    @field_validator("knowledge")
    @classmethod
    def _can_be_folded(cls, section: KnowledgeSection, info: ValidationInfo) -> KnowledgeSection:
        teacher: Teacher | None = info.data.get("teacher")
        if section.folds and teacher and teacher.finetune is None:
            text = "each fold's teacher is fine-tuned, but there is no teacher.finetune; add it"
            _raise_all([(("folds",), text)])
        return section

    @field_validator("arms")
    @classmethod
    def _suit_the_recipe(cls, arms: dict[str, Arm], info: ValidationInfo) -> dict[str, Arm]:
        folded = [name.casefold() for name in arms]
        twins = (
            ((name,), "differs from another arm's name in case only")
            for i, name in enumerate(arms)
            if folded[i] in folded[:i]
        )
        misfits = (
            ((name, *keys), text)
            for name, arm in arms.items()
            for keys, text in _misfits(arm, info.data)
        )
        _raise_all((*twins, *misfits))
        return arms


def _raise_all(mistakes: Iterable[tuple[tuple[int | str, ...], str]]) -> None:
    details = [InitErrorDetails(type=mistake(text), loc=loc, input=None) for loc, text in mistakes]
    if details:
        raise ValidationError.from_exception_data("recipe", details)


def _misfits(arm: Arm, sections: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield key path and sentence of what an arm wants of the recipe's other, valid sections."""
    train: Train | None = sections.get("train")
    student: Student | None = sections.get("student")
    if arm.learn == "knowledge" and sections.get("teacher", "at fault") is None:
        yield (), "learns from a teacher, but the recipe has none; add 'teacher' or 'learn: labels'"
    if complaint := _recalibrator_misfit(arm, train, sections.get("knowledge")):
        yield ("recalibrator",), complaint
    knowledge: KnowledgeSection | None = sections.get("knowledge")
    if knowledge and arm.top_k and arm.top_k > knowledge.top_k:
        text = f"{arm.top_k} is more than the {knowledge.top_k} of knowledge.top_k; raise that"
        yield ("top_k",), text
    if knowledge and arm.out_of_fold and not knowledge.folds:
        yield ("out_of_fold",), "there are no folds; set knowledge.folds, for example to 5"
    if arm.posthoc and (complaint := _posthoc_misfit(train)):
        yield ("posthoc",), complaint
    if train and arm.recalibrate == "decisive" and not task_of(train.task).has_candidates:
        yield ("recalibrate",), f"task '{train.task.name}' has no candidates; expected 'all'"
    if student:
        training = training_of(student, arm)
        if not _divides(training.micro_batch_size, training.batch_size):
            yield (
                ("training",),
                f"micro_batch_size {training.micro_batch_size} does not divide batch_size "
                f"{training.batch_size}",
            )


def _posthoc_misfit(train: Train | None) -> str | None:
    if train is None:
        return None
    if train.validation == 0:
        return "its temperature is fitted on held-out rows, but train.validation is 0; raise it"
    if not task_of(train.task).has_candidates:
        return f"task '{train.task.name}' has no candidates to decide between; leave it out"
    return None


def _recalibrator_misfit(
    arm: Arm, train: Train | None, knowledge: KnowledgeSection | None
) -> str | None:
    if arm.recalibrator is None:
        return None
    try:
        recalibrator = recalibrator_of(arm)
        if recalibrator.needs_fit:
            unfit = train is not None and train.validation == 0
            name = arm.recalibrator.name
            return (
                f"'{name}' is fitted on held-out rows, but train.validation is 0" if unfit else None
            )
        if knowledge:  # some need more than one token; better to hear of it before hours are spent
            width = arm.top_k or knowledge.top_k
            recalibrator.transform(np.full((1, width), 1 / width))
    except UserError as error:
        return str(error)
    return None


def training_of(student: Student, arm: Arm) -> Training:
    """Return how the arm's student is trained: `student.training` with the arm's changes."""
    changes = arm.training.model_dump(exclude_none=True) if arm.training else {}
    return student.training.model_copy(update=changes)


def task_of(ref: PluginRef) -> Task[Any]:
    """Return the task with its options."""
    plugin = plugins.load("tasks", ref.name)
    task: Task[Any] = plugin(plugin.Options.model_validate(ref.options))
    return task


def family_of(model: ModelSection) -> ModelFamily[Any]:
    """Return the model's family with its options."""
    plugin = plugins.load("families", model.family)
    family: ModelFamily[Any] = plugin(plugin.Options.model_validate(model.options))
    return family


def recalibrator_of(arm: Arm) -> Recalibrator[Any]:
    """Return a fresh, unfitted recalibrator of a knowledge arm."""
    if arm.recalibrator is None:
        raise ValueError("an arm that learns labels has no recalibrator")
    return recalibrator_named(arm.recalibrator)


def recalibrator_named(ref: RecalibratorRef) -> Recalibrator[Any]:
    """Return a fresh, unfitted recalibrator with its options."""
    plugin = plugins.load("recalibrators", ref.name)
    recalibrator: Recalibrator[Any] = plugin(plugin.Options.model_validate(ref.options))
    return recalibrator
