"""What the program saw in a table, for people: columns, labels, and what may be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

from rich.table import Column as TableColumn
from rich.table import Table as RichTable
from rich.text import Text

from firstcli.errors import shortened
from firstcli.wizard.columns import described
from firstcli.wizard.look import (
    DECIMAL,
    MAX_COMPARED,
    Column,
    Contents,
    Repeats,
    printable,
    repeats,
    variants,
)
from firstcli.wizard.roles import (
    ChoiceQuestions,
    Conversations,
    Guess,
    LabelledTexts,
    Prompts,
    Responses,
)
from firstcli.wizard.source import TEST, DataSource

SHOWN_LABELS = 20
IMBALANCE = 20  # the most frequent label has this many times the rows of the rarest
FEW_PER_LABEL = 20  # rows of a label with which a model can hardly learn it
SHOWN_EXAMPLE = 40  # characters
BAR = 30  # characters


def columns_table(table: Contents) -> RichTable:
    """Return one line per column: kind, missing values, lengths and an example."""
    shown = RichTable(
        TableColumn("column", no_wrap=True, max_width=18),
        TableColumn("contains", min_width=9),
        TableColumn("missing", justify="right", no_wrap=True),
        TableColumn("characters\n50/95/100 %", justify="right", min_width=11),
        TableColumn("for example", overflow="fold", min_width=10),
    )
    for name, column in table.columns.items():
        lengths = "/".join(f"{column.lengths.quantile(share):,}" for share in (0.5, 0.95, 1.0))
        missing = table.missing(name)
        shown.add_row(
            Text(printable(name)),
            described(column),
            f"{missing:,}" if missing else "",
            lengths if column.lengths.counts.total() and column.lengths.quantile(1.0) else "",
            Text(_cut(printable(column.example))),
        )
    return shown


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_EXAMPLE else f"{text[: SHOWN_EXAMPLE - 3]}..."


def label_lines(table: Contents, label: str) -> Iterator[str]:
    """Yield one line per label: rows, share and a bar, most frequent first."""
    counts = _counts(table.columns[label])
    width = max(len(printable(name)) for name in list(counts)[:SHOWN_LABELS])
    most, total = max(counts.values()), sum(counts.values())
    for name, count in islice(counts.items(), SHOWN_LABELS):
        bar = "#" * max(1, round(BAR * count / most))
        yield f"  {printable(name):{min(width, 40)}}  {count:>9,}  {count / total:6.1%}  {bar}"
    if len(counts) > SHOWN_LABELS:
        rest = list(counts.values())[SHOWN_LABELS:]
        yield f"  ... {len(rest):,} more labels with {rest[0]:,} to {rest[-1]:,} rows each"


def reading(guess: Guess) -> str:
    """Say in one line which columns a recipe uses."""
    return printable(_reading(guess))


def _reading(guess: Guess) -> str:
    texts = ", ".join(f"`{name}`" for name in guess.texts)
    match guess:
        case LabelledTexts():
            return f"classification: text {texts}, label `{guess.label}`"
        case ChoiceQuestions():
            found = guess.choices
            shown = f"`{found}`" if isinstance(found, str) else ", ".join(f"`{n}`" for n in found)
            return f"multiple-choice: question {texts}, choices {shown}, answer `{guess.label}`"
        case Conversations():
            return f"instruction: conversations {texts}, in which all turns of the assistant count"
        case Prompts():
            return f"instruction: prompt {texts}, whose responses the teacher writes"
        case Responses():
            return f"instruction: prompt {texts}, response `{guess.label}`"


def findings(source: DataSource, table: Contents, guess: Guess) -> Iterator[str]:
    """Yield what the user should look at before training; reads the rows again.

    Raises:
        UserError: a row is malformed.
    """
    names = guess.texts if isinstance(guess, Prompts) else (*guess.texts, guess.label)
    for name in names:
        if (missing := table.missing(name)) and not _optional(guess, name):
            yield f"{_rows(missing)} nothing in column '{printable(name)}'"
    if isinstance(guess, LabelledTexts):
        yield from _label_findings(table.columns[guess.label], guess.label)
    texts = guess.texts
    if isinstance(guess, ChoiceQuestions):  # the same question with other choices is no repeat
        found = guess.choices
        texts = (*texts, *((found,) if isinstance(found, str) else found))
    label = None if isinstance(guess, Responses) else guess.label
    yield from _repeat_findings(source, repeats(source.rows(), texts, label), bool(label))
    if "id" in table.columns and table.columns["id"].kind != DECIMAL:
        ids = repeats(source.rows(), ("id",), None)
        if again := ids.rows - max(0, table.missing("id") - 1):
            yield (
                f"{_rows(again)} a value in column 'id' that occurred before, but ids must be "
                "unique; rename the column, or remove it"
            )


def _optional(guess: Guess, name: str) -> bool:
    """Whether blank cells of a column are usual, as in Alpaca's `input`."""
    return name != guess.label and len(guess.texts) > 1


