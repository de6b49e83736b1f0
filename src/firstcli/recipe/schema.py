"""The recipe: every key of a run, documented and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import InitErrorDetails

from firstcli.api import DataPaths, MassMode
from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.recipe.lora import Lora, Saved
from firstcli.recipe.references import (
    POSTHOC_KEY,
    ArmName,
    FolderName,
    ModelSection,
    PosthocRef,
    RecalibratorRef,
    RecipeSection,
    TaskRef,
    mistake,
    user_errors_as_mistakes,
)
from firstcli.runtime.redaction import redacted

TEST = "test"
"""The split that is evaluated by default."""
VALIDATION = "validation"
"""Reserved name of the evaluation on the questions that are held out of the training split."""
_SAVE_WITHOUT_LORA = "has no effect without 'lora'; leave it out, or add `lora: {}`"
DEFAULT_ARMS = {"first": {"recalibrator": {"name": "temperature-scaling"}}}


class Training(RecipeSection):
    """Training settings: AdamW, cosine schedule, warm-up over 3 % of the steps (paper, A.1)."""

    epochs: float = Field(default=3, gt=0)
    """Passes over the training part; fractions are allowed. The default is the paper's (A.1)."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of AdamW. The paper (A.1) states 2e-5 for teachers; for students the
    default is an assumption."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step, summed over all processes. The paper (A.1) uses 32 on each of
    8 GPUs, which is 256."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences per forward pass on one device. It must divide batch_size and never changes the
    result. Default: chosen by firstcli."""
    batching: Literal["padded", "packed"] = "padded"
    """How a forward pass holds its sequences: padded to the longest of them, or without padding,
    one after the other in a single row (`packed`). It changes no result beyond rounding. Long rows
    are slow without flash attention."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights during training. With float32 weights, the arithmetic runs in
    bfloat16 where the hardware supports it; bfloat16 weights lose small updates to rounding.
    Adapters (`lora`) are float32 with either."""
    lora: Lora | None = None
    """Train low-rank adapters and leave the weights as they are; needs `firstcli[peft]`. `lora: {}`
    takes the defaults. An arm's section replaces that of `student.training` as a whole."""
    save: Saved | None = None
    """What is saved of a training with `lora`: the model with the adapter merged into its weights
    (`merged`), the adapter alone (`adapter`), or the model and, in `adapter/`, the adapter (`both`,
    default)."""
    save_dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] = "checkpoint"
    """Data type of the saved weights, which every later step reads: by default that of the
    checkpoint with which training starts, and float32 without one. Training itself is not rounded
    to it."""

    @property
    def saved(self) -> Saved:
        """What is saved, with the default."""
        return self.save or ("both" if self.lora else "merged")

    @field_validator("save")
    @classmethod
    def _needs_lora(cls, save: Saved | None, info: ValidationInfo) -> Saved | None:
        if save is not None and info.data.get("lora", "invalid") is None:
            raise mistake(_SAVE_WITHOUT_LORA)
        return save

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_the_batch(cls, micro: int | None, info: ValidationInfo) -> int | None:
        batch = info.data.get("batch_size")
        if micro and batch and batch % micro:
            raise mistake(f"{micro} does not divide batch_size {batch}")
        return micro


class TrainingOverrides(RecipeSection):
    """One arm's changes to `student.training`, key by key."""

    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    batching: Literal["padded", "packed"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    lora: Lora | None = None
    save: Saved | None = None
    save_dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] | None = None


class Unlabelled(RecipeSection):
    """Training samples without a label, from which only students learn.

    At the answer position they learn the teacher's recalibrated probabilities, and nothing else.
    """

    path: DataPaths | None = None
    """The file or files of the samples, relative to this recipe. The training task reads them with
    its other options; labels are not needed, and ignored. Default: only the rows of the training
    split whose label is empty."""
    limit: int | None = Field(default=None, ge=0)
    """Use only this many unlabelled samples, those of the training split first; 0 leaves them all
    out. Default: all."""


