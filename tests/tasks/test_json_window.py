"""A JSON array through a window: the values, and the mistakes with their places, of json.loads."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.tasks import json_window
from firstcli.tasks.json_window import Malformed, Window

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read(text: str) -> list[Any]:
    return list(Window(io.StringIO(text, newline="\n")).array())


@pytest.fixture(autouse=True, params=[1, 7, 1 << 16])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a little at a time, so that every value is cut somewhere."""
    monkeypatch.setattr(json_window, "CHUNK", request.param)


@settings(deadline=None)
@given(st.lists(JSON, max_size=5), st.sampled_from([None, 0, 2]))
def test_values_are_those_of_json_loads(values: list[Any], indent: int | None) -> None:
    assert read(f" \n{json.dumps(values, indent=indent)}\t") == values


@settings(deadline=None, max_examples=300)
@given(st.text('[]{},:"\\1ae \n', max_size=12), st.lists(JSON, max_size=3), st.integers(0, 30))
def test_mistakes_are_those_of_json_loads(junk: str, values: list[Any], at: int) -> None:
    whole = json.dumps(values, indent=1)
    text = "[" + whole[1:at] + junk + whole[max(at, 1) :]
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        if "trailing comma" in error.msg:  # newer versions of Python say more than we do
            return
        with pytest.raises(Malformed) as caught:
            read(text)
        found = caught.value
        assert (found.message, found.line, found.column) == (error.msg, error.lineno, error.colno)
    else:
        assert read(text) == expected


def test_only_a_part_lies_in_memory() -> None:
    window = Window(io.StringIO("[" + ",".join(['{"a": 1}'] * 100_000) + "]"))
    for _ in window.array():
        assert len(window._text) <= 2 * max(json_window.CHUNK, 8)
