"""The shipped recipes: each loads, and recipes of one series agree in what they share."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.errors import UserError
from firstcli.recipe.load import load_recipe
from firstcli.recipe.schema import Recipe
from firstcli.recipe.starters import HEADINGS, OWN_DATA, starter, starters
from support.command_line import MODEL, first, sums, write_rows

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
PAPER = [f"paper/{family}-{data}" for family in FAMILIES for data in DATA]
EXAMPLES = ("quickstart", "trec", "sst2", "csqa", "lora-24gb")
REASONING = {
    f"reasoning/{name}" for name in ("gsm8k", "aqua", "strategy-qa", "cos-e", "e-snli")
} | {"known-steps"}
STUDIES = {"study-trec": "trec", "study-sst2": "sst2", "study-known-world": "quickstart"}


def sections(name: str) -> dict[str, str]:
    """Return the text of a starter's top-level sections, comments included."""
    blocks = re.split(r"\n\n(?=#|\w)", starter(name).text)
    return {match[1]: block for block in blocks if (match := re.search(r"^(\w+):", block, re.M))}


def resolved(name: str) -> Any:
    return load_recipe(starter(name).path).resolved()


def test_what_ships() -> None:
    assert {*OWN_DATA, *EXAMPLES, "active", *REASONING, "study-top-k", *STUDIES, *PAPER} == set(
        NAMES
    )


def test_starters_for_own_data_come_first_and_the_papers_last() -> None:
    assert NAMES[: len(OWN_DATA)] == [*OWN_DATA]
    assert NAMES[-len(PAPER) :] == sorted(PAPER)
    assert [heading for heading, _ in groupby(each.heading for each in starters())] == [*HEADINGS]


@pytest.mark.parametrize("name", OWN_DATA)
def test_starters_for_own_data_work_with_a_file_at_their_place(name: str, tmp_path: Path) -> None:
    """With small new models instead of those from the hub."""
    rows = [f"text {n},{'yes' if n % 2 else 'no'}" for n in range(80)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows, ""]))
    write_rows(tmp_path / "questions.jsonl", sums(80))
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {n}."} for n in range(80)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(starter(name).text)
    model = json.dumps(MODEL)
    models = [f"--set=teacher.model={model}", f"--set=student.model={model}"]
    result = first("plan", recipe, *models, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    if name != "own-prompts":  # whose training rows have no candidates
        assert result.json["example"]["count"] == 2
    assert "also occur in the training split" not in result.err


@pytest.mark.parametrize("name", NAMES)
def test_starters_are_self_contained_and_load(name: str) -> None:
    each = starter(name)
    keys = list(yaml.safe_load(each.text))
    assert keys == [key for key in Recipe.model_fields if key in keys]  # no `extends`, in order
    assert load_recipe(each.path).name == name.rpartition("/")[2]
    assert each.description.endswith(".")
    assert each.text.endswith("\n") and not each.text.endswith("\n\n")
    assert max(map(len, each.text.splitlines())) <= 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("data", DATA)
def test_the_papers_settings(family: str, data: str) -> None:
    recipe = load_recipe(starter(f"paper/{family}-{data}").path)
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
    assert {(arm.mass, arm.objective and arm.objective.name) for arm in arms.values()} == {
        ("one", "topk-tail")
    }
    used = {name: arm.recalibrator and arm.recalibrator.name for name, arm in arms.items()}
    assert used == {
        "distill": "none",
        "distill-ls": "label-smoothing",
        "first": "temperature-scaling",
    }


def test_the_papers_recipes_differ_in_models_and_data_only() -> None:
    """Comments included: a correction in one file must reach the others."""

    def variants(key: str, names: list[str]) -> int:
        return len({sections(name)[key] for name in names})

    for key in ("seed", "metrics", "knowledge", "arms"):
        assert variants(key, PAPER) == 1, key
    for family in FAMILIES:
        names = [name for name in PAPER if family in name]
        assert variants("teacher", names) == variants("student", names) == 1, family
    for data in DATA:
        names = [name for name in PAPER if name.endswith(data)]
        assert variants("train", names) == variants("evaluate", names) == 1, data
    recipes = [resolved(name) for name in PAPER]
    for section, key in (("train", "validation"), ("teacher", "finetune"), ("student", "training")):
        assert all(recipe[section][key] == recipes[0][section][key] for recipe in recipes)


@pytest.mark.parametrize("name", [*EXAMPLES, *OWN_DATA])
def test_the_default_arm_is_first_logit_with_a_temperature(name: str) -> None:
    """Every student of a starter is also evaluated with T, where its task has candidates."""
    recipe = load_recipe(starter(name).path)
    arms = dict(recipe.arms)
    if name == "own-prompts":  # nothing can be fitted without responses or choices
        assert list(arms) == ["distill"]
        return
    assert list(arms)[:3] == ["fine-tune", "distill", "first-logit"]
    studied = load_recipe(starter("study-trec").path).arms["first-logit"]
    assert arms["first-logit"].recalibrator == studied.recalibrator
    assert recipe.teacher is not None
    for ref in (recipe.teacher.posthoc, *(arm.posthoc for arm in arms.values())):
        assert ref is not None and ref.name == "logit-temperature"
    assert set(arms) - {"fine-tune", "distill", "first-logit"} == (
        {"first"} if name == "quickstart" else set()
    )


@pytest.mark.parametrize("study", STUDIES)
def test_studies_share_data_and_models_with_their_starter(study: str) -> None:
    base, extended = sections(STUDIES[study]), sections(study)
    for key in ("train", "metrics", "teacher", "student"):
        assert extended.get(key) == base.get(key), key
    base_recipe, recipe = resolved(STUDIES[study]), resolved(study)
    shared = base_recipe["evaluate"]
    assert recipe["evaluate"][: len(shared)] == shared
    for name, arm in base_recipe["arms"].items():
        studied = recipe["arms"][name]
        for each in (arm, studied):  # a temperature behind the student is not always studied
            each.pop("posthoc", None)
        assert studied == {**arm, "out_of_fold": False} or arm["learn"] == "labels"


def test_the_starter_for_24_gb_trains_adapters_beside_a_quantised_teacher() -> None:
    recipe = resolved("lora-24gb")
    assert recipe["teacher"]["model"]["options"]["quantization"]["load_in"] == "nf4"
    assert recipe["teacher"]["finetune"]["lora"]["rank"] == 16
    assert recipe["student"]["training"]["lora"]["rank"] == 16
    assert recipe["trainer"] == {"activation_checkpointing": True}


def test_short_names_and_unknown_names() -> None:
    assert starter("llama2-boolq").name == "paper/llama2-boolq"
    assert starter("csqa").name == "csqa"
    with pytest.raises(UserError, match=r"unknown starter 'quikstart' \(did you mean 'quickstart'"):
        starter("quikstart")
    with pytest.raises(UserError, match=r"\(did you mean 'llama2-csqa'\?\)"):
        starter("lama2-csqa")
    with pytest.raises(UserError, match=r"\(did you mean 'classification'\?\)"):
        starter("clasification")
    with pytest.raises(UserError, match="unknown starter"):
        starter("../../x")