class Train(RecipeSection):
    """The training data of teacher and students."""

    task: TaskRef
    """The task whose training split is used."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the training split that is held out. Recalibrators are fitted on it; no model is
    trained on it."""
    too_long: Literal["error", "drop"] = "error"
    """What to do with samples that exceed a model's context: stop with an error, or drop them."""
    limit: int | None = Field(default=None, ge=1)
    """For a quick trial, use only this many rows from the start of the training split, including
    those that are held out. Default: all."""
    doubled_bos: Literal["error", "drop"] = "error"
    """What to do with prompts, also those of evaluations, that begin with the BOS token that the
    tokenizer adds, as rendered chat templates do: stop with an error, or drop the added one."""
    unlabelled: Unlabelled | None = None
    """Samples without a label, from which students learn the teacher's probabilities. Default: the
    rows of the training split whose label is empty, if there are any."""

    @field_validator("unlabelled")
    @classmethod
    def _can_be_read(cls, section: Unlabelled | None, info: ValidationInfo) -> Unlabelled | None:
        task: TaskRef | None = info.data.get("task")
        if section is None or task is None:
            return section
        if not task.plugin.has_candidates:
            raise mistake(
                f"task '{task.name}' has no candidates, so the teacher has no probabilities of "
                "answers to teach; leave it out, or use a task with candidates"
            )
        if section.path is not None:
            with user_errors_as_mistakes():
                task.build_unlabelled(section.path)
        return section


class Evaluation(RecipeSection):
    """A task on which teacher and students are evaluated."""

    task: TaskRef = Field(default=cast(Any, None))
    """A task whose samples have candidate answers. Default: the training task."""
    name: FolderName = Field(default=None, validate_default=True)
    """Unique name of the evaluation. Default: the task's name."""
    split: str = TEST
    """The task's split to evaluate on."""
    limit: int | None = Field(default=None, ge=1)
    """For a quick trial, evaluate on only this many rows from the start of the split. Default:
    all."""

    @field_validator("task")
    @classmethod
    def _has_candidates(cls, task: TaskRef) -> TaskRef:
        if not task.plugin.has_candidates:
            raise mistake(
                f"task '{task.name}' has no candidates, so models cannot be evaluated on it"
            )
        return task

    @field_validator("name", mode="before")
    @classmethod
    def _task_name_by_default(cls, name: object, info: ValidationInfo) -> object:
        if name is not None:
            return name
        task: TaskRef | None = info.data.get("task")
        return task.name if task else "unnamed"


class MetricsSettings(RecipeSection):
    """Settings of the report. Changing them reruns no model."""

    bins: int = Field(default=10, ge=1)
    """Number of equal-width bins for the ECE; the paper (5.3) uses 10."""
    confidence: Literal["candidates", "full"] = "candidates"
    """Which probability counts as confidence: the prediction's probability renormalised over the
    candidates (`candidates`), or over the whole vocabulary (`full`)."""
    candidates: Literal["first-token", "whole"] = "first-token"
    """What is scored of each candidate: the first token in which the candidates differ
    (`first-token`), or all its tokens (`whole`), as in lm-evaluation-harness."""
    correction: Literal["none", "holm"] = "none"
    """How the marks of the report allow for the number of its tests: not at all, or so that all
    true differences of zero stay unmarked with a probability of 95 % (`holm`)."""
    target_accuracy: float | None = Field(default=None, gt=0, lt=1)
    """Choose for each model the lowest confidence from which on its answers have at least this
    accuracy, with 95 % certainty. The models also answer the validation questions then."""
    coverage: float | None = Field(default=None, gt=0, lt=1)
    """Report for each model sets of candidates that contain the right one with at least this
    probability. The models also answer the validation questions then."""

    @property
    def use_validation(self) -> bool:
        """Whether the models also answer the validation questions."""
        return self.target_accuracy is not None or self.coverage is not None

    @property
    def definition(self) -> str:
        """The settings in words, for captions."""
        return f"confidence: {self.confidence}, scored: {self.candidates}, {self.bins} bins"


class Teacher(RecipeSection):
    """The teacher: the model whose probabilities the students learn."""

    model: ModelSection
    """The teacher's family and initial weights."""
    finetune: Training | None = None
    """How the teacher is fine-tuned on the training part. Leave it out if the checkpoint is already
    fine-tuned."""
    posthoc: PosthocRef | None = None
    """Also evaluate the teacher with a post-hoc recalibrator, as `teacher + T`."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False)] = ()
    """Fine-tune a teacher with each of these seeds, for arms with `teachers: mean`. The first is
    the teacher that is evaluated and that other arms learn from. Default: one, with `seed`."""


class Student(RecipeSection):
    """The student: the model that every arm trains."""

    model: ModelSection
    """The student's family and initial weights."""
    training: Training = Training()
    """How every student is trained."""
    eos: Literal["student", "teacher"] = "student"
    """Which end-of-sequence token ends the students' responses, if their tokenizer and the
    teacher's differ in it: their own (`student`), so that the teacher's probability of its end is
    learned as theirs, or the teacher's (`teacher`), which the students are then saved with."""


