"""The part of the contract that concerns options, samples, tasks and model families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict

from firstcli.api.explanations import ExplanationForm
from firstcli.api.usage import TaskUsage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
JSON = Any  # a value that `json.dumps` accepts; an exact type would have to be recursive
Dtype = Literal["float32", "bfloat16", "float16"]
MassMode = Literal["teacher", "one"]
"""Total probability that the student learns for the k tokens: the teacher's, or 1."""


class PluginOptions(BaseModel):
    """The options of a plugin, given as `options:` in a recipe.

    Give every field a `Field(description=...)`. Unknown keys are rejected and values are not
    coerced: `epochs: yes` is an error, not 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourcedStr(str):
    """A string from a recipe, with the folder that its relative paths start from."""

    base: Path

    def __new__(cls, value: str, base: Path) -> SourcedStr:
        self = super().__new__(cls, value)
        self.base = base
        return self


def _resolve(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        path = Path(str(value)).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ValueError(f"found '{value}', but {str(error).lower()}") from error
    return path if path.is_absolute() else getattr(value, "base", Path.cwd()) / path


DataPath = Annotated[Path, BeforeValidator(_resolve)]
"""A path option, relative to the recipe that states it, or to the current folder in `--set`."""


def _resolve_all(value: object) -> object:
    if not isinstance(value, list):
        return _resolve(value)
    if not value or not all(isinstance(path, str | Path) for path in value):
        raise ValueError("expected a list of paths, at least one")
    return [_resolve(path) for path in value]


DataPaths = Annotated[Path | list[Path], BeforeValidator(_resolve_all)]
"""One path or a list of paths, each relative as in `DataPath`."""


OptionsT = TypeVar("OptionsT", bound=PluginOptions)
OUTDATED = "class {} was written for an earlier version of firstcli: {}"
RENAMED = {"keeps_ranks": "order_preserving", "trained_model": "load_trained"}


class PluginBase(ABC, Generic[OptionsT]):
    """The base of all kinds of plugins: an object that is built from its options."""

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    format: ClassVar[int] = 1
    """Part of a plugin's identity: raise it when the same options and data give new results."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            if hasattr(cls, old):
                raise TypeError(OUTDATED.format(cls.__name__, f"rename `{old}` to `{new}`"))


ChatRole = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: ChatRole
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: a prompt, and the response to learn or the candidates to choose from."""

    prompt: str
    """Not empty; ends where the response begins. A leading space belongs to the response."""
    response: str
    id: str | None = None
    """The data's own id, unique in its split; with None, firstcli derives one from the content."""
    candidates: tuple[str, ...] = ()
    """The complete responses to choose from: 2 to 1,000, all different, none empty. Samples that
    share one tuple are checked, stored and encoded faster."""
    answer: int | None = None
    """Index of the right candidate. None with candidates means that none is right, or in training
    data that it is unknown."""
    truth: tuple[float, ...] | None = None
    """The true probability of each candidate, if known; sums to 1 and needs an `answer`."""
    group: str | None = None
    """The question's group, such as its subject, over which reports also average: all questions of
    a split have one, or none has."""
    messages: tuple[ChatMessage, ...] = ()
    """The conversation, which a chat template turns into text; see `conversation`. Either all
    samples of a split have messages, or none has."""
    supervised: tuple[int, ...] = ()
    """Indices of the messages to learn, ascending; all are the assistant's."""
    steps: tuple[str, ...] = ()
    """The explanation that the response gives before its answer, one text per step. The response
    contains the steps in order, and so does every candidate: candidates then differ in the answer
    alone, so that the answer position comes after the explanation."""
    teacher_prompt: str | None = None
    """What the teacher reads instead of `prompt`; None: the same. Only tasks with
    `has_teacher_prompts` give one. Not for conversations."""

    @property
    def as_teacher(self) -> Sample:
        """The sample as the teacher reads it."""
        if self.teacher_prompt is None:
            return self
        return replace(self, prompt=self.teacher_prompt, teacher_prompt=None)

    @classmethod
    def conversation(
        cls, messages: Sequence[ChatMessage], supervised: Sequence[int], *, id: str | None = None
    ) -> Sample:
        """Build the sample of a conversation of which some of the assistant's messages are learned.

        Its prompt is the text before the first of these, its response the rest. They identify the
        sample and decide the split that it belongs to; models read what the template makes of the
        messages.

        Args:
            messages: the conversation.
            supervised: indices of the messages to learn, ascending; the first is not 0.
            id: the data's own id.
        """
        first = supervised[0]
        prompt, response = transcript(messages[:first]), transcript(messages[first:])
        return cls(prompt, response, id, messages=tuple(messages), supervised=tuple(supervised))

    @classmethod
    def question(
        cls,
        prompt: str,
        candidates: Sequence[str],
        answer: int | None,
        *,
        id: str | None = None,
        truth: Sequence[float] | None = None,
        group: str | None = None,
    ) -> Sample:
        """Build the sample of a question task; its response is the right candidate.

        Args:
            prompt: the text before the response.
            candidates: the complete responses to choose from.
            answer: index of the right candidate. With None the response is empty, and in training
                data the question is unlabelled.
            id: the data's own id.
            truth: the true probability of each candidate, where it is known.
            group: the question's group, such as its subject.
        """
        response = "" if answer is None else candidates[answer]
        probabilities = None if truth is None else tuple(truth)
        return cls(prompt, response, id, tuple(candidates), answer, probabilities, group)


