"""Load a student from its folder alone, and let it answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from firstcli.api import Dtype
from firstcli.errors import UserError
from firstcli.student.answering import Predictions, answered
from firstcli.student.generating import Generation, generated
from firstcli.student.model import LoadedModel, load_model
from firstcli.student.rows import rows_of, windows
from firstcli.student.usage import Usage
from firstcli.tasks.tables import TableRow

WINDOW = 1024
"""Rows in memory at a time. Within a window, rows of similar length share a batch."""
MAX_NEW_TOKENS = 256
"""Tokens that an instruction student generates at most."""


class TrainedStudent:
    """A student that `load_student` has loaded."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @property
    def usage(self) -> Usage:
        """What the folder's `firstcli.json` says."""
        return self._loaded.usage

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The answers to choose from; None if every row has its own, or for generated text."""
        return tuple(label.name for label in self.usage.labels) or None

    @property
    def generates(self) -> bool:
        """Whether the student writes text (`generate`) instead of choosing (`predict`)."""
        return self.usage.kind == "instruction"

    def predict(
        self, texts: Iterable[str | Mapping[str, Any]], batch_size: int | None = None
    ) -> Predictions:
        """Answer texts, or rows with several columns.

        Results do not depend on the batch size or on the other rows, up to rounding: 1e-5 in a
        probability with float32 weights.

        Args:
            texts: texts for a student that reads one column, or mappings from column to value.
            batch_size: rows per batch; None: as many as have 8192 tokens together.

        Returns:
            The answers in the order of the texts. A row that cannot be answered, such as an empty
            text, has an entry in `errors`, no label, and NaN as confidence and probabilities.

        Raises:
            UserError: the student generates text, or no row at all can be answered.
        """
        if self.generates:
            raise UserError(f"{self._loaded.folder}: this student writes text; use `generate`")
        rows = windows(rows_of(self.usage, texts), WINDOW)
        predictions = Predictions.joined([self.answers(window, batch_size) for window in rows])
        _refuse_if_all(predictions.errors)
        return predictions

    def generate(
        self,
        texts: Iterable[str | Mapping[str, Any]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int | None = None,
    ) -> list[Generation]:
        """Write a response to each text, always with the most likely next token.

        Args:
            texts: texts for a student that reads one column, or mappings from column to value.
            max_new_tokens: tokens after which a response is cut off.
            batch_size: rows per batch; None: 16.

        Raises:
            UserError: the student chooses between candidates, or no row at all can be answered.
        """
        if not self.generates:
            raise UserError(f"{self._loaded.folder}: this student chooses answers; use `predict`")
        generations = [
            generation
            for window in windows(rows_of(self.usage, texts), WINDOW)
            for generation in self.responses(window, max_new_tokens, batch_size)
        ]
        _refuse_if_all([each.error for each in generations])
        return generations

    def answers(self, rows: Sequence[TableRow], batch_size: int | None = None) -> Predictions:
        """Answer a window of rows; those that cannot be answered have an error each.

        Args:
            rows: the rows.
            batch_size: rows per batch; None: as many as have 8192 tokens together.
        """
        return answered(self._loaded, rows, batch_size)

    def responses(
        self, rows: Sequence[TableRow], max_new_tokens: int, batch_size: int | None = None
    ) -> list[Generation]:
        """Write responses to a window of rows; those that cannot be answered have an error each.

        Args:
            rows: the rows.
            max_new_tokens: tokens after which a response is cut off.
            batch_size: rows per batch; None: 16.
        """
        return generated(self._loaded, rows, max_new_tokens, batch_size)


def _refuse_if_all(errors: Sequence[str | None]) -> None:
    if errors and all(errors):
        raise UserError(f"none of the {len(errors)} rows can be answered: {errors[0]}")


def load_student(
    folder: str | Path,
    *,
    raw: bool = False,
    device: str = "auto",
    dtype: Literal["auto"] | Dtype | None = None,
) -> TrainedStudent:
    """Load a student from its folder; neither the run nor the recipe is needed.

    Args:
        folder: a folder that `first distill` has written, wherever it is now.
        raw: leave out the post-hoc recalibrator, such as a temperature.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, ...
        dtype: type of the weights; None: as in the recipe.

    Raises:
        UserError: the folder is incomplete or damaged, or was written by a newer firstcli.
    """
    return TrainedStudent(load_model(Path(folder), raw=raw, device=device, dtype=dtype))
