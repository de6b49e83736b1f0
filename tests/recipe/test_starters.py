"""The shipped recipes: each loads, and each is written out as one file that says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.errors import UserError
from firstcli.recipe.load import load_recipe
from firstcli.recipe.starters import init, render, starter, starters

NAMES = [each.name for each in starters()]
FAMILIES = {
    "llama1": ("huggyllama/llama-30b", "huggyllama/llama-7b"),
    "llama2": ("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-7b-hf"),
    "openllama": ("openlm-research/open_llama_13b", "openlm-research/open_llama_7b"),
}
DATA = {
    "csqa": ("commonsense-qa", ["commonsense-qa"]),
    "boolq": ("boolq", ["boolq"]),
    "alpaca": ("alpaca", ["commonsense-qa", "openbook-qa"]),
}


def resolved(path: Path) -> Any:
    """A recipe's resolved values with its own folder written as `HERE`."""
    whole = json.dumps(load_recipe(path).resolved)
    return json.loads(whole.replace(str(path.absolute().parent), "HERE"))


def test_what_ships() -> None:
    paper = {f"paper/{family}-{data}" for family in FAMILIES for data in DATA}
    assert {"quickstart", "trec", "sst2", "csqa", *paper} <= set(NAMES)
    assert not [name for name in NAMES if "_" in name]  # parts of others


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_loads_and_its_rendering_says_the_same(name: str, tmp_path: Path) -> None:
    path = starter(name).path
    rendered = tmp_path / "recipe.yaml"
    rendered.write_text(render(name), encoding="utf-8")
    assert "extends" not in yaml.safe_load(rendered.read_text(encoding="utf-8"))
    assert resolved(rendered) == resolved(path)
    assert starter(name).description


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("data", DATA)
def test_the_papers_settings(family: str, data: str) -> None:
    recipe = load_recipe(starter(f"paper/{family}-{data}").path).recipe
    assert recipe.teacher is not None and recipe.teacher.finetune is not None
    models = (recipe.teacher.model.checkpoint, recipe.student.model.checkpoint)
    assert models == FAMILIES[family]
    trained, evaluated = DATA[data]
    assert recipe.train.task.name == trained
    assert [each.task.name for each in recipe.evaluate] == evaluated
    for training in (recipe.teacher.finetune, recipe.student.training):
        assert (training.epochs, training.learning_rate, training.batch_size) == (3, 2e-5, 256)
    assert recipe.knowledge.top_k == 5
    assert recipe.metrics.bins == 10
    arms = {name: arm for name, arm in recipe.arms.items() if arm.learn == "knowledge"}
    assert list(recipe.arms) == ["fine-tune", *arms]
    assert {(arm.mass, arm.objective) for arm in arms.values()} == {("one", "topk-tail")}
    used = {name: arm.recalibrator and arm.recalibrator.name for name, arm in arms.items()}
    assert used == {
        "distill": "none",
        "distill-ls": "label-smoothing",
        "first": "temperature-scaling",
    }


def test_comments_of_parents_and_children_are_kept() -> None:
    text = render("paper/openllama-alpaca")
    lines = text.splitlines()
    assert lines[0] == "# The paper: OpenLLaMA, 13B teaches 7B, Alpaca, evaluated out-of-domain."
    assert "  top_k: 5  # sections 4.1 and 5.4" in lines  # of the grandparent
    assert "    # The main branch holds pickled weights," in text  # of the parent
    assert text.index("\nname:") < text.index("\ntrain:") < text.index("\narms:")
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_merging_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_base.yaml").write_text("""\
# The parent's header.

# about the seed
seed: 1  # one
train:  # beside a mapping
  # about the task
  task: {name: a, options: {x: 1}}
  validation: 0.1
evaluate:  # a list
  # the first
  - task: {name: a}  # beside it
  - {task: {name: b}}
arms:
  gone: {learn: labels}
  kept: {learn: labels}
""")
    (tmp_path / "child.yaml").write_text("""\
# The child's header.

extends: _base.yaml
name: child
seed: 2
train:
  # about the child's task
  task: {options: {y: [1, 2]}}
arms:
  gone: null
""")
    monkeypatch.setattr("firstcli.recipe.starters._folder", lambda: tmp_path)
    assert (
        render("child")
        == """\
# The child's header.

name: child

# about the seed
seed: 2  # one
train:  # beside a mapping
  # about the child's task
  task:
    options:
      y: [1, 2]
      x: 1
    name: a
  validation: 0.1
evaluate:  # a list
  # the first
  - task: {name: a}  # beside it
  - {task: {name: b}}
arms:
  kept: {learn: labels}
"""
    )


def test_short_names_and_unknown_names() -> None:
    assert starter("llama2-boolq").name == "paper/llama2-boolq"
    assert starter("csqa").name == "csqa"
    with pytest.raises(UserError, match=r"unknown starter 'quikstart' \(did you mean 'quickstart'"):
        starter("quikstart")
    with pytest.raises(UserError, match="unknown starter"):
        starter("../../x")


def test_init_lists_prints_and_exports_the_schema() -> None:
    listed = init(None, schema=False)
    assert all(name in listed for name in NAMES)
    assert init("trec", schema=False) == render("trec")
    assert json.loads(init(None, schema=True))["title"] == "Recipe"
