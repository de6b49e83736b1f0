"""The paper's data sets in the paper's prompts (Appendix A.2 of arXiv 2408.12168).

Each revision is the commit to which public evaluation code pins the data set, for example
lighteval's task tables for CommonsenseQA and OpenBookQA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from firstcli.api import (
    ChoiceForm,
    DataPaths,
    InputField,
    Label,
    PluginOptions,
    Sample,
    Split,
    Task,
    TaskUsage,
)
from firstcli.errors import UserError
from firstcli.tasks import layout
from firstcli.tasks.answers import answer_of
from firstcli.tasks.choices import Choices, in_cell
from firstcli.tasks.tables import TableRow, read_rows

TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)

_BOOLQ = "Read the input passage and answer the question: {}? Your answer should be Yes or No."


class PaperOptions(PluginOptions):
    """The source of the data: the hub, or a local copy."""

    path: DataPaths | None = Field(
        None,
        description="a local copy instead of the hub: the folder with the data set's official "
        "files, a clone or snapshot of the hub's folder, what `save_to_disk` wrote, or one file, "
        "a list of files or a glob, used for every split",
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
    repo: ClassVar[str]  # the data set's name on the hub
    pinned: ClassVar[str]  # the commit that is loaded unless the options name a different one
    config: ClassVar[str | None] = None
    hub_splits: ClassVar[Mapping[str, str]]  # firstcli's name of a split -> the hub's
    files: ClassVar[Mapping[str, tuple[str, ...]]]
    """Maps a split to possible file names, relative to a folder; the first that exists is used."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have labels and exist; a single file serves as any split."""
        return tuple(self._local_files() or self.hub_splits)

    def sources(self, split: str) -> layout.Files | None:
        path, files = self.options.path, self._local_files()
        if not path:
            return None
        if split not in files:
            raise UserError(f"{path}: the split '{split}' is missing: {self._names(split)}")
        return files[split]

    def load(self, split: str) -> Split:
        """Return the samples in the order of the data set."""
        notes: list[str] = []
        sources = self.sources(split)
        rows = read_rows(sources, notes) if sources else self._from_hub(split)
        return Split(map(self.sample, rows), notes=notes)

    @abstractmethod
    def sample(self, row: TableRow) -> Sample:
        """Return the sample of a row in the official format or the hub's format."""

    def _local_files(self) -> dict[str, layout.Files]:
        """Map each split to its local files; empty without the option `path`."""
        path = self.options.path
        if not path:
            return {}
        if not isinstance(path, Path) or not path.is_dir():
            return {split: layout.split_files(path, split) for split in self.hub_splits}
        return self._official_files(path) or self._hub_files(path)

    def _official_files(self, folder: Path) -> dict[str, layout.Files]:
        files: dict[str, layout.Files] = {}
        for split, names in self.files.items():
            if existing := [folder / name for name in names if (folder / name).is_file()]:
                files[split] = (existing[0],)
        return files

    def _hub_files(self, folder: Path) -> dict[str, layout.Files]:
        """Return the files of a folder with the hub's splits, in which `test` may be unlabelled."""
        subset = folder / (self.config or "")
        found = layout.folder_layout(subset if subset.is_dir() else folder)
        files = {ours: found[name] for ours, name in self.hub_splits.items() if name in found}
        if not files:
            expected = "; ".join(map(self._names, self.files))
            raise UserError(
                f"{folder}: none of the data set's files is in this folder: {expected}; or the "
                "folder of the data set on the hub"
            )
        return files

    def _names(self, split: str) -> str:
        return f"{split} is {' or '.join(self.files[split])}"

    def _from_hub(self, split: str) -> Iterator[TableRow]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        name, revision = self.hub_splits[split], self.options.revision or self.pinned
        try:
            data = load_dataset(self.repo, self.config, split=name, revision=revision)
        except (DatasetsError, OSError, ValueError) as error:
            raise UserError(
                f"data set '{self.repo}' at revision '{revision}' cannot be loaded from the hub: "
                f"{type(error).__name__}: {error}; without a connection, set the task's option "
                "`path` to the folder with the data set's official files"
            ) from error
        where = f"{self.repo} ({name})"
        return (TableRow(f"{where}, row {number}", values) for number, values in enumerate(data, 1))


class CommonsenseQA(PaperTask):
    """CommonsenseQA; its test split has no labels, so its dev split is `test`."""

    repo = "tau/commonsense_qa"
    pinned = "94630fe30dad47192a8546eb75f094926d47e155"
    hub_splits: ClassVar = {"train": "train", "test": "validation"}
    files: ClassVar = {"train": ("train_rand_split.jsonl",), "test": ("dev_rand_split.jsonl",)}

    def usage(self) -> TaskUsage:
        return _lettered_usage("lower")

    def sample(self, row: TableRow) -> Sample:
        return _lettered(row, ascii_lowercase)


