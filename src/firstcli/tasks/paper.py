"""The paper's data sets in the paper's prompts (Appendix A.2 of arXiv 2408.12168).

Each revision is the commit to which public evaluation code pins the data set, for example
lighteval's task tables for CommonsenseQA and OpenBookQA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from firstcli.api import DataPath, PluginOptions, Sample, Split, Task
from firstcli.tasks.hub import Source
from firstcli.tasks.instruction import with_responses
from firstcli.tasks.tables import TableRow, describe

TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)


class PaperOptions(PluginOptions):
    """The source of the data: the hub, or a local copy."""

    path: DataPath | None = Field(
        None,
        description="a local copy instead of the hub: the folder with the data set's official "
        "files, or one file that is used for every split",
    )
    revision: str | None = Field(
        None, min_length=1, description="a revision on the hub, instead of the pinned one"
    )

    @field_validator("revision")
    @classmethod
    def _refuse_besides_path(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision and info.data.get("path"):
            raise ValueError("has no effect beside `path`, which is read instead of the hub")
        return revision


class PaperTask(Task[PaperOptions]):
    """Reads the rows of a published data set; subclasses turn a row into a sample."""

    Options = PaperOptions
    source: ClassVar[Source]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have labels and exist."""
        return self.source.splits(self.options.path)

    def sources(self, split: str) -> Sequence[Path] | None:
        path = self.options.path
        return None if path is None else (self.source.file(split, path),)

    def load(self, split: str) -> Split:
        """Return the samples in the order of the data set."""
        rows = self.source.rows(split, self.options.path, self.options.revision)
        return Split(map(self.sample, rows))

    @abstractmethod
    def sample(self, row: TableRow) -> Sample:
        """Return the sample of a row in the official format or the hub's format."""


class CommonsenseQA(PaperTask):
    """CommonsenseQA; its test split has no labels, so its dev split is `test`."""

    source = Source(
        repo="tau/commonsense_qa",
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        config=None,
        hub_splits={"train": "train", "test": "validation"},
        files={"train": ("train_rand_split.jsonl",), "test": ("dev_rand_split.jsonl",)},
    )

    def sample(self, row: TableRow) -> Sample:
        return _lettered(row, ascii_lowercase)


class OpenBookQA(PaperTask):
    """OpenBookQA: the questions, without the book of facts."""

    source = Source(
        repo="allenai/openbookqa",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        config="main",
        hub_splits={"train": "train", "validation": "validation", "test": "test"},
        files={
            "train": ("train.jsonl", "Data/Main/train.jsonl"),
            "validation": ("dev.jsonl", "Data/Main/dev.jsonl"),
            "test": ("test.jsonl", "Data/Main/test.jsonl"),
        },
    )

    def sample(self, row: TableRow) -> Sample:
        return _lettered(row, ascii_uppercase)


class BoolQ(PaperTask):
    """BoolQ; its test split has no labels, so its dev split is `test`."""

    source = Source(
        repo="google/boolq",
        revision="35b264d03638db9f4ce671b711558bf7ff0f80d5",
        config=None,
        hub_splits={"train": "train", "test": "validation"},
        files={"train": ("train.jsonl",), "test": ("dev.jsonl",)},
    )

    def sample(self, row: TableRow) -> Sample:
        answer = row.value("answer")
        if not isinstance(answer, bool):
            raise row.mistake(f"column 'answer': found {describe(answer)}, expected true or false")
        question = row.filled("question").removesuffix("?")
        instruction = (
            f"Read the input passage and answer the question: {question}? "
            "Your answer should be Yes or No."
        )
        prompt = instructed(instruction, row.filled("passage"), TASK)
        return Sample.question(prompt, ("Yes", "No"), 0 if answer else 1, id=row.id(None))


class Alpaca(PaperTask):
    """Alpaca's 52 thousand instructions: one split, no candidates."""

    has_candidates = False
    source = Source(
        repo="tatsu-lab/alpaca",
        revision="dce01c9b08f87459cf36a430d809084718273017",
        config=None,
        hub_splits={"train": "train"},
        files={"train": ("alpaca_data.json", "alpaca.json")},
    )

    def load(self, split: str) -> Split:
        """Return the rows that have an output; a few have none."""
        return with_responses(super().load(split).samples, "empty output")

    def sample(self, row: TableRow) -> Sample:
        text = row.text("input") if "input" in row.values else ""
        preface = TASK_WITH_INPUT if text.strip() else TASK
        prompt = instructed(row.filled("instruction"), text, preface)
        return Sample(prompt=prompt, response=row.text("output"), id=row.id(None))


def instructed(instruction: str, text: str, preface: str) -> str:
    """Return Alpaca's prompt; BoolQ has an input (`text`) although its preface mentions none."""
    parts = [preface, f"### Instruction:\n{instruction}"]
    if text.strip():
        parts.append(f"### Input:\n{text}")
    return "\n\n".join([*parts, "### Response:\n"])


def _lettered(row: TableRow, letters: str) -> Sample:
    """Return a question whose choices have letters; the model answers with a letter."""
    stem, labelled = _stem_and_choices(row)
    labels = [label for label, _ in labelled]
    key = row.filled("answerKey")
    if key not in labels:
        raise row.mistake(f"answerKey: found '{key}', expected one of {', '.join(labels)}")
    listed = [f"({letter}) {text}\n" for letter, (_, text) in zip(letters, labelled, strict=False)]
    prompt = f"Q: {stem}\nAnswer Choices:\n{''.join(listed)}A: The answer is ("
    candidates = [f"{letter})." for letter in letters[: len(labels)]]
    return Sample.question(prompt, candidates, labels.index(key), id=row.id(None))


def _stem_and_choices(row: TableRow) -> tuple[str, list[tuple[str, str]]]:
    """Return the question and (label, text) of each choice.

    The official files contain `{"question": {"stem", "choices": [{"label", "text"}]}}`; the hub
    has the columns `question` or `question_stem`, and `choices` as `{"label": [...], "text":
    [...]}`.
    """
    nested = row.values.get("question")
    holder = TableRow(row.where, nested) if isinstance(nested, dict) else row
    names = [name for name in ("question_stem", "question") if name in holder.values]
    listed = [TableRow(row.where, choice) for choice in _choices(holder)]
    if not 2 <= len(listed) <= len(ascii_lowercase):
        raise row.mistake(f"found {len(listed)} choices, expected 2 to {len(ascii_lowercase)}")
    pairs = [(choice.filled("label"), choice.filled("text")) for choice in listed]
    return holder.filled(names[0] if names else "stem"), pairs


def _choices(row: TableRow) -> list[dict[str, Any]]:
    choices = row.value("choices")
    try:
        if isinstance(choices, dict):  # one list per field
            rows = zip(*choices.values(), strict=True)
            return [dict(zip(choices, values, strict=True)) for values in rows]
        return [{**choice} for choice in choices]
    except (TypeError, ValueError):
        raise row.mistake(
            f"column 'choices': found {describe(choices)}, expected a label and a text for each"
        ) from None
