"""Annotations as data: the questions that are annotated, and the lines of a file of annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from firstcli.api import Annotation, ExplanationForm, Sample, ToAnnotate
from firstcli.data.reasoning import answer_sentences, final_answer, with_steps
from firstcli.errors import UserError

_FIELD = "{answer}"


def question_of(sample: Sample, form: ExplanationForm | None) -> Sample:
    """Return a sample without what its label says: answer, response and explanation.

    Args:
        sample: a sample, with or without a label.
        form: how responses are made of steps and answer; None if the samples have no steps.
    """
    if form is not None and sample.candidates:  # which contain the steps
        sample = with_steps(sample, (), form)
    return replace(sample, response="", answer=None, truth=None, steps=())


def choices_of(sample: Sample, form: ExplanationForm | None) -> tuple[str, ...]:
    """Return the answers that a sample's candidates give, in their order.

    Args:
        sample: a sample, with or without candidates.
        form: as for `question_of`.
    """
    if form is None:
        return tuple(candidate.strip() for candidate in sample.candidates)
    if not sample.candidates:
        return ()
    before, after = form.answer_format.split(_FIELD)
    sentences = answer_sentences(sample, form)
    return tuple(sentence[len(before) : len(sentence) - len(after)] for sentence in sentences)


def to_annotate(
    sample: Sample, form: ExplanationForm | None, explanation: Sequence[str] = (), answer: str = ""
) -> ToAnnotate:
    """Return a question without its label, and what a student says about it.

    Args:
        sample: the question.
        form: as for `question_of`.
        explanation: the student's steps.
        answer: the student's answer.
    """
    question = question_of(sample, form)
    steps = tuple(filter(None, (" ".join(step.split()) for step in explanation)))
    return ToAnnotate(question, steps, answer, choices_of(question, form))


def with_label(item: ToAnnotate, labelled: Sample, form: ExplanationForm | None) -> ToAnnotate:
    """Return a question whose label was bought.

    Args:
        item: the question.
        labelled: the same sample with its label.
        form: as for `question_of`.
    """
    if form is not None:
        right = final_answer(labelled, form)
    elif labelled.candidates:
        right = None if labelled.answer is None else item.choices[labelled.answer]
    else:
        right = labelled.response.strip() or None
    return replace(item, sample=labelled, right_answer=right)


def annotation_lines(annotations: Iterable[Annotation]) -> str:
    """Return a file's text with one annotation per line, as JSON."""
    return "".join(json.dumps(_as_json(each), ensure_ascii=False) + "\n" for each in annotations)


def _as_json(annotation: Annotation) -> dict[str, object]:
    values = asdict(replace(annotation, distribution=None))
    if annotation.distribution is not None:
        values["distribution"] = annotation.distribution.tolist()
    return values


def read_annotations(path: Path) -> Iterator[Annotation]:
    """Yield the annotations of a file.

    Raises:
        UserError: a line is no annotation.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _from_json(line)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: found no annotation of firstcli; delete the file, and "
                    "run the command again"
                ) from error


def _from_json(line: str) -> Annotation:
    values = json.loads(line)
    if (distribution := values["distribution"]) is not None:
        values["distribution"] = np.array(distribution, np.float64)
    return Annotation(**{**values, "steps": tuple(values["steps"])})
