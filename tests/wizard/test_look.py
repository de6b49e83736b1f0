"""Columns are described in one pass, and repeated rows are counted exactly."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.tasks.tables import TableRow
from firstcli.wizard import look
from firstcli.wizard.look import Contents, Lengths, repeats, variants


def rows(*values: dict[str, Any]) -> list[TableRow]:
    return [TableRow(f"row {number}", each) for number, each in enumerate(values, 1)]


def contents(*values: dict[str, Any]) -> Contents:
    return look.look(rows(*values))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "text"),
        (["1", " -2 "], "whole numbers"),
        ([1, 2.0, float("nan")], "whole numbers"),
        (["1", "2.5"], "decimal numbers"),
        ([1.5, 2], "decimal numbers"),
        ([True, False], "true or false"),
        (["True", "no"], "true or false"),
        (["yes", "maybe"], "text"),
        ([["a"], ["b", "c"]], "lists"),
        ([{"a": 1}], "objects"),
        ([b"x"], "other values"),
        (["a", ["b"]], "mixed"),
        ([None, " ", ""], "empty"),
        ([10**400], "whole numbers"),
        ([float("inf")], "decimal numbers"),
    ],
)
def test_the_kind_of_a_column(values: list[object], kind: str) -> None:
    assert contents(*({"c": value} for value in values)).columns["c"].kind == kind


def test_missing_values_are_absent_blank_null_and_nan() -> None:
    table = contents({"a": "x", "b": 1}, {"a": " "}, {"a": None, "b": float("nan")}, {"b": 2})
    assert (table.rows, table.missing("a"), table.missing("b")) == (4, 3, 2)


def test_fields_of_objects_are_columns_two_levels_deep() -> None:
    table = contents({"q": {"stem": "x", "more": {"a": 1, "deep": {"b": 2}}}})
    names = ["q", "q.stem", "q.more", "q.more.a", "q.more.deep"]
    assert list(table.columns) == names


def test_memory_does_not_grow_with_the_values() -> None:
    many = (TableRow("", {"c": str(number), f"k{number}": "x" * 300}) for number in range(3000))
    table = look.look(many)
    assert table.rows == 3000
    assert len(table.columns) == look.MAX_COLUMNS
    assert table.columns["c"].values is None
    assert table.columns["k0"].values is None
    assert len(table.columns["k0"].example) == look.LONGEST_VALUE


@given(st.lists(st.integers(0, 10**7), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 1.0]))
def test_quantiles_are_exact_to_three_digits(lengths: list[int], share: float) -> None:
    counted = Lengths()
    for length in lengths:
        counted.add(length)
    exact = next(n for n in sorted(lengths) if sum(m <= n for m in lengths) >= share * len(lengths))
    assert exact * 0.99 - 1e-9 <= counted.quantile(share) <= exact
    assert exact > 1000 or counted.quantile(share) == exact
    assert len(counted.counts) < 1001 + 900 * 5


PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", " x "])))


@given(PAIRS)
def test_repeats_agree_with_plain_counting(pairs: list[tuple[str, str]]) -> None:
    found = repeats(rows(*({"t": text, "l": label} for text, label in pairs)), ("t",), "l")
    labels: dict[str, set[str]] = defaultdict(set)
    for text, label in pairs:
        labels[text].add(label.strip())
    counts = Counter(text for text, _ in pairs)
    conflicting = [text for text in labels if len(labels[text]) > 1]
    assert found.compared == len(pairs)
    assert found.rows == len(pairs) - len(labels)
    assert found.conflicting_texts == len(conflicting)
    assert found.conflicting_rows == sum(counts[text] for text in conflicting)
    if not conflicting:
        assert found.example is None
        return
    first = next(number for number, (text, _) in enumerate(pairs) if text in conflicting)
    text, label = pairs[first]
    second = next(
        number
        for number, other in enumerate(pairs)
        if other[0] == text and other[1].strip() != label.strip()
    )
    assert found.example == (first, second)


def test_only_the_first_rows_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "MAX_COMPARED", 2)
    found = repeats(rows({"t": "a"}, {"t": "a"}, {"t": "a"}), ("t",), None)
    assert (found.compared, found.rows) == (2, 1)


def test_several_columns_are_one_text() -> None:
    found = repeats(rows({"a": "x", "b": "y"}, {"a": "xy", "b": ""}), ("a", "b"), None)
    assert found.rows == 0


def test_variants_differ_in_case_and_spacing_only() -> None:
    assert variants(["Billing", "billing", "bug", "log  in", "Log in"]) == [
        ["Billing", "billing"],
        ["log  in", "Log in"],
    ]