def _label_findings(column: Column, name: str) -> Iterator[str]:
    counts = _counts(column)
    raw: Mapping[str, int] = column.values or {}
    if surrounded := sum(count for value, count in raw.items() if value != value.strip()):
        yield f"{_rows(surrounded)} white space around the label, which is ignored"
    for group in variants(counts):
        shown = ", ".join(f"'{printable(label)}' ({counts[label]:,})" for label in group)
        yield (
            f"labels that differ only in case or spacing count as different labels: {shown}; "
            "write them in one way"
        )
    if single := [label for label, count in counts.items() if count == 1]:
        labels = "label has" if len(single) == 1 else "labels have"
        yield (
            f"{len(single):,} {labels} a single row: {shortened(list(map(printable, single)))}; no "
            "model can learn and be tested on one row: add rows, or merge or remove such labels"
        )
    few = [label for label, count in counts.items() if 1 < count < FEW_PER_LABEL]
    if few:
        labels = "label has" if len(few) == 1 else "labels have"
        yield (
            f"{len(few):,} {labels} fewer than {FEW_PER_LABEL} rows: "
            f"{shortened(list(map(printable, few)))}"
        )
    most, least = next(iter(counts)), list(counts)[-1]
    if counts[most] >= IMBALANCE * counts[least]:
        yield (
            f"the labels are imbalanced: '{printable(most)}' has {counts[most]:,} rows, "
            f"'{printable(least)}' has {counts[least]:,}; accuracy will mostly show the frequent "
            "labels"
        )
    if all(label.strip().lstrip("+-").isdecimal() for label in counts):
        yield (
            f"the labels in column '{printable(name)}' are numbers, which tell a model nothing; "
            "describe them under `labels` in the recipe"
        )


def _repeat_findings(source: DataSource, found: Repeats, labelled: bool) -> Iterator[str]:
    among = "" if found.compared < MAX_COMPARED else f" (of the first {MAX_COMPARED:,})"
    if found.rows:
        yield f"{_rows(found.rows)} a text that occurred before{among}"
    if labelled and found.example:
        texts = "text has" if found.conflicting_texts == 1 else "texts have"
        first, second = _places(source, found.example)
        yield (
            f"{found.conflicting_texts:,} {texts} different labels in {found.conflicting_rows:,} "
            f"rows{among}, such as {first} and {second}"
        )


def _rows(count: int) -> str:
    return "1 row has" if count == 1 else f"{count:,} rows have"


def _places(source: DataSource, numbers: tuple[int, int]) -> list[str]:
    rows = islice(source.rows(), max(numbers) + 1)
    return [row.where for number, row in enumerate(rows) if number in numbers]


def unusable_test(others: Mapping[str, Contents], guess: Guess) -> str:
    """Say why the split `test` cannot be used; empty if it can, or if there is none."""
    test = others.get(TEST)
    if test is None or isinstance(guess, Responses):
        return ""
    labels = test.columns.get(guess.label)
    if labels is not None and labels.filled > test.rows / 2:
        return ""
    return (
        f"the split 'test' has no labels in column '{guess.label}', so the recipe cuts the test "
        "rows out of the training rows"
    )


def rows_line(table: Contents, others: Mapping[str, Contents]) -> str:
    """Say how many rows the table has, and each of its other splits."""
    if not others:
        return f"{table.rows:,} rows"
    parts = [f"train {table.rows:,}", *(f"{split} {part.rows:,}" for split, part in others.items())]
    return f"rows by split: {', '.join(parts)}"


def _counts(column: Column) -> dict[str, int]:
    """Return the rows of each label, most frequent first; white space around it is ignored."""
    counts: Counter[str] = Counter()
    for value, count in (column.values or {}).items():
        counts[value.strip()] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