def transcript(messages: Sequence[ChatMessage]) -> str:
    """Return messages as text: a single one by its content, several with their roles."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


@dataclass(frozen=True, slots=True)
class Split:
    """The samples of one split, and the number of dropped samples by reason."""

    samples: Iterable[Sample]
    """Consumed once, in order: a list, or a generator for a split that may exceed memory."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Read after the last sample, so that a generator can count while it runs."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how the data was read; also read after the last sample."""


class ResponseTokens(Protocol):
    """How the tokenizers of a run encode responses; passed to `Task.adapted`."""

    def __call__(
        self, prompt: str, responses: Sequence[str], /
    ) -> Sequence[Sequence[tuple[int, ...] | None]]:
        """Return each response's tokens after a prompt, with EOS, for each tokenizer.

        Prompt and response are encoded as one text. A response is None where the prompt's tokens
        change because it follows.
        """


@dataclass(frozen=True, slots=True)
class Adaptation(Generic[OptionsT]):
    """What a task has decided after it saw the tokenizers."""

    options: OptionsT
    """The task's options with every decision filled in. To adapt these again changes nothing."""
    note: str = ""
    """The decisions in a few words, for the plan."""


class Task(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.tasks`: the samples of each split."""

    has_candidates: ClassVar[bool] = True
    """Whether models can be evaluated on samples; if False, these have only prompt and response."""
    held_out_split: ClassVar[str | None] = None
    """The split that is held out, if it is not cut from the split `train` by the recipe's share."""

    @property
    def has_teacher_prompts(self) -> bool:
        """Whether the teacher reads other prompts than the student in some samples."""
        return False

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that these options can load; at least one, all different."""

    @abstractmethod
    def load(self, split: str) -> Split:
        """Return the samples of one of `splits`: at least one, in the same order at every load.

        Candidates are compared at the first token in which they differ, so no two may share it.
        Questions of `train` without a right answer are unlabelled: only students learn from them,
        and some must have one. In a split that is evaluated, questions without a right answer are
        left out, unless none has one.

        Raises:
            UserError: a file is missing or a row is malformed; names file, line and key. It may
                also be raised while the samples are consumed.
            OSError: a connection is lost, for example; firstcli then uses none of the samples.
        """

    def sources(self, split: str) -> Sequence[Path] | None:
        """Return the local files that a split is read from.

        Data whose files have not changed is not checked again. Return an empty sequence if the
        options alone determine the samples; with None, every command reads the split.
        """
        return None

    def unlabelled(self, path: Path | Sequence[Path]) -> Task[Any] | None:
        """Return a task whose split `train` are the questions of other files, without answers.

        A recipe names the files in `train.unlabelled`. They are read with the options of this task
        and may have labels, which are ignored. None if the task reads no such files.

        Args:
            path: one file or folder, or several, as in a task's option `path`.
        """
        return None

    def usage(self) -> TaskUsage | None:
        """Return how prompt and candidates of a new row are made, as data.

        It is stored in the folder of every student, so that the student works without the task. It
        must rebuild the prompts and candidates of the task's own rows exactly. With None, users of
        a student give complete prompts; the candidates are those that all samples share, or the
        user gives them, too.
        """
        return None

    def explanations(self) -> ExplanationForm | None:
        """Return how responses are made of steps and answer; None if samples have no steps.

        Models are then evaluated on what they generate: their own explanation and its answer. The
        response of a sample is `render(sample.steps, answer, form)`, and so is every candidate;
        samples without candidates have free answers, which are read off their responses.
        """
        return None

    def adapted(self, tokens: ResponseTokens, training: OptionsT | None) -> Adaptation[OptionsT]:
        """Return the options with which a run uses this task.

        A task whose responses depend on the tokenizers of teacher and student, or on the training
        task, overrides this method. The run builds the task again with the returned options. It
        remembers them as long as the options, the files of the split `train`, and the models stay
        the same. A tokenizer that is trained on the task's text sees the samples of the task
        before it is adapted.

        Args:
            tokens: encodes responses with the tokenizer of each model; models with the same
                tokenizer count once.
            training: the adapted options of the training task, if this task belongs to an
                evaluation and both use the same plugin.

        Raises:
            UserError: the options and the tokenizers do not fit.
        """
        return Adaptation(self.options)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The checkpoint of a model, as the recipe states it."""

    checkpoint: str | None
    """A hub id or the absolute path of a local folder; None for families that need none."""
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        path = Path(self.checkpoint or "")
        return path if path.is_absolute() else None


class ModelFamily(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.families`: creates a model and its tokenizer.

    A trained model is saved as a Hugging Face folder and loaded with the Auto classes, so a family
    only defines where training starts. After saving and loading, the tokenizer must encode and the
    model must predict as before.
    """

    needs_checkpoint: ClassVar[bool] = True
    """Whether a recipe must (True) or must not (False) give `checkpoint`."""
    needs_text: ClassVar[bool] = False
    """Whether the tokenizer is trained on the training task's text."""
    is_remote: ClassVar[bool] = False
    """Whether the model runs elsewhere; see `RemoteFamily`."""
    harmless_options: ClassVar[tuple[str, ...]] = ()
    """Names of options that change no result, such as addresses and time limits: other values make
    nothing out of date."""
    device: str = "auto"
    """Where models run: `auto`, or a name that `torch.device` accepts."""
    inference_dtype: Literal["auto"] | Dtype = "auto"
    """Type of the weights outside training; `auto` is bfloat16 on GPUs that support it."""
    spreads: bool = False
    """Whether `placed` spreads one model over several devices."""
    uses_teacher_tokenizer: bool = False
    """Whether a student of this family uses the teacher's tokenizer; `tokenizer` is then called
    for teachers only, and the methods below receive the teacher's."""

    @abstractmethod
    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        """Return a fast tokenizer whose offsets cover every character except white space.

        `text` contains the prompts and responses of the training task. Without an end-of-sequence
        token, responses are learned without an end mark.
        """

    @abstractmethod
    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return `model` on the meta device: parameters have the same names and shapes."""

    @abstractmethod
    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        """Return the model on the CPU: a causal decoder that ignores masked tokens on the right.

        Args:
            ref: the checkpoint.
            tokenizer: the tokenizer; the model's vocabulary must be at least as large.
            dtype: type of all weights.
            seed: initialises new weights, if any; the same seed gives the same weights.
        """

    def placed(
        self, ref: ModelRef, dtype: Dtype, device: torch.device, offload: Path
    ) -> PreTrainedModel | None:
        """Return a model where it runs outside training, or None, the default.

        With None, firstcli loads the model with `model` or `load_trained` and moves it to `device`.
        A family whose models cannot be moved, because they are quantised or spread over several
        devices, overrides this method. What it returns may have Accelerate's hooks.

        Args:
            ref: the checkpoint, or the folder of a model of this family that firstcli trained.
            dtype: type of the weights that are not quantised.
            device: the device that `device` names.
            offload: a folder for weights that fit into no memory; it may not exist yet, and is
                removed with the model.
        """
        return None

    def load_trained(self, folder: Path, dtype: Dtype) -> PreTrainedModel:
        """Return a model of this family that firstcli trained and saved in `folder`.

        Raises:
            UserError: the folder's weights do not match its configuration; names them.
        """
        import torch

        from firstcli.checkpoints.loading import load_complete

        return load_complete(folder, dtype=getattr(torch, dtype), local_files_only=True)
