"""How many questions of an evaluation also occur in what models are trained on."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from firstcli.data import splits
from firstcli.workspace.run import Run, once_per_run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def with_training(run: Run, evaluation: str) -> int:
    """Count the prompts of an evaluation that also occur in the training split."""
    return splits.overlap(_trained_prompts(run), run.evaluation_samples(evaluation))


def with_unlabelled(run: Run, evaluation: str) -> int:
    """Count the prompts of an evaluation that also occur among the unlabelled samples."""
    return splits.overlap(_unlabelled_prompts(run), run.evaluation_samples(evaluation))


def with_copies(run: Run, evaluation: str) -> int:
    """Count the prompts of an evaluation that also occur among the copies; 0 before they exist."""
    if not run.is_written("copies"):
        return 0
    return splits.overlap(_copied_prompts(run), run.evaluation_samples(evaluation))


@once_per_run
def _trained_prompts(run: Run) -> npt.NDArray[np.uint64]:
    """Return digests of all prompts of the training split."""
    return splits.prompt_digests(chain(run.training.train, run.training.validation))


@once_per_run
def _unlabelled_prompts(run: Run) -> npt.NDArray[np.uint64]:
    return splits.prompt_digests(run.training.unlabelled)


@once_per_run
def _copied_prompts(run: Run) -> npt.NDArray[np.uint64]:
    return splits.prompt_digests(run.copies)
