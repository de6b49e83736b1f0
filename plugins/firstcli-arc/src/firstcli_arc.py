"""Task `arc`: AI2 ARC, science questions with three to five choices (arXiv 1803.05457).

Q: Which property of a mineral can be seen by just looking at it?
Answer Choices:
(A) lustre
(B) mass
(C) weight
A: The answer is (|A).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from firstcli.api import DataPath, PluginOptions, Sample, Split, Task, UserError

HUB_NAME = "allenai/ai2_arc"
HUB_REVISION = "210d026faf9955653af8916fad021475a3f00453"  # results must not change with `main`
FILES = {"train": "Train", "validation": "Dev", "test": "Test"}


class ArcOptions(PluginOptions):
    """The set of questions and its location."""

    config: Literal["ARC-Challenge", "ARC-Easy"] = Field(
        "ARC-Challenge", description="the hard questions or the easy ones"
    )
    path: DataPath | None = Field(
        None,
        description="instead of the hub: the unpacked official archive, its folder of this "
        "config, or one .jsonl file, which is then used for every split",
    )


class Arc(Task[ArcOptions]):
    """Questions whose answer is the letter of a choice; all three splits have labels."""

    Options = ArcOptions

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(FILES)

    def load(self, split: str) -> Split:
        path = self.options.path
        rows = self._local(split, path) if path else self._hub(split)
        return Split([_sample(where, row) for where, row in rows])

    def sources(self, split: str) -> Sequence[Path]:
        return [self._file(split, self.options.path)] if self.options.path else []

    def _local(self, split: str, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield each row with its location, for messages."""
        file = self._file(split, path)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield where, json.loads(line.decode())
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON: {error}") from error

    def _file(self, split: str, path: Path) -> Path:
        if not path.is_dir():
            return path
        config = self.options.config
        name = f"{config}-{FILES[split]}.jsonl"
        return path / config / name if (path / config).is_dir() else path / name

    def _hub(self, split: str) -> Iterator[tuple[str, Any]]:
        from datasets import load_dataset  # takes seconds, so not while a recipe is loaded

        config = self.options.config
        try:
            rows = load_dataset(HUB_NAME, config, split=split, revision=HUB_REVISION)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data set '{HUB_NAME}' cannot be loaded from the hub: {error}; without a "
                "connection, give the unpacked official archive as the option `path`"
            ) from error
        for number, row in enumerate(rows, 1):
            yield f"{HUB_NAME} ({config}, {split}), row {number}", row


def _sample(where: str, row: Any) -> Sample:
    """Convert a row to a sample; rows are nested in the files and flat on the hub."""
    try:
        question = row["question"]
        nested = isinstance(question, Mapping)
        stem: str = question["stem"] if nested else question
        choices = question["choices"] if nested else _as_records(row["choices"])
        labels = [str(choice["label"]) for choice in choices]  # A to E; 1 to 5 in a few questions
        texts = [str(choice["text"]) for choice in choices]
        id, key = str(row["id"]), str(row["answerKey"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a question of ARC: {error!r}") from error
    if not 2 <= len(set(labels)) == len(labels) <= len(ascii_uppercase):
        raise UserError(
            f"{where}: choices: found the labels {labels}, expected 2 to 26, all different"
        )
    if key not in labels:
        raise UserError(f"{where}: answerKey: found '{key}', expected one of {', '.join(labels)}")
    letters = ascii_uppercase[: len(labels)]
    listed = "".join(f"({a}) {text}\n" for a, text in zip(letters, texts, strict=True))
    return Sample.question(
        prompt=f"Q: {stem}\nAnswer Choices:\n{listed}A: The answer is (",
        candidates=[f"{letter})." for letter in letters],
        answer=labels.index(key),
        id=id,
    )


def _as_records(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(choices["label"], choices["text"], strict=True)
    return [{"label": label, "text": text} for label, text in pairs]