class OpenBookQA(PaperTask):
    """OpenBookQA: the questions, without the book of facts."""

    repo = "allenai/openbookqa"
    pinned = "388097ea7776314e93a529163e0fea805b8a6454"
    config = "main"
    hub_splits: ClassVar = {"train": "train", "validation": "validation", "test": "test"}
    files: ClassVar = {
        "train": ("train.jsonl", "Data/Main/train.jsonl"),
        "validation": ("dev.jsonl", "Data/Main/dev.jsonl"),
        "test": ("test.jsonl", "Data/Main/test.jsonl"),
    }

    def usage(self) -> TaskUsage:
        return _lettered_usage("upper")

    def sample(self, row: TableRow) -> Sample:
        return _lettered(row, ascii_uppercase)


class BoolQ(PaperTask):
    """BoolQ; its test split has no labels, so its dev split is `test`."""

    repo = "google/boolq"
    pinned = "35b264d03638db9f4ce671b711558bf7ff0f80d5"
    hub_splits: ClassVar = {"train": "train", "test": "validation"}
    files: ClassVar = {"train": ("train.jsonl",), "test": ("dev.jsonl",)}

    def usage(self) -> TaskUsage:
        return TaskUsage(
            kind="classification",
            prompt=instructed(_BOOLQ.format("{question}"), "{passage}", TASK),
            inputs={
                "question": InputField(columns=("question",), without_suffix="?"),
                "passage": InputField(columns=("passage",)),
            },
            labels=(Label(name="Yes", response="Yes"), Label(name="No", response="No")),
        )

    def sample(self, row: TableRow) -> Sample:
        choices = Choices(("Yes", "No"))
        answer = answer_of(f"{row.where}: column 'answer'", row.value("answer"), choices)
        question = row.filled("question").removesuffix("?")
        prompt = instructed(_BOOLQ.format(question), row.filled("passage"), TASK)
        correct = answer.correct(["boolean"])
        return Sample.question(prompt, choices.texts, correct, id=row.id(None))


class Alpaca(PaperTask):
    """Alpaca's 52 thousand instructions: one split, no candidates."""

    has_candidates = False
    repo = "tatsu-lab/alpaca"
    pinned = "dce01c9b08f87459cf36a430d809084718273017"
    hub_splits: ClassVar = {"train": "train"}
    files: ClassVar = {"train": ("alpaca_data.json", "alpaca.json")}

    def usage(self) -> TaskUsage:
        return TaskUsage(
            kind="instruction",
            prompt=instructed("{instruction}", "{input}", TASK_WITH_INPUT),
            if_blank={"input": instructed("{instruction}", "", TASK)},
            inputs={
                "instruction": InputField(columns=("instruction",)),
                "input": InputField(columns=("input",), required="no"),
            },
        )

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


def _lettered_usage(letters: Literal["upper", "lower"]) -> TaskUsage:
    """Return how `_lettered` makes a question, from each format of its rows."""
    return TaskUsage(
        kind="multiple-choice",
        prompt="Q: {question}\nAnswer Choices:\n{choices}\nA: The answer is (",
        inputs={"question": InputField(columns=("question.stem", "question_stem", "question"))},
        choices=ChoiceForm(
            columns=("question.choices", "choices"),
            strip=False,
            line="({letter}) {text}",
            letters=letters,
            response="{answer}).",
        ),
    )


def _lettered(row: TableRow, letters: str) -> Sample:
    """Return a question whose choices have letters; the model answers with a letter.

    The official files contain `{"question": {"stem", "choices": [{"label", "text"}]}}`; the hub
    has the columns `question` or `question_stem`, and `choices` as `{"label": [...], "text":
    [...]}`.
    """
    nested = row.values.get("question")
    holder = TableRow(row.where, nested) if isinstance(nested, dict) else row
    stem = next((key for key in ("question_stem", "question") if key in holder.values), "stem")
    choices = in_cell(holder, "choices")
    if not choices.labels:
        raise row.mistake("column 'choices': expected a label and a text for each choice")
    answer = answer_of(f"{row.where}: column 'answerKey'", row.value("answerKey"), choices)
    lettered = zip(letters, choices.texts, strict=False)
    lines = [f"({letter}) {text}\n" for letter, text in lettered]
    prompt = f"Q: {holder.filled(stem)}\nAnswer Choices:\n{''.join(lines)}A: The answer is ("
    candidates = [f"{letter})." for letter in letters[: len(choices.texts)]]
    return Sample.question(prompt, candidates, answer.correct(["label"]), id=row.id(None))
