"""Samples with other prompts: misspelt, in another case, without some words or in other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random

from firstcli.api import Sample, TaskUsage
from firstcli.errors import UserError
from firstcli.plugins.calls import CheckedAugmenter
from firstcli.tasks.fields import training_prompt


def shifted(
    samples: Sequence[Sample], usage: TaskUsage | None, augmenter: CheckedAugmenter, seed: str
) -> Iterator[Sample]:
    """Yield the samples in their order and with their ids, each with its changed prompt.

    A prompt depends on the seed, the sample and its id, and not on the other samples. A sample
    without free text stays as it is.

    Args:
        samples: samples of a task, which have ids.
        usage: how the task builds prompts; None: the whole prompt is free text.
        augmenter: makes one copy of each sample without what it reads of the others.
        seed: draws all that is random.

    Raises:
        UserError: the samples are conversations, or none has free text.
    """
    if any(sample.messages for sample in samples):
        raise UserError("the samples are conversations, whose texts are not changed; leave it out")
    if any(sample.teacher_prompt is not None for sample in samples):
        raise UserError(
            "the teacher reads other prompts than the student, which are not changed; leave it out"
        )
    found = False
    for sample in samples:
        prompt = training_prompt(sample, usage)
        found = found or bool(prompt.fields)
        copy = augmenter.copy(prompt, 0, Random(f"{seed} {sample.id}")) if prompt.fields else None
        yield sample if copy is None else replace(copy, id=sample.id)
    if not found:
        raise UserError(
            "none of the prompts contains the task's template, so their free text is unknown and "
            "nothing can be changed; leave it out"
        )


def changed_share(samples: Iterable[Sample], others: Iterable[Sample]) -> float:
    """Return the share of samples whose prompts differ from those of others in the same order.

    Raises:
        UserError: none does, which would look like a model that no change disturbs.
    """
    differ = [one.prompt != other.prompt for one, other in zip(samples, others, strict=True)]
    if not any(differ):
        raise UserError(
            f"none of the {len(differ)} prompts changes (words are what white space separates, "
            "some scripts have no case, and another wording must differ); leave it out"
        )
    return sum(differ) / len(differ)
