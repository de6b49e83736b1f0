"""Copies of training samples with other prompts, as augmenters make them.

A script makes the copies of a run with the samples of its training part:

    perturb = calls.augmenter("perturb", Perturb.Options())
    copies = copies_of(samples, task.usage(), [perturb], seed=1234)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
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


def copies_of(
    samples: Sequence[Sample],
    usage: TaskUsage | None,
    augmenters: Sequence[CheckedAugmenter],
    seed: int,
) -> Iterator[Sample]:
    """Yield all copies of all samples, those of one sample one after the other.

    A copy depends on the seed, its sample's id and number, the augmenters before it in the list,
    and the text of all samples, but not on their order.

    Args:
        samples: the training samples, which have ids.
        usage: how their task builds prompts; None: the whole prompt is free text.
        augmenters: what makes the copies.
        seed: draws all that is random.

    Raises:
        UserError: a sample is a conversation or has an id as copies have, or a copy is malformed.
    """

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
        if _COPY.match(id):
            raise UserError(f"train.augment: sample '{id}' is named as copies are; rename it")
        first = 0
        for augmenter in augmenters:
            for number in range(augmenter.copies):
                named = copy_id(id, first + number)
                copy = augmenter.copy(prompt, number, Random(f"{seed} {named}"))
                if copy is not None:
                    yield replace(copy, id=named)
            first += augmenter.copies
