"""`firstcli.json`: what a student's folder says about its use, besides weights and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from firstcli.api import JSON, Dtype, TaskUsage
from firstcli.api.usage import UsageForm
from firstcli.errors import UserError

FORMAT = 2
"""Newest format of the file. Raise it if an earlier firstcli would misunderstand the file; a new
field that may be ignored needs no new format."""
WITHOUT_CHAT = 1
"""Format of a file without `chat`, which earlier versions read correctly."""
FILE = "firstcli.json"


class StoredRecalibrator(UsageForm):
    """A post-hoc recalibrator with its fitted state."""

    name: str
    options: dict[str, JSON]
    state: dict[str, JSON]
    temperature: float | None = None
    """T, if the recalibrator divides logits by one temperature (`logit-temperature`)."""


class ValidationAnswers(UsageForm):
    """The student's answers to the validation part, from which thresholds are chosen."""

    confidence: tuple[float, ...]
    """The confidence that `first predict` shows: among the candidates."""
    correct: tuple[bool, ...]


class AnswerThreshold(UsageForm):
    """The lowest confidence whose answers reach an accuracy, chosen on the validation part."""

    target_accuracy: float
    threshold: float | None
    """The confidence from which the student answers; None if no threshold reaches the target."""


class StoredEstimate(UsageForm):
    """The value of a metric and its 95 % interval."""

    value: float
    low: float
    high: float


class EvaluationNumbers(UsageForm):
    """What one evaluation measured of the student."""

    questions: int
    accuracy: StoredEstimate | None = None
    ece: StoredEstimate | None = None
    trust: StoredEstimate | None = None


class FoldedTemperature(UsageForm):
    """A temperature that is part of the weights: their logits come out divided by it."""

    temperature: float


class Usage(TaskUsage):
    """The content of `firstcli.json`."""

    format: int = WITHOUT_CHAT
    firstcli: str
    """The version of firstcli that wrote the file."""
    run: str
    """Name of the recipe."""
    arm: str
    """The arm that trained the student, or `teacher`."""
    seed: int | None = None
    """The seed that trained it, if the recipe has several."""
    task: str
    """The task that it was trained on."""
    chat: bool = False
    """Whether prompts are rendered with the chat template of the folder's tokenizer."""
    system: str | None = None
    """The text of the chat's system message, if it has one."""
    end: str | None = None
    """The token that ends a response; None if the student does not learn an end."""
    drop_doubled_bos: bool = False
    """Whether a token that the tokenizer puts in front of every text is left out where a prompt
    begins with it."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Type of the weights at inference, as in the recipe."""
    confidence: Literal["candidates", "full"] = "candidates"
    """The confidence that `numbers` are about."""
    posthoc: StoredRecalibrator | None = None
    """The recalibrator that is applied to the candidates' probabilities, if one was fitted."""
    folded: FoldedTemperature | None = None
    """The temperature that `first export` has folded into the weights, if it has."""
    validation: ValidationAnswers | None = None
    """The answers with `posthoc`, if there is one."""
    raw_validation: ValidationAnswers | None = None
    """The answers without `posthoc`; None if there is none."""
    thresholds: tuple[AnswerThreshold, ...] = ()
    numbers: dict[str, EvaluationNumbers] = Field(default_factory=dict)
    """By evaluation: of the answers with `posthoc`, if there is one."""
    raw_numbers: dict[str, EvaluationNumbers] = Field(default_factory=dict)
    """By evaluation: of the answers without `posthoc`; empty if there is none."""
    source: str = ""
    """Digest of everything that the file was made from."""

    @property
    def title(self) -> str:
        """The model's name for people: `first@1 + T`."""
        seed = "" if self.seed is None else f"@{self.seed}"
        return f"{self.arm}{seed}{' + T' if self.posthoc or self.folded else ''}"


def write_usage(usage: Usage) -> str:
    """Return the content of the file."""
    content = usage.model_dump(mode="json", exclude_defaults=True)
    content.pop("format", None)
    format = FORMAT if usage.chat else WITHOUT_CHAT
    return json.dumps({"format": format, **content}, indent=1, ensure_ascii=False) + "\n"


def read_usage(folder: Path) -> Usage:
    """Read the file in a student's folder.

    Raises:
        UserError: the folder or the file is missing or damaged, or a newer firstcli wrote it.
    """
    path = folder / FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        format = int(content["format"])
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no {FILE}, which says how a student is used; if an earlier firstcli "
            "trained it, run `first eval RECIPE` with this version, which writes the file and "
            "repeats no training"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {_REWRITE}") from error
    if format > FORMAT:
        raise UserError(
            f"{path}: written by a newer firstcli (format {format}, this version reads up to "
            f"{FORMAT}); upgrade firstcli"
        )
    try:
        return Usage.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place or 'content'}: {first['msg']}; {_REWRITE}") from error


_REWRITE = f"delete it and run `first eval RECIPE`, which writes {FILE} again"
