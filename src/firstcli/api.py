"""What plugin authors import: samples, tasks, model families, recalibrators and their options.

Nothing here imports torch or transformers, so a recipe that names a plugin loads quickly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    FloatArray = npt.NDArray[np.float64]
    BoolArray = npt.NDArray[np.bool_]

JSON = Any  # a value that json.dumps takes; spelt out it would need recursive types


class PluginOptions(BaseModel):
    """The options of a plugin, as `options:` in a recipe.

    Give every field a `Field(description=...)`. Unknown keys are refused and values are not
    coerced: `epochs: yes` is a mistake, not 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourcedStr(str):
    """A string from a recipe that remembers the folder its relative paths start from."""

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
"""A path option: relative to the recipe that says it, or to the current folder in `--set`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a task: a prompt and the response to learn, or to choose among candidates.

    `prompt` ends exactly where the response begins; a leading space belongs to the response.
    """

    prompt: str
    response: str
    id: str | None = None
    """The data's own id; None lets firstcli derive one from prompt and response."""
    candidates: tuple[str, ...] = ()
    """The complete responses to choose among; empty for instruction tasks."""
    answer: int | None = None
    """Index of the right candidate; None with candidates says that none of them is right."""
    truth: tuple[float, ...] | None = None
    """The true probability of every candidate, where it is known."""

    @classmethod
    def question(
        cls,
        prompt: str,
        candidates: Sequence[str],
        answer: int | None,
        *,
        id: str | None = None,
        truth: Sequence[float] | None = None,
    ) -> Sample:
        """Build the sample of a question task, whose response is the right candidate.

        Where no candidate is right, `answer` is None and the response is empty: such a question
        can only be evaluated, never learned from.
        """
        return cls(
            prompt=prompt,
            response="" if answer is None else candidates[answer],
            id=id,
            candidates=tuple(candidates),
            answer=answer,
            truth=None if truth is None else tuple(truth),
        )


@dataclass(frozen=True, slots=True)
class Split:
    """The samples of one split, and how many rows were left out, by reason."""

    samples: Iterable[Sample]
    """Taken once, in order: a list, or a generator where a split may be larger than memory."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Read after the last sample was taken, so that a generator may count as it goes."""


OptionsT = TypeVar("OptionsT", bound=PluginOptions)


class Task(ABC, Generic[OptionsT]):
    """A plugin of the group `firstcli.tasks`: samples of each split."""

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    has_candidates: ClassVar[bool] = True
    """Whether samples carry candidates, so that models can be evaluated on them."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that this task, with these options, can load."""

    def sources(self, split: str) -> Sequence[Path] | None:
        """Return the local files that a split is read from.

        An empty sequence means that the options alone determine the samples; None means neither:
        the split is then read on every command.
        """
        return None

    @abstractmethod
    def load(self, split: str) -> Split:
        """Return the samples of one of `splits`, in a fixed order.

        An OSError, such as a lost connection, may pass: firstcli says after how many rows it came,
        and uses none of them.

        Raises:
            UserError: a file is missing or a row is malformed; names file, line and key. It may
                also come while the samples are taken.
        """


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model: the checkpoint as the recipe gives it."""

    checkpoint: str | None
    """A hub id or the absolute path of a local folder; None for families that need none."""
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        path = Path(self.checkpoint or "")
        return path if path.is_absolute() else None


class ModelFamily(ABC, Generic[OptionsT]):
    """A plugin of the group `firstcli.families`: how to get a model and its tokenizer.

    A trained model is saved as a Hugging Face folder and loaded again by the Auto classes, so a
    family only says where training starts.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    needs_checkpoint: ClassVar[bool] = True
    """Whether a recipe must (True) or must not (False) give `checkpoint`."""
    needs_text: ClassVar[bool] = False
    """Whether the tokenizer is made from the training task's text."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        """Return the tokenizer; `text` holds the training task's prompts and responses."""

    @abstractmethod
    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return the architecture with its weights on the meta device, for counting parameters."""

    @abstractmethod
    def model(
        self,
        ref: ModelRef,
        tokenizer: PreTrainedTokenizerBase,
        dtype: Literal["float32", "bfloat16", "float16"],
        seed: int,
    ) -> PreTrainedModel:
        """Return the model on the CPU; `seed` draws new weights, where there are any."""

    def load_trained(
        self, folder: Path, dtype: Literal["float32", "bfloat16", "float16"]
    ) -> PreTrainedModel:
        """Return a model of this family that firstcli trained and saved in `folder`."""
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )

    @property
    def device(self) -> str:
        """Where models run: `auto`, or a name that torch.device takes."""
        return "auto"

    @property
    def inference_dtype(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """The weights' type outside training; `auto`: bfloat16 on a GPU that has it."""
        return "auto"


class Recalibrator(ABC, Generic[OptionsT]):
    """A plugin of the group `firstcli.recalibrators`: better probabilities for the teacher's top k.

    Arrays are float64, a row a position, columns from the most to the least likely token.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    order_preserving: ClassVar[bool] = True
    """Whether `transform` never changes the order of a row's probabilities."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must run before `transform`, with these options."""
        return False

    def fit(self, topk: FloatArray, is_label: BoolArray, mass: FloatArray) -> None:
        """Learn from the validation part.

        Args:
            topk: teacher's probabilities, (N, k), from the softmax over the whole vocabulary.
            is_label: which of the k tokens is the true one, (N, k); a row is all false where the
                true token lies outside the k.
            mass: total probability that is taught to the k tokens, (N,): `topk.sum(1)` with
                `mass: teacher`, ones with `mass: one`.
        """

    @abstractmethod
    def transform(self, topk: FloatArray) -> FloatArray:
        """Return a distribution over the same k tokens, (N, k), whose rows sum to 1."""

    def state(self) -> dict[str, JSON]:
        """Return what `fit` learned as JSON; empty for a recalibrator that learns nothing."""
        return {}

    def restore(self, state: Mapping[str, JSON]) -> None:
        """Take back what `state` returned."""
