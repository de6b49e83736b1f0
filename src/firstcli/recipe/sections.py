"""The sections of a recipe: every key but those at the top, documented and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from firstcli.api import DataPaths, MassMode
from firstcli.recipe.budget import Budget
from firstcli.recipe.lora import Lora, Saved
from firstcli.recipe.mixture import TrainingTasks
from firstcli.recipe.references import (
    AnnotatorRef,
    AugmenterRef,
    ModelSection,
    ObjectiveRef,
    PosthocRef,
    RecalibratorRef,
    RecipeSection,
    SelectorRef,
    TaskRef,
    mistake,
    user_errors_as_mistakes,
)

TEST = "test"
"""The split that is evaluated by default."""
VALIDATION = "validation"
"""Reserved name of the evaluation on the questions that are held out of the training split."""
RENORMALIZED = "topk-renormalized"
"""The objective for which `mass` has no meaning."""
SAVE_WITHOUT_LORA = "has no effect without 'lora'; leave it out, or add `lora: {}`"


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
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Save the exponential moving average of the weights over the steps, with this decay, instead
    of the weights after the last step. A decay of 0.99 averages about the last 100 steps. Default:
    the weights after the last step."""
    interpolate: float | None = Field(default=None, gt=0, lt=1)
    """Save weights on the line from those with which training starts to the trained ones, at this
    share of the way. It needs a checkpoint to start from. Default: the trained weights."""
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

    @property
    def saved_weights(self) -> str:
        """Which weights are saved, in words; empty for those of the last step."""
        ema, share = self.ema, self.interpolate
        weights = "weights" if ema is None else f"moving average of the weights (decay {ema:g})"
        if share is not None:
            return f"{weights} at {share:g} of the way from the start"
        return "" if ema is None else weights

    @field_validator("save")
    @classmethod
    def _needs_lora(cls, save: Saved | None, info: ValidationInfo) -> Saved | None:
        if save is not None and info.data.get("lora", "invalid") is None:
            raise mistake(SAVE_WITHOUT_LORA)
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
    ema: float | None = Field(default=None, gt=0, lt=1)
    interpolate: float | None = Field(default=None, gt=0, lt=1)
    lora: Lora | None = None
    save: Saved | None = None
    save_dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] | None = None


class Finetuning(Training):
    """Training settings of the teacher, which starts from its checkpoint or from new weights."""

    augment: bool | None = None
    """Also fine-tune on the copies of `train.augment`, with the labels of their samples: a baseline
    for arms with `augment`. Default: false."""


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


class Augment(RecipeSection):
    """Copies of the training samples with other prompts, about which the teacher is asked.

    Arms learn them with `augment: true`. Copies are made of samples with a label or a response.
    """

    augmenters: Annotated[tuple[AugmenterRef, ...], Field(strict=False)] = Field(
        default=cast(Any, ({"name": "perturb"},)), min_length=1, validate_default=True
    )
    """What makes the copies: each augmenter makes its own of every sample."""
    share: float = Field(default=0.5, gt=0, le=1)
    """The probability that one of its copies stands for a sample in an epoch, so that an epoch has
    as many steps as without copies. Changing it trains again, but extracts nothing."""


class Train(TrainingTasks):
    """The training data of teacher and students."""

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
    augment: Augment | None = None
    """Copies of the training samples with other prompts. Default: if an arm has `augment: true`,
    four copies that `perturb` makes."""

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


MOST_DRAWS = 1000
"""Draws per position. More would take a thousand columns of the store to gain little."""


class KnowledgeSection(RecipeSection):
    """What is stored of the teacher's predictions."""

    top_k: int = Field(default=5, ge=1)
    """Number of most likely tokens stored per position; the paper (4.1) uses 5."""
    draws: int | None = Field(default=None, ge=1, le=MOST_DRAWS)
    """Store this many random draws from the teacher's whole distribution per position instead of
    its most likely tokens (RS-KD, arXiv 2503.16870). Students learn the drawn tokens, weighted by
    how often each was drawn. Default: the `top_k` most likely tokens."""
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

    @property
    def width(self) -> int:
        """The largest number of tokens that are stored per position."""
        return self.draws or self.top_k

    def stored(self) -> dict[str, Any]:
        """Return the settings that determine the contents of every shard."""
        if self.draws is not None:
            return self.model_dump(include={"draws", "precision"})
        settings = self.model_dump(include={"top_k", "precision"})
        return settings | ({"over": self.over} if self.over_candidates else {})

    def writing(self) -> dict[str, Any]:
        """Return the settings that determine the responses that the teacher writes."""
        return {"sampling": self.sampler.model_dump()}


PRESETS: dict[str, dict[str, Any]] = {
    "first-plus": {
        "recalibrator": {"name": "logit-temperature", "options": {"criterion": "nll"}},
        "augment": True,
        "posthoc": {"name": "logit-temperature"},
    }
}
"""The keys of arms that `preset` stands for."""


class SpanWeights(RecipeSection):
    """What the loss of a token is multiplied with, by the part of the response that it is in.

    The loss is then the weighted mean over all supervised tokens.
    """

    explanation: float = Field(default=1.0, gt=0)
    """Weight of the tokens before the answer position, such as the steps of an explanation."""
    answer: float = Field(default=1.0, gt=0)
    """Weight of the tokens from the answer position on."""


