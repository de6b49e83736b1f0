"""The copies of a run's training samples, and what they follow from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from firstcli.api import Sample
from firstcli.data import splits
from firstcli.data.copies import WrittenText, copies_of, requests_of, unchanged
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.errors import UserError
from firstcli.plugins.calls import CheckedAugmenter
from firstcli.recipe.references import TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.responses import FILE_NAME, read, request_digest
from firstcli.workspace.training_split import TrainingSplit
from firstcli.workspace.units import REWORDINGS


def training_copies(
    recipe: Recipe, task: TaskRef, training: TrainingSplit, folder: Path
) -> Sequence[Sample]:
    """Make the copies of the training samples; none if nothing learns them.

    Left out are those whose prompt is also held out, so that no model is trained on it.

    Args:
        recipe: the recipe.
        task: the training task with adapted options.
        training: the training data.
        folder: the run folder, with what the teacher has written for copies.

    Raises:
        UserError: there is no copy.
    """
    if recipe.augmentation is None:
        return ()
    if not training.train:
        raise UserError(
            "train.augment: no row of the training split has a response, so there is nothing to "
            "make copies of; leave it out"
        )
    texts = read(folder / REWORDINGS / FILE_NAME)

    def written(request: Sample) -> WrittenText | None:
        response = texts.get(request_digest(request))
        return None if response is None else WrittenText(response.text, response.finished)

    usage = task.build().usage()
    made = copies_of(training.train, usage, _augmenters(recipe), recipe.seed, written)
    copies = Samples(made, folder)
    held_out = splits.among(copies, splits.prompt_digests(training.validation))
    if not copies or held_out.all():
        raise UserError(
            "train.augment: the augmenters make no copy of any training sample; leave it out, or "
            "give others"
        )
    return Selected(copies, np.flatnonzero(~held_out))


def unchanged_copies(copies: Sequence[Sample], training: TrainingSplit) -> int:
    """Count the copies that are equal to their samples.

    Raises:
        UserError: all of them are.
    """
    count = unchanged(copies, training.train)
    if count and count == len(copies):
        raise UserError(
            "train.augment: every copy is equal to its sample, as for texts without spaces, whose "
            "words are unknown; leave it out, or give other augmenters"
        )
    return count


def rewording_requests(
    recipe: Recipe, task: TaskRef, training: TrainingSplit, folder: Path
) -> Sequence[Sample]:
    """Return what the teacher continues for copies: prompts with the ids of the copies.

    Args:
        recipe: the recipe.
        task: the training task with adapted options.
        training: the training data.
        folder: the run folder.
    """
    usage = task.build().usage()
    return Samples(requests_of(training.train, usage, _augmenters(recipe)), folder)


def copies_content(recipe: Recipe, task: TaskRef, parts: Mapping[str, str], rewordings: str) -> str:
    """Return a digest of everything that the copies follow from, so that they need not be made.

    Args:
        recipe: the recipe.
        task: the training task with adapted options.
        parts: digests of the training data, by part.
        rewordings: digest of what the teacher has written for copies.
    """
    if (section := recipe.augmentation) is None:
        return ""
    makers = [[ref.name, ref.effective, ref.identity, ref.source] for ref in section.augmenters]
    usage = task.build().usage()
    depends_on = {
        "augmenters": json.dumps(makers, sort_keys=True),
        "usage": "" if usage is None else usage.model_dump_json(),
        "seed": str(recipe.seed),
        "rewordings": rewordings,
        **{part: parts[part] for part in ("train", "validation")},
    }
    return fingerprint(depends_on)


def _augmenters(recipe: Recipe) -> list[CheckedAugmenter]:
    section = recipe.augmentation
    return [ref.build() for ref in section.augmenters] if section else []