class Sampling(RecipeSection):
    """How the teacher writes responses; see `knowledge.responses`."""

    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the next token's distribution; 0 always takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the fewest most likely tokens whose probabilities sum to at least this."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample from this many most likely tokens. Default: all."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which a response is given up: it is left out, and counted."""


class KnowledgeSection(RecipeSection):
    """What is stored of the teacher's predictions."""

    top_k: int = Field(default=5, ge=1)
    """Number of most likely tokens stored per position; the paper (4.1) uses 5."""
    precision: Literal["standard", "compact"] = "standard"
    """Precision of the stored probabilities. With top_k = 5, a position of text takes 10.4 bytes
    (`standard`) or 8.9 bytes (`compact`).

    The error of a probability is at most 0.005 (`standard`) or 0.025 (`compact`), and usually far
    smaller.
    """
    folds: int | None = Field(default=None, ge=2)
    """Fine-tune this many additional teachers, each on all but one fold of the training samples,
    and take each sample's probabilities from the teacher that was not trained on it. Default: take
    them from the teacher itself."""
    responses: Literal["data", "teacher", "teacher-always"] = "data"
    """Who writes the responses that students learn from: the data (`data`), the teacher where the
    data has none (`teacher`), or the teacher for all training prompts (`teacher-always`). Rows
    without a response are left out with `data`."""
    sampling: Sampling | None = None
    """How the teacher writes responses. Default: samples from its whole distribution, at most 256
    tokens."""
    over: Literal["tokens", "candidates"] = "tokens"
    """What the probabilities are of: the most likely tokens at each position (`tokens`), or whole
    candidates of questions (`candidates`), for which teacher and student may have different
    tokenizers. Then `top_k` is the number of most likely candidates that are stored."""
    batching: Literal["padded", "packed"] = "padded"
    """How the teacher reads its batches, as `batching` does for training."""

    @property
    def sampler(self) -> Sampling:
        """How the teacher writes responses, with the defaults."""
        return self.sampling or Sampling()

    @property
    def over_candidates(self) -> bool:
        return self.over == "candidates"

    def stored(self) -> dict[str, Any]:
        """Return the settings that determine the contents of every shard."""
        settings = self.model_dump(include={"top_k", "precision"})
        return settings | ({"over": self.over} if self.over_candidates else {})

    def writing(self) -> dict[str, Any]:
        """Return the settings that determine the responses that the teacher writes."""
        return {"sampling": self.sampler.model_dump()}


