"""`first init`: lists starters, prints one as it ships, and exports the JSON Schema."""

from __future__ import annotations

import json

from firstcli.recipe.starters import OWN_DATA, starter, starters
from support.command_line import first


def test_the_list_names_and_describes_every_starter() -> None:
    lines = first("init").out.splitlines()
    for each in starters():
        assert any(each.name in line and each.description in line for line in lines)


def test_starters_for_own_data_are_listed_first_under_a_heading() -> None:
    lines = first("init").out.splitlines()
    heading = lines.index("your own data:")
    assert [line.split()[0] for line in lines[heading + 1 : heading + 3]] == [*OWN_DATA]
    assert heading < lines.index("examples:") < lines.index("the paper's settings:")


def test_a_starter_is_printed_as_it_ships() -> None:
    assert first("init", "llama2-csqa").out == starter("paper/llama2-csqa").path.read_text("utf-8")


def test_an_unknown_starter_is_a_mistake() -> None:
    first("init", "quikstart").mistake("unknown starter 'quikstart' (did you mean 'quickstart'?)")


def test_the_schema_is_json() -> None:
    assert json.loads(first("init", "--schema").out)["title"] == "Recipe"