class Arm(RecipeSection):
    """One way to train a student.

    After validation, a knowledge arm has a recalibrator, an objective and a mass; a labels arm has
    none of them.
    """

    preset: Literal["first-plus"] | None = None
    """A whole method in one key, whose keys this arm may override. `first-plus`: learn the copies
    of `train.augment`, recalibrate with `logit-temperature` by NLL, and evaluate with a post-hoc
    temperature, too."""
    learn: Literal["knowledge", "labels"] = "knowledge"
    """Learn from the teacher's probabilities (`knowledge`), or from the data's labels as a baseline
    (`labels`)."""
    recalibrator: RecalibratorRef | None = Field(default=None, validate_default=True)
    """The recalibrator of the teacher's probabilities. Default: `none`."""
    objective: ObjectiveRef | None = Field(default=None, validate_default=True)
    """The loss (paper, Eq. 5): a name, or `{name: ..., options: ...}`. `topk-tail` (default) uses
    the student's probabilities from the full softmax; `topk-renormalized` renormalises both sides
    over the k tokens; `hard-gate` (arXiv 2210.12427) learns the label, -log q, at each position
    where the student is less sure of the true token than the recalibrated teacher, and is
    `topk-tail` elsewhere; `dac-kl` (after arXiv 2407.10068) is `topk-tail` over the likeliest
    tokens alone, as many as a position needs."""
    span_weights: SpanWeights | None = None
    """How much the explanation and the answer of a response count. Default: all tokens the same."""
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
    teachers: Literal["first", "mean", "recalibrated-mean"] | None = None
    """Whose probabilities are learned: the first teacher's (`first`, default), the mean of all
    teachers', which is then recalibrated (`mean`), or the mean of what each teacher's own
    recalibrator gives (`recalibrated-mean`), see `teacher.seeds`."""
    mixture: bool | None = None
    """Draw training samples by the shares of `train.mixture`, which follow the gap to the teacher.
    With false, every sample is learned once in an epoch. Default: true for arms that learn
    knowledge, if there is a mixture."""
    augment: bool | None = None
    """Also learn the copies of `train.augment`: what the teacher says of them, or with `learn:
    labels`, the labels of their samples. Default: false."""
    training: TrainingOverrides | None = None
    """Changes to `student.training` for this arm."""
    selector: SelectorRef | None = None
    """Which questions are annotated for this arm. Default: `active.selector`."""
    annotator: AnnotatorRef | None = None
    """What is bought of them. Default: `active.annotator`."""
    confidence: Literal["raw", "recalibrated"] | None = None
    """Which probabilities the selector sees. Default: `active.confidence`."""
    budget: Budget | None = None
    """What may be spent on annotations for this arm; the whole pool, for example, as what the other
    arms are compared with. Default: `active.budget`."""
    posthoc: PosthocRef | None = None
    """Also evaluate the student with a post-hoc recalibrator, as `<arm> + T`."""

    @property
    def averages(self) -> bool:
        """Whether the arm learns from all teachers, not from the first alone."""
        return self.teachers in ("mean", "recalibrated-mean")

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, values: Any) -> Any:
        """Fill in the keys that a preset stands for."""
        preset = values.get("preset") if isinstance(values, dict) else None
        known = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {**known, **values} if known else values

    @field_validator("learn")
    @classmethod
    def _suits_the_preset(cls, learn: str, info: ValidationInfo) -> str:
        if learn == "labels" and (preset := info.data.get("preset")):
            raise mistake(
                f"found 'labels', but 'preset: {preset}' learns the teacher's probabilities; leave "
                "one of them out"
            )
        return learn

    @field_validator(
        *("recalibrator", "objective", "span_weights", "mass", "recalibrate", "top_k"),
        *("out_of_fold", "teachers"),
        mode="before",
    )
    @classmethod
    def _applicable_or_default(cls, value: object, info: ValidationInfo) -> object:
        learn, objective = info.data.get("learn"), info.data.get("objective")
        renormalized = info.field_name == "mass" and getattr(objective, "name", "") == RENORMALIZED
        if value is not None and learn == "labels":
            raise mistake("has no effect with 'learn: labels'; leave it out")
        if value is not None and renormalized:
            raise mistake("has no effect with 'objective: topk-renormalized'; leave it out")
        if value is not None or learn != "knowledge":
            return value
        defaults = {"recalibrator": {"name": "none"}, "objective": "topk-tail"}
        return {**defaults, "mass": "one" if renormalized else "teacher"}.get(str(info.field_name))

    @model_serializer(mode="wrap")
    def _without_implied_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the mass that `topk-renormalized` implies: a recipe may not state it.

        A preset is left out, too, because its keys are stated.
        """
        values: dict[str, Any] = handler(self)
        values.pop("preset", None)
        if self.objective and self.objective.name == RENORMALIZED:
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


def training_section(arms: Mapping[str, Arm], name: str, key: str) -> str:
    """Return the section of the recipe that states a key of a training.

    Args:
        arms: the recipe's arms.
        name: the student's arm; empty for the teacher.
        key: a key of the training, such as `lora`.
    """
    if not name:
        return "teacher.finetune"
    own = arms[name].training
    stated = own is not None and getattr(own, key) is not None
    return f"arms.{name}.training" if stated else "student.training"


def training_of(student: Student, arm: Arm) -> Training:
    """Return the training settings of an arm: `student.training` with the arm's changes."""
    changes = {key: value for key, value in arm.training or () if value is not None}
    return student.training.model_copy(update=changes)
