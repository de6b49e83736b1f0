"""What every sample of a task must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from firstcli.api import ChatMessage, ChatRole, Sample
from firstcli.errors import UserError

MAX_CANDIDATES = 1000
ROLES = get_args(ChatRole)


def checked_samples(samples: Iterable[object], where: str) -> Iterator[Sample]:
    """Pass samples on.

    Raises:
        UserError: one is malformed; names it after `where`.
    """
    grouped: bool | None = None
    talks: bool | None = None
    valid: tuple[str, ...] | None = None  # candidates that many samples may share
    for number, sample in enumerate(samples):
        problem = sample_problem(sample, valid)
        if isinstance(sample, Sample) and not problem:
            grouped = sample.group is not None if grouped is None else grouped
            if grouped != (sample.group is not None):
                problem = f"{'has no' if grouped else 'has a'} group, unlike the first sample"
            talks = bool(sample.messages) if talks is None else talks
            if talks != bool(sample.messages):
                problem = f"{'is no' if talks else 'is a'} conversation, unlike the first sample"
        if problem:
            raise UserError(f"{where}, {sample_name(sample, number)}: {problem}")
        assert isinstance(sample, Sample)
        valid = sample.candidates
        yield sample


def sample_name(sample: object, number: int) -> str:
    """Return how messages call a sample: by its id, or by its number from 0."""
    id = sample.id if isinstance(sample, Sample) else None
    return f"sample number {number}" if id is None else f"sample '{id}'"


def sample_problem(sample: object, valid: tuple[str, ...] | None = None) -> str | None:
    """Say what is wrong with a sample, with or without candidates; None if nothing is.

    Args:
        sample: what a task returned.
        valid: candidates that have been checked; the same tuple is not checked again.
    """
    if not isinstance(sample, Sample):
        return f"found a {type(sample).__name__}, expected a firstcli.api.Sample"
    for key in ("prompt", "response"):
        if not isinstance(value := getattr(sample, key), str):
            return f"the {key} is a {type(value).__name__}, expected text"
    if not (sample.id is None or isinstance(sample.id, str)):
        return f"the id is a {type(sample.id).__name__}, expected text or None"
    if not (sample.group is None or (isinstance(sample.group, str) and sample.group.strip())):
        return f"the group is {sample.group!r}, expected text or None"
    if not sample.prompt.strip():
        return "the prompt is empty"
    other = sample.teacher_prompt
    if other is not None and not (isinstance(other, str) and other.strip()):
        return f"the teacher_prompt is {other!r}, expected text or None"
    if sample.messages or sample.supervised:
        return _conversation_problem(sample)
    if sample.candidates:
        problem = None if sample.candidates is valid else _candidates_problem(sample.candidates)
        return problem or _answer_problem(sample) or _steps_problem(sample)
    if sample.answer is not None or sample.truth is not None:
        return "has an answer or a truth, but no candidates"
    return _steps_problem(sample)


def _steps_problem(sample: Sample) -> str | None:
    steps = sample.steps
    if not isinstance(steps, tuple) or not all(isinstance(step, str) for step in steps):
        return "the steps are not a tuple of texts"
    if not all(step.strip() for step in steps):
        return "a step is empty"
    for text in sample.candidates or (sample.response,):
        end = 0
        for number, step in enumerate(steps, 1):
            start = text.find(step, end)
            if start < 0:
                return f"step {number} is not in the response or a candidate after earlier steps"
            end = start + len(step)
    return None


def _conversation_problem(sample: Sample) -> str | None:
    messages, supervised = sample.messages, sample.supervised
    if not isinstance(messages, tuple) or not all(isinstance(one, ChatMessage) for one in messages):
        return "the messages are not a tuple of firstcli.api.ChatMessage"
    for number, message in enumerate(messages):
        if message.role not in ROLES or not isinstance(message.content, str):
            return f"message {number} is {message!r}, expected text by {', '.join(ROLES)}"
    learned = [i for i, message in enumerate(messages) if i and message.role == "assistant"]
    if not supervised or sorted({*supervised} & {*learned}) != list(supervised):
        return f"supervised is {supervised!r}, expected indices of the assistant's messages"
    if sample != Sample.conversation(messages, supervised, id=sample.id):
        return "has more than a conversation; build it with Sample.conversation"
    return None


def _candidates_problem(candidates: object) -> str | None:
    if not isinstance(candidates, tuple) or not all(isinstance(text, str) for text in candidates):
        return "the candidates are not a tuple of texts"
    count = len(candidates)
    if not 2 <= count <= MAX_CANDIDATES:
        return f"has {count} candidates, expected 2 to {MAX_CANDIDATES:,}"
    if len(set(candidates)) < count:
        return "two candidates are the same"
    return None if all(candidates) else "a candidate is empty"


def _answer_problem(sample: Sample) -> str | None:
    candidates, answer, count = sample.candidates, sample.answer, len(sample.candidates)
    if answer is None:
        unused = not sample.response and sample.truth is None
        return None if unused else "has no right answer, but has a response or a truth"
    if type(answer) is not int or not 0 <= answer < count:
        return f"answer is {answer!r}, expected 0 to {count - 1} as an int"
    if sample.response != candidates[answer]:
        return "the response is not the right candidate"
    return None if sample.truth is None else _truth_problem(sample.truth, count)


def _truth_problem(truth: tuple[float, ...], count: int) -> str | None:
    if len(truth) != count:
        return "truth does not have one number per candidate"
    if min(truth) < 0:
        return "a true probability is negative"
    if not abs(sum(truth) - 1) <= 1e-9:  # NaN, too
        return "truth does not sum to 1"
    return None


def copy_problem(copy: object, sample: Sample, *, by_letter: bool = False) -> str | None:
    """Say what is wrong with an augmenter's copy of a sample; None if nothing is.

    Where candidates are letters, choices may change places in the prompt, so that a different
    letter is right: then the answer and the truth move together, and everything else stays.

    Args:
        copy: what the augmenter returned.
        sample: the sample.
        by_letter: whether the candidates are letters that stand for choices of the prompt.
    """
    if problem := sample_problem(copy, sample.candidates):
        return f"is malformed: {problem}"
    assert isinstance(copy, Sample)
    for key in ("candidates", "group", "messages", "supervised", "steps"):
        if getattr(copy, key) != getattr(sample, key):
            return f"has changed `{key}`"
    if (copy.answer is None) != (sample.answer is None):
        return "has changed whether there is an answer"
    if not by_letter:
        keys = ("response", "answer", "truth")
        changed = [key for key in keys if getattr(copy, key) != getattr(sample, key)]
        return f"has changed `{changed[0]}`" if changed else None
    if sorted(copy.truth or ()) != sorted(sample.truth or ()):
        return "has changed `truth` other than in its order"
    have_both = all(each.truth and each.answer is not None for each in (copy, sample))
    if have_both and _true_share(copy) != _true_share(sample):
        return "has moved `truth` and `answer` to different letters"
    return None


def _true_share(sample: Sample) -> float:
    """Return the true probability of a sample's right answer."""
    assert sample.truth and sample.answer is not None
    return sample.truth[sample.answer]
