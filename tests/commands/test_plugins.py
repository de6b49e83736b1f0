"""`first plugins NAME`: what a plugin is, its options, and an example that is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, Field, PlainValidator

from firstcli import plugins
from firstcli.api import DataPaths, PluginOptions
from firstcli.recipe.describe import keys_of
from support.command_line import first

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.installed_plugins"]

CODE = '''
from pydantic import Field
from firstcli.api import PluginOptions, Recalibrator

class MineOptions(PluginOptions):
    """Options."""
    strength: float = Field(description="how strong; [bold]plain[/bold] text", gt=0, examples=[2.5])

class Mine(Recalibrator[MineOptions]):
    """Does it my way.

    In two paragraphs."""
    Options = MineOptions
    def transform(self, topk):
        return topk / topk.sum(1, keepdims=True)
'''


def test_a_built_in_plugin_is_described() -> None:
    shown = first("plugins", "label-smoothing").out
    assert shown.startswith("recalibrator `label-smoothing`, from firstcli ")
    assert "delta" in shown and "number at least 0 and below 1" in shown and "0.1" in shown
    assert "Probability taken from the most likely token." in shown
    assert "recalibrator:\n        name: label-smoothing" in shown


def test_a_plugin_of_another_package_as_json(install: Install) -> None:
    install("first-mine", CODE)
    result = first("plugins", "mine", "--json")
    assert result.json == {
        "plugins": [
            {
                "kind": "recalibrator",
                "name": "mine",
                "package": "first-mine",
                "version": "1.2",
                "description": "Does it my way.\n\nIn two paragraphs.",
                "options": [
                    {
                        "name": "strength",
                        "type": "number above 0",
                        "required": True,
                        "default": None,
                        "description": "how strong; [bold]plain[/bold] text",
                    }
                ],
                "example": "arms:\n  my-arm:\n    recalibrator:\n      name: mine\n"
                "      options:\n        strength: 2.5\n",
            }
        ]
    }
    assert "[bold]plain[/bold]" in result.err


def test_one_name_of_several_kinds(install: Install) -> None:
    install("first-mine", CODE, name="scratch")
    found = first("plugins", "scratch", "--json").json["plugins"]
    assert [(each["kind"], each["package"]) for each in found] == [
        ("family", "firstcli"),
        ("recalibrator", "first-mine"),
    ]


def test_two_packages_of_one_name_and_broken_plugins_are_mistakes(install: Install) -> None:
    install("first-mine", CODE)
    install("first-other", "raise ImportError('no')", name="other")
    first("plugins", "other").mistake("recalibrator 'other' from first-other 1.2 cannot be imp")
    install("first-third", CODE)
    first("plugins", "mine").mistake("'mine' is registered by first-mine 1.2")


def test_unknown_plugins() -> None:
    first("plugins", "multiple-choise").mistake("(did you mean 'multiple-choice'?)")
    first("plugins", "none", "--check").mistake("--check checks all plugins; leave out the name")


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_option_of_the_built_in_plugins_is_described(kind: plugins.Kind) -> None:
    for plugin in plugins.registered(kind):
        if plugin.is_built_in:
            result = first("plugins", plugin.name, "--json")
            (found,) = result.json["plugins"]
            assert found["description"], plugin.name
            assert all(option["description"] for option in found["options"]), plugin.name
            assert yaml.safe_load(found["example"])


class Part(BaseModel):
    """A part."""


class Everything(PluginOptions):
    """Options of every type."""

    paths: DataPaths
    number: int = Field(3, ge=1, lt=9)
    words: list[str] | None = None
    names: dict[str, float] = Field(default_factory=dict)
    choice: Annotated[str, PlainValidator(str)] = "a"
    part: Part = Part()
    flag: bool = False


def test_types_and_defaults_in_words() -> None:
    keys: dict[str, Any] = {key.name: (key.takes, key.default) for key in keys_of(Everything)}
    assert keys == {
        "paths": ("path or list of path", None),
        "number": ("whole number at least 1 and below 9", "3"),
        "words": ("list of text", ""),
        "names": ("mapping to number", ""),
        "choice": ("any value", '"a"'),
        "part": ("mapping", ""),
        "flag": ("true or false", "false"),
    }
    assert keys_of(Everything)[5].sections == (Part,)
