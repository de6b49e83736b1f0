"""Copies of training samples with other prompts, as augmenters make them.

A script makes the copies of a run with the samples of its training part:

    perturb = calls.augmenter("perturb", Perturb.Options())
    copies = copies_of(samples, task.usage(), [perturb], seed=1234)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from firstcli.api import Sample, TaskUsage, TrainingPrompt
from firstcli.errors import UserError
from firstcli.plugins.calls import CheckedAugmenter
from firstcli.tasks.fields import training_prompt

_COPY = re.compile(r"copy\d+/")


def copy_id(sample: str, number: int) -> str:
    """Return the id of a copy.

    Args:
        sample: the id of the sample.
        number: the number of the copy, from 0, over all augmenters.
    """
    return f"copy{number + 1}/{sample}"


def sample_of(copy: str) -> str:
    """Return the id of the sample that a copy was made of."""
    return copy.partition("/")[2]


@dataclass(frozen=True, slots=True)
class WrittenText:
    """What the teacher wrote for a copy."""

    text: str
    finished: bool
    """Whether the teacher ended it itself."""


def copies_of(
    samples: Sequence[Sample],
    usage: TaskUsage | None,
    augmenters: Sequence[CheckedAugmenter],
    seed: int,
    written: Callable[[Sample], WrittenText | None] = lambda _: None,
) -> Iterator[Sample]:
    """Yield all copies of all samples, those of one sample one after the other.

    A copy depends on the seed, its sample's id and number, the augmenters before it in the list,
    and the text of all samples, but not on their order.

    Args:
        samples: the training samples, which have ids.
        usage: how their task builds prompts; None: the whole prompt is free text.
        augmenters: what makes the copies.
        seed: draws all that is random.
        written: returns what the teacher wrote after a request of `requests_of`, if it did.

    Raises:
        UserError: a sample is a conversation or has an id as copies have, or a copy is malformed.
    """
    for slot in _slots(samples, usage, augmenters):
        if slot.augmenter.writing is None:
            copy = slot.augmenter.copy(slot.prompt, slot.number, Random(f"{seed} {slot.id}"))
        else:
            request = slot.request
            text = None if request is None else written(request)
            if text is None:
                continue
            copy = slot.augmenter.written(
                slot.prompt, slot.number, text.text, finished=text.finished
            )
        if copy is not None:
            yield replace(copy, id=slot.id)


def unchanged(copies: Iterable[Sample], samples: Iterable[Sample]) -> int:
    """Count the copies whose prompt is that of their sample.

    Args:
        copies: those of one sample one after the other, as `copies_of` yields them.
        samples: the samples, in the order of the copies.
    """
    count, rest = 0, iter(samples)
    sample = next(rest, None)
    for copy in copies:
        while sample is not None and str(sample.id) != sample_of(str(copy.id)):
            sample = next(rest, None)
        count += sample is not None and copy.prompt == sample.prompt
    return count


def requests_of(
    samples: Sequence[Sample], usage: TaskUsage | None, augmenters: Sequence[CheckedAugmenter]
) -> Iterator[Sample]:
    """Yield what the teacher continues for copies, as prompts with the ids of the copies.

    Args:
        samples: the training samples, which have ids.
        usage: how their task builds prompts.
        augmenters: what makes the copies.

    Raises:
        UserError: as `copies_of`.
    """
    for slot in _slots(samples, usage, augmenters):
        if slot.augmenter.writing is not None and (request := slot.request) is not None:
            yield request


@dataclass(frozen=True, slots=True)
class _Slot:
    """A copy that is to be made."""

    prompt: TrainingPrompt
    augmenter: CheckedAugmenter
    number: int
    """The copy's number among those of its augmenter."""
    id: str

    @property
    def request(self) -> Sample | None:
        text = self.augmenter.request(self.prompt, self.number)
        return None if text is None else Sample(text, "", self.id)


def _slots(
    samples: Sequence[Sample], usage: TaskUsage | None, augmenters: Sequence[CheckedAugmenter]
) -> Iterator[_Slot]:
    """Let the augmenters read the prompts, then yield each copy that is to be made."""

    def prompts() -> Iterable[TrainingPrompt]:
        return (training_prompt(sample, usage) for sample in samples)

    for augmenter in augmenters:
        augmenter.read(prompts())
    for prompt in prompts():
        id = str(prompt.sample.id)
        if prompt.sample.messages:
            raise UserError(
                "train.augment: the samples are conversations, of which no copies are made; leave "
                "it out"
            )
        if prompt.sample.teacher_prompt is not None:
            raise UserError(
                "train.augment: the teacher reads other prompts than the student, of which no "
                "copies are made; leave it out"
            )
        if _COPY.match(id):
            raise UserError(f"train.augment: sample '{id}' is named as copies are; rename it")
        first = 0
        for augmenter in augmenters:
            for number in range(augmenter.copies):
                yield _Slot(prompt, augmenter, number, copy_id(id, first + number))
            first += augmenter.copies
