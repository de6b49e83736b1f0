"""The questions of shifted evaluations, and what they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstcli.api import Sample
from firstcli.data.samples import Samples
from firstcli.data.shifts import changed_share, shifted
from firstcli.errors import UserError
from firstcli.recipe.references import TaskRef
from firstcli.recipe.shift import Shift
from firstcli.runtime.console import Console
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.content import as_json


def shifted_questions(
    shift: Shift,
    evaluation: str,
    task: TaskRef,
    samples: Sequence[Sample],
    seed: int,
    folder: Path,
    console: Console,
) -> Sequence[Sample]:
    """Return the questions of an evaluation with changed prompts; warn if few of them change.

    Args:
        shift: how the prompts change.
        evaluation: the name of the evaluation without the shift, for messages.
        task: its task with adapted options.
        samples: its questions.
        seed: the seed of the run.
        folder: the run folder.
        console: prints the warning.

    Raises:
        UserError: the samples cannot be changed, or no prompt changes.
    """
    usage, where = task.build().usage(), f"evaluate '{evaluation}'.{shift.key}"
    try:
        augmenter = shift.augmenter.build()
        found = Samples(shifted(samples, usage, augmenter, _seed(shift, seed)), folder)
        share = changed_share(samples, found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if share < shift.least_changed:
        console.warn(f"{where}: only {share:.0%} of the prompts change")
    return found


def shifted_content(shift: Shift, task: TaskRef, samples: str, seed: int) -> str:
    """Return a digest of everything that shifted questions follow from.

    Args:
        shift: how the prompts change.
        task: the evaluation's task with adapted options.
        samples: a digest of its questions.
        seed: the seed of the run.
    """
    ref, usage = shift.augmenter, task.build().usage()
    depends_on = {
        "samples": samples,
        "augmenter": as_json([ref.name, ref.effective, ref.identity]),
        "usage": "" if usage is None else usage.model_dump_json(),
        "seed": _seed(shift, seed),
    }
    return fingerprint(depends_on)


def _seed(shift: Shift, seed: int) -> str:
    return f"{seed} {shift.label}"
