"""The reference pages agree with the models, and describe every key."""

from __future__ import annotations

import re

import pytest

from firstcli import plugins
from firstcli.commands.reference import pages
from firstcli.recipe.load import schema
from support.paths import DOCS


@pytest.mark.parametrize("name", ["recipe.md", "plugins.md"])
def test_the_pages_are_fresh(name: str) -> None:
    stored = (DOCS / "reference" / name).read_text("utf-8")
    assert stored == pages()[name], "stale: run `make reference`"


def test_every_link_within_a_page_has_an_anchor() -> None:
    for name, page in pages().items():
        anchors = re.findall(r'<a id="([^"]+)">', page)
        anchors += [
            title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)", page, re.M)
        ]
        assert len(anchors) == len(set(anchors)), name
        assert {*re.findall(r"\(#([^)]+)\)", page)} <= {*anchors}


def test_links_between_the_pages_have_an_anchor() -> None:
    found = pages()
    titles = re.findall(r"^## (.+)", found["plugins.md"], re.MULTILINE)
    targets = {*re.findall(r"plugins\.md#([^)]+)\)", found["recipe.md"])}
    assert targets and targets <= {title.lower().replace(" ", "-") for title in titles}


def test_every_key_and_every_plugin_is_described() -> None:
    page = pages()["recipe.md"]
    whole = schema()
    for section in (whole, *whole["$defs"].values()):
        for key in section.get("properties", ()):
            assert f"`{key}`" in page or f"`{key}: " in page, key
    for kind in plugins.KINDS:
        for plugin in plugins.registered(kind):
            shown = f"\n### `{plugin.name}`\n" in pages()["plugins.md"]
            assert shown == plugin.is_built_in, plugin.name