class Arm(RecipeSection):
    """One way to train a student.

    After validation, a knowledge arm has a recalibrator, an objective and a mass; a labels arm has
    none of them.
    """

    learn: Literal["knowledge", "labels"] = "knowledge"
    """Learn from the teacher's probabilities (`knowledge`), or from the data's labels as a baseline
    (`labels`)."""
    recalibrator: RecalibratorRef | None = Field(default=None, validate_default=True)
    """The recalibrator of the teacher's probabilities. Default: `none`."""
    objective: Literal["topk-tail", "topk-renormalized"] | None = Field(
        default=None, validate_default=True
    )
    """The loss (paper, Eq. 5). `topk-tail` (default) uses the student's probabilities from the full
    softmax; `topk-renormalized` renormalises both sides over the k tokens."""
    mass: MassMode | None = Field(default=None, validate_default=True)
    """Target sum of the k probabilities: the teacher's sum (`teacher`, default), or 1 (`one`, the
    paper's choice)."""
    recalibrate: Literal["decisive", "all"] | None = None
    """Which positions are recalibrated: only the answer position, which distinguishes the
    candidates (`decisive`), or all positions of the response (`all`). Default: `decisive` for tasks
    with candidates, otherwise `all`."""
    top_k: int | None = Field(default=None, ge=1)
    """How many of the stored `knowledge.top_k` tokens to learn from. Default: all."""
    out_of_fold: bool | None = None
    """Take each sample's probabilities from the teacher that was not trained on it
    (`knowledge.folds`). Default: true if there are folds."""
    teachers: Literal["first", "mean"] | None = None
    """Whose probabilities are learned: the first teacher's (`first`, default), or the mean of all
    teachers' (`mean`), see `teacher.seeds`."""
    training: TrainingOverrides | None = None
    """Changes to `student.training` for this arm."""
    posthoc: PosthocRef | None = None
    """Also evaluate the student with a post-hoc recalibrator, as `<arm> + T`."""

    @field_validator(
        *("recalibrator", "objective", "mass", "recalibrate", "top_k", "out_of_fold", "teachers"),
        mode="before",
    )
    @classmethod
    def _applicable_or_default(cls, value: object, info: ValidationInfo) -> object:
        learn, objective = info.data.get("learn"), info.data.get("objective")
        renormalized = info.field_name == "mass" and objective == "topk-renormalized"
        if value is not None and learn == "labels":
            raise mistake("has no effect with 'learn: labels'; leave it out")
        if value is not None and renormalized:
            raise mistake("has no effect with 'objective: topk-renormalized'; leave it out")
        if value is not None or learn != "knowledge":
            return value
        defaults = {"recalibrator": {"name": "none"}, "objective": "topk-tail"}
        return {**defaults, "mass": "one" if renormalized else "teacher"}.get(str(info.field_name))

    @model_serializer(mode="wrap")
    def _without_implied_mass(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the mass that `topk-renormalized` implies: a recipe may not state it."""
        values: dict[str, Any] = handler(self)
        if self.objective == "topk-renormalized":
            values.pop("mass", None)
        return values


class PublishedValues(RecipeSection):
    """What a paper reports for one row of its table, in percent."""

    ece: float | None = None
    """Expected calibration error."""
    accuracy: float | None = None
    """Accuracy."""
    trust: float | None = None
    """Accuracy minus ECE."""


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
    paper: dict[FolderName, dict[str, PublishedValues]] = Field(default_factory=dict)
    """Published values to compare with, by evaluation and row (`teacher`, an arm, or either with
    ` + T`). `first compare` shows them beside those of the run."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any field of transformers.TrainingArguments that firstcli does not set itself."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run, unless `--run-dir` names a different one."""
        return Path("runs") / self.name

    @property
    def answers_only(self) -> bool:
        """Whether the answer position is the only supervised one of every question.

        A remote teacher that returns the probabilities of the first generated token knows no more.
        """
        teacher = self.teacher
        if teacher is None or not teacher.model.plugin.is_remote:
            return False
        return bool(teacher.model.build().answers_only)  # type: ignore[attr-defined]

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
        *("evaluate", "metrics", "seeds", "teacher", "student", "knowledge", "arms"),
        *("paper", "trainer"),
    )
    @classmethod
    def _fits_the_recipe(cls, section: Any, info: ValidationInfo) -> Any:
        conflicts = _conflicts(str(info.field_name), section, info.data)
        details = [
            InitErrorDetails(type=mistake(text), loc=keys, input=None) for keys, text in conflicts
        ]
        if details:
            raise ValidationError.from_exception_data("recipe", details)
        return section


def _require_test_split(task: TaskRef) -> None:
    """Refuse a recipe without `evaluate` whose training task cannot be evaluated."""
    example = "for example `evaluate: [{split: validation}]`"
    if not task.plugin.has_candidates:
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


_NO_CREDENTIALS = (
    "firstcli takes no credentials and no settings of the hub from a recipe, because a recipe is "
    "copied into reports; set an environment variable such as HF_TOKEN or WANDB_API_KEY"
)
Conflicts = Iterator[tuple[tuple[int | str, ...], str]]
"""Key path and message of each conflict."""


def _conflicts(name: str, section: Any, valid: Mapping[str, Any]) -> Conflicts:
    """Yield the conflicts of a section with itself and with the valid sections before it."""
    if name == "evaluate":
        names = [evaluation.name.casefold() for evaluation in section]
        for i, evaluation in enumerate(section):
            if names[i] in names[:i]:
                yield (i, "name"), f"two evaluations are named '{evaluation.name}'; rename one"
    if name == "metrics" and section.use_validation:
        yield from _validation_conflicts(section, valid)
    if name == "trainer":
        for key, value in section.items():
            if key.startswith("hub_") or redacted({key: value}) != {key: value}:
                yield (key,), _NO_CREDENTIALS
    if name == "paper":
        yield from _unknown_rows(section, valid)
    if name == "seeds" and len(set(section)) < len(section):
        yield (), f"found {list(section)}, expected seeds without repetition"
    if name == "teacher" and section and section.seeds:
        if section.finetune is None:
            text = "the teachers differ in their fine-tuning, but there is no teacher.finetune"
            yield ("seeds",), f"{text}; add it"
        if len(set(section.seeds)) < len(section.seeds):
            text = f"found {list(section.seeds)}, expected seeds without repetition"
            yield ("seeds",), text
    if name == "teacher" and section and section.model.plugin.is_remote:
        yield from _remote_conflicts(section, valid.get("train"))
    if name == "student" and section.model.plugin.is_remote:
        text = f"the model of family '{section.model.family}' runs elsewhere and cannot be trained"
        yield ("model", "family"), f"{text}; choose a different family"
    if name == "teacher" and section and section.posthoc:
        yield from _posthoc_conflicts(valid.get("train"))
    teacher: Teacher | None = valid.get("teacher")
    if name == "student" and section.eos == "teacher" and valid.get("teacher", "invalid") is None:
        yield ("eos",), "the recipe has no teacher; add one, or leave this out"
    if name == "knowledge":
        yield from _knowledge_conflicts(section, teacher, valid)
    if name == "arms":
        names = [arm.casefold() for arm in section]
        for i, (arm_name, arm) in enumerate(section.items()):
            if names[i] in names[:i]:
                yield (arm_name,), "differs from another arm's name only in case; rename one"
            for keys, text in _arm_conflicts(arm, valid):
                yield (arm_name, *keys), text


def _knowledge_conflicts(
    section: KnowledgeSection, teacher: Teacher | None, valid: Mapping[str, Any]
) -> Conflicts:
    if section.folds and teacher and teacher.finetune is None:
        text = "each fold's teacher is fine-tuned, but there is no teacher.finetune; add it"
        yield ("folds",), text
    train: Train | None = valid.get("train")
    if section.over_candidates and train and not train.task.plugin.has_candidates:
        text = f"task '{train.task.name}' has no candidates; leave it out"
        yield ("over",), f"{text}, and choose models with the same tokenizer"
    is_remote = teacher is not None and teacher.model.plugin.is_remote
    if section.batching == "packed" and (section.over_candidates or is_remote):
        yield ("batching",), "has no effect over candidates or with a remote teacher; leave it out"
    if section.responses == "data":
        if section.sampling is not None:
            yield ("sampling",), "has no effect without 'responses: teacher'; add it"
    elif is_remote:
        yield ("responses",), "a teacher that runs elsewhere writes no responses; leave it out"
    elif train and train.task.plugin.has_candidates:
        text = (
            f"task '{train.task.name}' has candidates, so there is no response to write; leave it "
            "out: students learn the teacher's probabilities of questions without a label as well"
        )
        yield ("responses",), text
    elif section.responses == "teacher-always" and section.folds:
        yield ("folds",), "has no effect with 'responses: teacher-always'; leave it out"


def _remote_conflicts(teacher: Teacher, train: Train | None) -> Conflicts:
    """Yield what a teacher whose model runs elsewhere cannot do."""
    if teacher.finetune:
        text = f"the model of family '{teacher.model.family}' runs elsewhere; leave this out"
        yield ("finetune",), text
    if train and not train.task.plugin.has_candidates and teacher.model.build().answers_only:  # type: ignore[attr-defined]
        yield (
            ("model", "options"),
            "with these options, only the first generated token has probabilities, which suits "
            f"tasks with candidates, and '{train.task.name}' has none; use a server that also "
            "returns the probabilities of the prompt's tokens",
        )


def _arm_conflicts(arm: Arm, valid: Mapping[str, Any]) -> Conflicts:
    train: Train | None = valid.get("train")
    student: Student | None = valid.get("student")
    knowledge: KnowledgeSection | None = valid.get("knowledge")
    if arm.learn == "knowledge" and valid.get("teacher", "invalid") is None:
        yield (), "learns from a teacher, but the recipe has none; add 'teacher' or 'learn: labels'"
    if arm.recalibrator:
        top_k = (arm.top_k or knowledge.top_k) if knowledge else None
        yield from _recalibrator_conflicts(arm.recalibrator, train, top_k)
    if knowledge and arm.top_k and arm.top_k > knowledge.top_k:
        text = f"{arm.top_k} exceeds knowledge.top_k ({knowledge.top_k}); raise knowledge.top_k"
        yield ("top_k",), text
    if knowledge and arm.out_of_fold and not knowledge.folds:
        yield ("out_of_fold",), "there are no folds; set knowledge.folds, for example to 5"
    if arm.teachers == "mean":
        yield from _conflicts_of_mean(arm, valid)
    if knowledge and knowledge.over_candidates:
        yield from _conflicts_over_candidates(arm)
    if arm.posthoc:
        yield from _posthoc_conflicts(train)
    if train and arm.recalibrate == "decisive" and not train.task.build().has_candidates:
        yield ("recalibrate",), f"task '{train.task.name}' has no candidates; expected 'all'"
    if student:
        training = training_of(student, arm)
        micro, batch = training.micro_batch_size, training.batch_size
        if micro and batch % micro:
            yield ("training",), f"micro_batch_size {micro} does not divide batch_size {batch}"
        if training.save and not training.lora:
            yield ("training", "save"), _SAVE_WITHOUT_LORA


def _conflicts_of_mean(arm: Arm, valid: Mapping[str, Any]) -> Conflicts:
    teacher: Teacher | None = valid.get("teacher")
    knowledge: KnowledgeSection | None = valid.get("knowledge")
    if teacher and len(teacher.seeds) < 2:
        text = "there is only one teacher; give several in teacher.seeds, for example [1, 2, 3]"
        yield ("teachers",), text
    if knowledge and knowledge.folds and arm.out_of_fold is not False:
        text = "the teachers of folds have no further seeds; set this arm's out_of_fold: false"
        yield ("teachers",), text


def _conflicts_over_candidates(arm: Arm) -> Conflicts:
    """Yield what an arm needs at positions of which `knowledge.over: candidates` knows nothing."""
    only = "knowledge.over: candidates has probabilities of the answer position alone"
    if arm.recalibrate == "all":
        yield ("recalibrate",), f"{only}; leave it out"
    if arm.objective == "topk-renormalized":
        text = f"{only}, but this objective compares several tokens at every position"
        yield ("objective",), f"{text}; leave it out"


def _unknown_rows(
    paper: Mapping[str, Mapping[str, PublishedValues]], valid: Mapping[str, Any]
) -> Conflicts:
    evaluations = [section.name for section in valid.get("evaluate", ())]
    models = ["teacher", *valid.get("arms", {})]
    rows = [*models, *(f"{model} + T" for model in models)]
    for evaluation, values in paper.items():
        if "evaluate" in valid and evaluation not in evaluations:
            hint = did_you_mean(evaluation, evaluations)
            yield (evaluation,), f"the recipe has no such evaluation{hint}"
        for row in values:
            if "arms" in valid and row not in rows:
                yield (evaluation, row), f"the recipe has no such model{did_you_mean(row, rows)}"


def _posthoc_conflicts(train: Train | None) -> Conflicts:
    if train and train.validation == 0:
        text = "it is fitted on held-out samples, but train.validation is 0; raise it"
        yield (POSTHOC_KEY,), text
    elif train and not train.task.build().has_candidates:
        text = f"task '{train.task.name}' has no candidates to choose from; leave it out"
        yield (POSTHOC_KEY,), text


def _validation_conflicts(metrics: MetricsSettings, valid: Mapping[str, Any]) -> Conflicts:
    """Yield what prevents the models from answering the validation questions."""
    train: Train | None = valid.get("train")
    given = (key for key in ("target_accuracy", "coverage") if getattr(metrics, key) is not None)
    key = next(given)
    if train and train.validation == 0:
        yield (key,), "it needs held-out questions, but train.validation is 0; raise it"
    elif train and not train.task.build().has_candidates:
        yield (key,), f"task '{train.task.name}' has no candidates to choose from; leave it out"
    for evaluation in valid.get("evaluate", ()):
        if evaluation.name.casefold() == VALIDATION:
            text = f"it makes records named '{VALIDATION}', as an evaluation is; rename that one"
            yield (key,), text


def _recalibrator_conflicts(
    ref: RecalibratorRef, train: Train | None, top_k: int | None
) -> Conflicts:
    try:
        recalibrator = ref.build()
        if recalibrator.needs_fit and train and train.validation == 0:
            raise UserError(
                f"'{ref.name}' is fitted on held-out samples, but train.validation is 0"
            )
        if top_k and not recalibrator.needs_fit:
            recalibrator.try_out(top_k)  # some need more than one token
    except UserError as error:
        yield ("recalibrator",), str(error)


def training_of(student: Student, arm: Arm) -> Training:
    """Return the training settings of an arm: `student.training` with the arm's changes."""
    changes = {key: value for key, value in arm.training or () if value is not None}
    return student.training.model_copy(update=changes)
