"""The training data: cut into training and validation parts, and the rows without a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from firstcli.api import Sample
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened
from firstcli.recipe.references import TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import Unlabelled
from firstcli.workspace.sources import Sources
from firstcli.workspace.units import Part

TRAINING_TASK = "train.task"
"""The recipe's key of the training task, for messages."""
UNLABELLED_KEY = "train.unlabelled"
"""The recipe's key of unlabelled samples, for messages."""
UNLABELLED_ID = "unlabelled/"
"""Beginning of the ids of samples from `train.unlabelled.path`, whose file has its own ids."""


@dataclass(frozen=True, slots=True)
class TrainingSplit:
    """The training data: no model trains on `validation`, and only students on `unlabelled`."""

    train: Sequence[Sample]
    validation: Sequence[Sample]
    unlabelled: Sequence[Sample] = ()

    def part(self, part: Part) -> Sequence[Sample]:
        parts = {"validation": self.validation, "unlabelled": self.unlabelled}
        return parts.get(part, self.train)


def labelled_split(
    recipe: Recipe, ref: TaskRef, samples: Samples, sources: Sources
) -> TrainingSplit:
    """Cut the labelled samples of the training split into two parts.

    Args:
        recipe: the recipe.
        ref: the training task.
        samples: the training split.
        sources: reads the part that is held out, if the task has a split of its own for it.

    Raises:
        UserError: no sample has a label, or none is left to train on.
    """
    section = recipe.train
    labelled: Sequence[Sample] = samples
    if samples.unanswered.any():
        labelled = Selected(samples, np.flatnonzero(~samples.unanswered))
    if not labelled and recipe.knowledge.responses == "data":
        raise UserError(f"train.task: {_nothing_labelled(ref)}")
    if (own := ref.plugin.held_out_split) and section.validation:
        return TrainingSplit(labelled, sources.samples(ref, own, TRAINING_TASK, None))
    train, validation = splits.cut_validation(labelled, section.validation)
    if labelled and not train:
        raise UserError(
            f"train.validation: {section.validation} of {len(labelled)} rows leaves none to "
            "train on; lower it"
        )
    return TrainingSplit(train, validation)


def _nothing_labelled(ref: TaskRef) -> str:
    if ref.plugin.has_candidates:
        return (
            "no row of the training split has a label; label some: recalibrators are fitted on "
            "them, and a teacher is fine-tuned on them"
        )
    return (
        f"no row of the training split has a response{_response_columns(ref)}; give some, or let "
        "the teacher write them with `knowledge.responses: teacher`"
    )


def _response_columns(ref: TaskRef) -> str:
    """Name the option that says where responses are, if the task has it."""
    template = getattr(ref.options, "response", None)
    return f" (`options.response` is {template!r})" if template else ""


def unlabelled_samples(
    recipe: Recipe, ref: TaskRef, labelled: TrainingSplit, sources: Sources
) -> Sequence[Sample]:
    """Return the unlabelled samples: those of the training split, then those of the files.

    Left out are those whose prompt also has a label: it is learned with its label, or held out
    so that no model is trained on it.

    Args:
        recipe: the recipe.
        ref: the training task.
        labelled: the samples with a label.
        sources: reads the splits.

    Raises:
        UserError: a row is malformed, or the files and the split have an id in common.
    """
    section, limit = recipe.train.unlabelled or Unlabelled(), recipe.train.limit
    samples = sources.samples(ref, "train", TRAINING_TASK, limit)
    parts: list[Iterable[Sample]] = [Selected(samples, np.flatnonzero(samples.unanswered))]
    if section.path is not None and section.limit != 0:
        parts.append(_without_labels(sources, ref, section.path, section.limit))
    found = Samples(islice(chain(*parts), section.limit), sources.folder)
    if not found:
        return ()
    if not has_teacher_arm(recipe):
        sources.console.warn(
            f"{UNLABELLED_KEY}: {len(found)} rows without a label are not used, because no arm "
            "learns from a teacher"
        )
        return ()
    with_label = splits.prompt_digests(chain(labelled.train, labelled.validation))
    known = splits.among(found, with_label)
    if known.any():
        sources.console.warn(
            f"{UNLABELLED_KEY}: {known.sum()} of {len(found)} unlabelled rows are left out, "
            "because their prompts also occur with a label"
        )
    unlabelled = Selected(found, np.flatnonzero(~known))
    ids = {sample.id for sample in unlabelled if str(sample.id).startswith(UNLABELLED_ID)}
    if ids and (repeated := [s.id for s in samples if s.id in ids]):
        raise UserError(
            f"train.task: sample ids such as {shortened([str(id) for id in repeated], 3)} are "
            f"also given to rows of {UNLABELLED_KEY}.path; rename them"
        )
    return unlabelled


def _without_labels(
    sources: Sources, ref: TaskRef, path: Path | Sequence[Path], limit: int | None
) -> Iterator[Sample]:
    """Yield the samples of unlabelled files, with ids that the training split does not use."""
    where = f"{UNLABELLED_KEY}.path"
    for sample in sources.read(ref.build_unlabelled(path), ref.name, "train", where, limit):
        yield replace(
            sample, id=f"{UNLABELLED_ID}{sample.id}", response="", answer=None, truth=None, steps=()
        )


def validation_questions(recipe: Recipe, split: TrainingSplit) -> Sequence[Sample]:
    """Return the validation samples that have a right answer.

    Raises:
        UserError: there are none.
    """
    explained = recipe.train.task.explanations is not None
    questions = [
        sample
        for sample in split.validation
        if (sample.response if explained else sample.candidates and sample.answer is not None)
    ]
    if not questions:
        raise UserError(
            f"train.validation: {recipe.train.validation} of the training split leaves no "
            "question for metrics.target_accuracy and metrics.coverage; raise it"
        )
    return questions


def has_teacher_arm(recipe: Recipe) -> bool:
    """Return whether an arm learns from a teacher."""
    return any(arm.learn == "knowledge" for arm in recipe.arms.values())
