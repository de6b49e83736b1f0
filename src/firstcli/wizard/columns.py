"""What each column of a table can be: a label, or a text; names and values decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from firstcli.errors import UserError
from firstcli.wizard.look import (
    DECIMAL,
    MAX_VALUES,
    TEXT,
    TRUTH,
    WHOLE,
    Column,
    Contents,
)
from firstcli.wizard.roles import Choose, Overrides
from firstcli.wizard.source import DataSource

SAMPLE_ROWS = 200  # whose choices are parsed
LONGEST_LABEL = 80  # characters, at the median

LABELS = (
    *("label", "labels", "category", "class", "target", "intent", "sentiment", "topic", "tag"),
    *("label_text", "label_name", "queue", "department", "emotion", "y", "gold", "output_label"),
)
_IDS = re.compile(
    r"|unnamed: 0|(?:.*[_ .-])?(?:id|ids|uuid|guid|idx|index|key|nr|no|number)", re.IGNORECASE
)
_TIMES = re.compile(r".*(?:date|time|timestamp|created|updated|_at)", re.IGNORECASE)


class TableColumns:
    """The columns of one table."""

    def __init__(self, source: DataSource, table: Contents, choose: Choose) -> None:
        self._source, self._table, self._choose = source, table, choose
        self._rows = list(islice(source.rows(), SAMPLE_ROWS))
        self._folded = {name.casefold(): name for name in reversed(list(table.columns))}

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the columns of these names, in the order of the names, whatever their case."""
        return [self._folded[name] for name in names if name in self._folded]

    def refuse_missing_header(self, overrides: Overrides) -> None:
        """Refuse a table whose first row was taken as the names of its columns.

        Raises:
            UserError: a name is a value of its own column, or reads like one.
        """
        if overrides.text or overrides.label:
            return
        for name, column in self._table.columns.items():
            if len(name) > LONGEST_LABEL or (column.values is not None and column.values[name] > 0):
                raise UserError(
                    f"{self._source.given}: the first line should name the columns, but "
                    f"'{name[:60]}' reads like a value; add a first line such as text,label, or, "
                    "if it is a name, state --text and --label"
                )

    def labels(self) -> list[str]:
        """Return the columns that can be labels: few values, each in several rows on average."""
        return [name for name in self._table.columns if self.is_label(name)]

    def is_label(self, name: str) -> bool:
        """Whether a column can be a label."""
        column = self._table.columns[name]
        different = column.different
        if different is None or not 2 <= different <= MAX_VALUES or not column.filled:
            return False
        kind = column.kind
        hinted = name.casefold() in LABELS
        kinds = (TEXT, WHOLE, TRUTH, *((DECIMAL,) if hinted else ()))
        if _IDS.fullmatch(name) or _TIMES.fullmatch(name) or kind not in kinds:
            return False
        short = column.lengths.quantile(0.5) <= LONGEST_LABEL
        return short and different <= column.filled * (0.8 if hinted and different < 20 else 0.5)

    def texts(self) -> list[str]:
        """Return the columns that can be texts, those with more characters first."""
        found = {
            name: column.lengths.quantile(0.5)
            for name, column in self._table.columns.items()
            if column.kind == TEXT and not _IDS.fullmatch(name) and not _TIMES.fullmatch(name)
        }
        return sorted(found, key=lambda name: -found[name])

    def _median(self, name: str) -> int:
        return self._table.columns[name].lengths.quantile(0.5)

    def _check_text(self, name: str, option: str) -> None:
        column = self._table.columns[name]
        if not column.filled or not set(column.native) <= {TEXT, WHOLE}:
            found = column.kind if column.filled else "nothing"
            raise UserError(
                f"{option} {name}: this column contains {found}, expected text or whole numbers"
            )

    def _ask(self, what: str, candidates: Sequence[str], option: str) -> str:
        if len(candidates) == 1:
            return candidates[0]
        return self._choose(f"{self._source.given}: which column is {what}?", candidates, option)

    def _described(self, names: Sequence[str]) -> str:
        shown = [f"'{name}' ({described(self._table.columns[name])})" for name in names[:10]]
        more = [f"{len(names) - 10} more"] if len(names) > 10 else []
        return ", ".join([*shown, *more])


def described(column: Column) -> str:
    """Describe a column's values in a few words: `text`, `whole numbers, 12 values`."""
    if not column.filled:
        return "empty"
    different = column.different
    return column.kind if different is None else f"{column.kind}, {different:,} values"


def is_conversation(value: list[Any]) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return bool(value) and all(
        isinstance(each, dict) and any(pair <= each.keys() for pair in keys) for each in value
    )
