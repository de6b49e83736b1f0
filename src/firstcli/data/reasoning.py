"""Samples that explain their answer: places of the steps, and the same sample with other steps.

What tasks need as well, such as `render`, is in `firstcli.api.explanations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firstcli.api import ExplanationForm, Sample
from firstcli.api.explanations import read_answer, render, same_answer, split_steps

__all__ = [
    "answer_sentences",
    "final_answer",
    "read_answer",
    "render",
    "same_answer",
    "split_steps",
    "step_spans",
    "with_answer",
    "with_steps",
]


def step_spans(response: str, steps: Sequence[str]) -> list[tuple[int, int]]:
    """Return the characters of each step in a response: its first, and the one after its last.

    Raises:
        ValueError: a step does not occur after the steps before it.
    """
    spans: list[tuple[int, int]] = []
    end = 0
    for number, step in enumerate(steps, 1):
        start = response.find(step, end)
        if start < 0 or not step:
            raise ValueError(f"step {number} does not occur after the steps before it")
        end = start + len(step)
        spans.append((start, end))
    return spans


def answer_sentences(sample: Sample, form: ExplanationForm) -> tuple[str, ...]:
    """Return the sentence with the answer of each candidate, or of the only response.

    A sample without candidates and without a response has none.

    Raises:
        ValueError: a response was not made of the sample's steps in this form.
    """
    prefix = form.prefix(sample.steps)
    responses = sample.candidates or ((sample.response,) if sample.response else ())
    for response in responses:
        if not response.startswith(prefix):
            raise ValueError(f"sample '{sample.id}' is not made of its steps in the task's form")
    return tuple(response[len(prefix) :] for response in responses)


def final_answer(sample: Sample, form: ExplanationForm) -> str | None:
    """Return the right answer of a sample; None if it has none.

    Raises:
        ValueError: the response was not made of the sample's steps in this form.
    """
    if not sample.response:
        return None
    return form.stated(answer_sentences(sample, form)[sample.answer or 0])


def with_steps(sample: Sample, steps: Sequence[str], form: ExplanationForm) -> Sample:
    """Return the sample with another explanation and the same answer or candidates.

    Raises:
        ValueError: the sample was not made of its steps in this form.
    """
    prefix = form.prefix(steps)
    responses = tuple(prefix + sentence for sentence in answer_sentences(sample, form))
    if sample.candidates:
        response = "" if sample.answer is None else responses[sample.answer]
        return replace(sample, response=response, candidates=responses, steps=tuple(steps))
    return replace(sample, response=responses[0] if responses else "", steps=tuple(steps))


def with_answer(
    sample: Sample, steps: Sequence[str], answer: str, form: ExplanationForm
) -> Sample | None:
    """Return the sample with an explanation and an answer; None if no candidate is that answer.

    Args:
        sample: a question; its own answer has no meaning.
        steps: the explanation.
        answer: the answer.
        form: how the task's responses are made.

    Raises:
        ValueError: the sample was not made of its steps in this form.
    """
    if not sample.candidates:
        return replace(sample, response=render(steps, answer, form), steps=tuple(steps))
    before, after = form.answer_format.split("{answer}")
    names = [
        sentence[len(before) : len(sentence) - len(after)]
        for sentence in answer_sentences(sample, form)
    ]
    chosen = next((i for i, name in enumerate(names) if same_answer(name, answer)), None)
    if chosen is None:
        return None
    explained = with_steps(replace(sample, answer=chosen, response=""), steps, form)
    return replace(explained, truth=None)
