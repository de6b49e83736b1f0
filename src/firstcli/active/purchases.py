"""Buying annotations: each once, kept as soon as it is bought, and turned into a sample."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.active.data import QuestionPool
from firstcli.active.folders import as_lines
from firstcli.api import JSON, Annotation, Sample
from firstcli.errors import UserError
from firstcli.recipe.references import AnnotatorRef
from firstcli.workspace.artifacts import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Buyer:
    """Buys annotations of one annotator from one teacher."""

    ref: AnnotatorRef
    teacher: str
    """What identifies the teacher."""
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    """Returns the teacher's tokenizer."""
    path: Path
    """The file to which every annotation is appended."""

    def key(self, question: Sample) -> str:
        """Return what an annotation depends on."""
        parts = {
            "annotator": " ".join((self.ref.name, self.ref.identity, self.ref.source)),
            "options": json.dumps(self.ref.effective, sort_keys=True),
            "teacher": "" if self.ref.plugin.buys_label else self.teacher,
            "question": json.dumps([question.id, question.prompt, question.candidates]),
        }
        return fingerprint(parts)[:24]

    def known(self) -> dict[str, Annotation]:
        """Return what has been bought so far, by key; a line that a kill cut off is ignored."""
        found: dict[str, Annotation] = {}
        try:
            lines = self.path.read_text("utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return found
        for line in lines:
            row = json.loads(line)
            found[row.pop("key")] = annotation_of(row)
        return found

    def buy(self, questions: Sequence[Sample]) -> list[Annotation]:
        """Return the annotations of some questions, in their order; none is bought twice."""
        known = self.known()
        for question in questions:
            if (key := self.key(question)) not in known:
                known[key] = self._annotated(question)
                self._keep(key, known[key])
        return [known[self.key(question)] for question in questions]

    def _annotated(self, question: Sample) -> Annotation:
        assert question.id is not None
        return replace(self.expected(question), id=question.id)

    def expected(self, question: Sample) -> Annotation:
        """Return an annotation with the tokens that it costs, as far as they are known before."""
        if self.ref.plugin.buys_label:
            return Annotation("")
        read = len(self.tokenizer()(question.prompt).input_ids)
        return Annotation("", tokens_read=read, tokens_written=1)

    def _keep(self, key: str, annotation: Annotation) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            _end_line(file.tell(), self.path)
            file.write(as_lines([{"key": key, **to_json(annotation)}]))
            file.flush()
            os.fsync(file.fileno())


def _end_line(size: int, path: Path) -> None:
    """Remove the beginning of a line that a kill has cut off."""
    if not size:
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def to_json(annotation: Annotation) -> dict[str, JSON]:
    """Return an annotation as JSON values."""
    values = asdict(annotation)
    distribution = annotation.distribution
    return {**values, "distribution": None if distribution is None else distribution.tolist()}


def annotation_of(row: Mapping[str, JSON]) -> Annotation:
    """Return the annotation that `to_json` described."""
    import numpy as np

    values = {field.name: row[field.name] for field in fields(Annotation) if field.name in row}
    if values.get("distribution") is not None:
        values["distribution"] = np.array(values["distribution"], np.float64)
    return Annotation(**{**values, "steps": tuple(values.get("steps", ()))})


def annotated_samples(
    pool: QuestionPool, ref: AnnotatorRef, annotations: Iterable[Annotation]
) -> list[Sample]:
    """Return what a student learns of annotations.

    Where only the teacher's distribution was bought, that is the question without a label.

    Raises:
        UserError: the data has no label to buy, or the answer is none of the candidates.
    """
    return [_annotated_sample(pool, ref, annotation) for annotation in annotations]


def _annotated_sample(pool: QuestionPool, ref: AnnotatorRef, annotation: Annotation) -> Sample:
    if ref.plugin.buys_label:
        pool.buy([annotation.id])
        sample = pool.label(annotation.id)
        if not sample.response:
            raise UserError(
                f"active.annotator: '{ref.name}' buys labels, but question '{annotation.id}' has "
                "none; leave such questions out of the pool, or choose another annotator"
            )
        return replace(sample, truth=None)
    return pool.question(annotation.id)
