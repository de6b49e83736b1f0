"""The written recipe is valid as it is, and states the columns in whatever way they are called."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.recipe.load import load_recipe
from firstcli.tasks.tables import TableRow
from firstcli.wizard.look import Contents, look
from firstcli.wizard.roles import (
    ChoiceQuestions,
    Conversations,
    Guess,
    LabelledTexts,
    Prompts,
    Responses,
)
from firstcli.wizard.source import DataSource
from firstcli.wizard.write import DEFAULT_MODELS, Models, default_models, recipe_text

ROOT = Path(__file__).parents[2]
CELL = {"text": "some text", "label": "a", "A": "x", "B": "y", "q": "Which?", "more": "also text"}


def contents(count: int = 8, **cells: str) -> Contents:
    return look(TableRow("", {**CELL, **cells}) for _ in range(count))


def written(
    guess: Guess,
    table: Contents | None = None,
    *,
    path: Path = Path("data.csv"),
    models: Models = DEFAULT_MODELS,
    folder: Path | None = None,
    others: dict[str, Any] | None = None,
) -> str:
    source = DataSource(path, path, (path,), others or {})
    return recipe_text(source, table or contents(), guess, models, folder)


def options(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["train"]["task"]["options"]
    return found


def test_labelled_texts() -> None:
    recipe = yaml.safe_load(written(LabelledTexts(("text",), "label")))
    assert recipe["train"]["task"] == {
        "name": "classification",
        "options": {"path": "data.csv", "text": "text", "label": "label", "test": 0.2},
    }
    assert list(recipe["arms"]) == ["fine-tune", "distill", "first-logit"]
    assert recipe["arms"]["first-logit"]["recalibrator"] == {
        "name": "logit-temperature",
        "options": {"criterion": "nll"},
    }
    assert all(arm["posthoc"] == {"name": "logit-temperature"} for arm in recipe["arms"].values())
    assert "evaluate" not in recipe
    assert recipe["metrics"] == {"bins": 10}


def test_the_arms_are_those_that_the_documentation_recommends() -> None:
    page = (ROOT / "docs" / "which-method.md").read_text("utf-8")
    recommended = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    recipe = yaml.safe_load(written(LabelledTexts(("text",), "label")))
    assert recipe["arms"] == recommended["arms"]


def test_several_text_columns() -> None:
    assert options(written(LabelledTexts(("text", "more"), "label")))["text"] == ["text", "more"]


def test_questions_with_choices() -> None:
    guess = ChoiceQuestions("q", ("A", "B"), "label", "letter", "text", "more")
    assert options(written(guess)) == {
        "path": "data.csv",
        "question_column": "q",
        "choices_column": ["A", "B"],
        "answer_column": "label",
        "answer_as": "letter",
        "prompt": "{text}\n{question}\n{choices}\nAnswer:",
        "test": 0.2,
    }


def test_prompts_and_responses() -> None:
    recipe = yaml.safe_load(written(Responses(("q", "more"), "text")))
    assert recipe["train"]["task"]["options"] == {
        "path": "data.csv",
        "prompt": "Q: {q}\nMore: {more}\nResponse:",
        "response": " {text}",
    }
    assert recipe["evaluate"] == [{"task": {"name": "openbook-qa"}}]
    assert list(recipe["arms"]) == ["fine-tune", "distill", "first-logit"]
    assert "posthoc" not in recipe["teacher"]  # which is fitted where one answer is chosen
    assert not any("posthoc" in arm for arm in recipe["arms"].values())


def test_conversations() -> None:
    guess = Conversations(("text",), "text")
    models = default_models(guess)
    recipe = yaml.safe_load(written(guess, models=models))
    assert recipe["train"]["task"] == {
        "name": "instruction",
        "options": {"path": "data.csv", "messages": "text", "supervise": "all"},
    }
    assert recipe["evaluate"] == [{"task": {"name": "openbook-qa", "chat": "auto"}}]
    assert recipe["teacher"]["model"]["checkpoint"].endswith("-Instruct")  # with a chat template
    plain = yaml.safe_load(written(Responses(("q",), "text")))
    assert recipe["teacher"]["finetune"] == plain["teacher"]["finetune"]
    assert recipe["student"]["training"] == plain["student"]["training"]


def test_prompts_alone_are_answered_by_the_teacher() -> None:
    guess = Prompts(("text",), "")
    recipe = yaml.safe_load(written(guess))
    assert recipe["train"]["task"]["options"] == {
        "path": "data.csv",
        "prompt": "{text}\nResponse:",
        "response": "",
    }
    assert recipe["knowledge"]["responses"] == "teacher"
    assert "finetune" not in recipe["teacher"]
    assert recipe["arms"] == {"distill": {"recalibrator": {"name": "none"}}}
    chat = yaml.safe_load(written(guess, models=default_models(guess)))["train"]["task"]
    assert chat["chat"] == "auto" and chat["options"]["prompt"] == "{text}"


def test_the_keys_of_a_chat_are_comments_where_no_template_is_seen() -> None:
    assert "    # chat: auto  # " in written(LabelledTexts(("text",), "label"))
    assert "    # chat: auto  # " in written(Responses(("q",), "text"))
    assert "chat_template: chat.jinja" in written(Conversations(("text",), "text"))


def test_data_with_a_test_split_are_not_cut() -> None:
    text = written(LabelledTexts(("text",), "label"), others={"test": ()})
    assert "test" not in options(text)


@settings(max_examples=25)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")))
def test_any_column_name_and_label_is_written_so_that_yaml_reads_it(name: str, label: str) -> None:
    table = look([TableRow("", {name: label, "other": "text"})])
    found = options(written(LabelledTexts(("other",), name), table))
    assert found["label"] == name


@pytest.mark.parametrize("label", ["yes", "no", "null", "1", "a: b", "# c", "- d", "é", "a\nb"])
def test_labels_of_the_comment_are_valid_when_it_is_uncommented(label: str) -> None:
    table = look([TableRow("", {"text": "t", "label": value}) for value in (label, "z")])
    text = written(LabelledTexts(("text",), "label"), table)
    lines = [re.sub("^      # (?!prompt)(?!The)", "      ", line) for line in text.splitlines()]
    assert options("\n".join(lines))["labels"] == dict.fromkeys(
        sorted([label, "z"]), "what it means"
    )


def test_many_labels_are_not_all_listed() -> None:
    table = look(TableRow("", {"text": "t", "label": f"l{number}"}) for number in range(500))
    text = written(LabelledTexts(("text",), "label"), table)
    assert "... and 480 more" in text
    assert len(text.splitlines()) < 80


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    guess = LabelledTexts(("text",), "label")
    folder = Path("recipes")
    assert (
        options(written(guess, path=Path("data/x.csv"), folder=folder))["path"] == "../data/x.csv"
    )
    assert options(written(guess, path=tmp_path / "x.csv", folder=folder))["path"] == str(
        tmp_path / "x.csv"
    )


def test_small_training_data_hold_out_a_larger_part() -> None:
    guess = LabelledTexts(("text",), "label")
    assert "validation: 0.2 " in written(guess, contents(100))
    assert "validation: 0.1 " in written(guess, contents(5000))


def checkpoint(folder: Path, shape: list[int], context: int) -> str:
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": shape}, "__metadata__": {}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}), "utf-8")
    return str(folder)


def test_the_learning_rate_depends_on_the_size_of_a_local_model(tmp_path: Path) -> None:
    models = Models(
        checkpoint(tmp_path / "large", [40000, 50000], 10**6),
        checkpoint(tmp_path / "small", [1000, 1000], 100),
    )
    recipe = yaml.safe_load(written(LabelledTexts(("text",), "label"), models=models))
    assert recipe["teacher"]["model"]["checkpoint"] == models.teacher
    assert float(recipe["teacher"]["finetune"]["learning_rate"]) == 2e-5
    assert float(recipe["student"]["training"]["learning_rate"]) == 1e-3


def test_texts_that_may_exceed_the_context_are_dropped(tmp_path: Path) -> None:
    models = Models(student=checkpoint(tmp_path / "small", [10, 10], 100))
    guess = LabelledTexts(("text",), "label")
    assert "too_long" not in written(guess, contents(text="x" * 100), models=models)
    assert "too_long: drop" in written(guess, contents(text="x" * 101), models=models)


def test_a_folder_that_is_no_checkpoint_is_left_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)
    text = written(LabelledTexts(("text",), "label"), models=Models(str(tmp_path), "x/y"))
    assert yaml.safe_load(text)["teacher"]["model"]["checkpoint"] == str(tmp_path)


@pytest.mark.parametrize(
    "guess",
    [
        LabelledTexts(("text",), "label"),
        ChoiceQuestions("q", ("A", "B"), "label"),
        Responses(("q",), "text"),
    ],
)
def test_the_recipe_is_valid(tmp_path: Path, guess: Guess) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label,A,B,q\none,A,x,y,Q?\ntwo,B,x,y,R?\n", "utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(written(guess), "utf-8")
    recipe = load_recipe(path)
    assert recipe.name == "data"
    assert len(recipe.evaluate) == 1


@pytest.mark.parametrize(
    ("name", "content", "chat"),
    [
        ("chat_template.jinja", "{{ messages }}", "auto"),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', "auto"),
        ("tokenizer_config.json", '{"chat_template": null}', None),
        ("tokenizer_config.json", "[", None),
    ],
)
def test_models_with_a_chat_template_are_asked_in_it(
    tmp_path: Path, name: str, content: str, chat: str | None
) -> None:
    (tmp_path / name).write_text(content)
    text = written(LabelledTexts(("text",), "label"), models=Models(student=str(tmp_path)))
    assert yaml.safe_load(text)["train"]["task"].get("chat") == chat
