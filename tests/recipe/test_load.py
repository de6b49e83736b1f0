"""Recipe files: what users write, and the mistakes they make."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import Mock

import entrypoints
import pytest
import yaml

from firstcli.errors import UserError
from firstcli.plugins import registered
from firstcli.recipe.load import load_recipe, schema
from firstcli.recipe.schema import Recipe
from firstcli.recipe.yaml_nodes import parse
from firstcli.tasks.known_world import KnownWorldOptions

GOOD = """\
name: run
train:
  task: {name: known-world}
evaluate:
  - {task: {name: known-world}}
teacher: {model: {family: scratch}, finetune: {epochs: 2, learning_rate: 2e-5}}
student:
  model: {family: scratch}
  training:
    epochs: 1
arms:
  fine-tune: {learn: labels}
  ls-0.1: {recalibrator: {name: label-smoothing, options: {delta: 0.1}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Recipe:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_recipe(Path("x.yaml"), overrides)


def errors(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return list(caught.value.messages)


def test_a_recipe_loads(folder: Path) -> None:
    loaded = load(GOOD)
    assert loaded.teacher is not None and loaded.teacher.finetune is not None
    assert loaded.teacher.finetune.learning_rate == 2e-5
    stored = {"top_k": 5, "precision": "standard", "batching": "padded"}
    stored |= {"responses": "data", "over": "tokens"}
    assert loaded.resolved()["knowledge"] == stored


def test_a_resolved_recipe_loads_as_the_same_recipe(folder: Path) -> None:
    loaded = load(GOOD)
    again = load(yaml.safe_dump(loaded.resolved()))
    assert again == loaded
    assert again.resolved() == loaded.resolved()


def test_every_mistake_is_a_sentence_with_file_line_and_key(folder: Path) -> None:
    assert errors("""\
name: ../../x
sed: 3
train:
  task: {name: knwn-world}
  validation: 1.5
evaluate:
  - task: {name: known-world, options: {sede: 1, seed: no}}
    split: 3
metrics: {bins: 0, confidence: ful}
teacher: {model: {family: scratch, checkpoint: x}, finetune: 7}
student:
  model: {family: causal-lm, checkpoint: ./nowhere}
  training:
    epochs: three
    dtype: yes
arms:
  a: {objective: topk-renormalized, mass: one}
  b: {recalibrator: {name: label-smoothing, options: {delta: 2}}}
  c: {recalibrator: {}}
  d: hello
trainer: [1]
""") == [
        "x.yaml:1: name: found '../../x', expected a name that can be a folder: up to 100 letters, "
        "digits, '.', '_' and '-', not starting with '.'",
        "x.yaml:4: train.task.name: unknown task 'knwn-world' (did you mean 'known-world'?); "
        f"available: {', '.join(plugin.name for plugin in registered('tasks'))}",
        "x.yaml:5: train.validation: found 1.5, expected a number of at least 0 and less than 1",
        "x.yaml:7: evaluate.0.task.options.seed: found no (which YAML reads as false), expected a "
        "whole number",
        "x.yaml:7: evaluate.0.task.options.sede: unknown key (did you mean 'seed'?); known: "
        f"{', '.join(sorted(KnownWorldOptions.model_fields))}",
        "x.yaml:8: evaluate.0.split: found 3, expected text; put it in quotes if it is meant as "
        "text",
        "x.yaml:9: metrics.bins: found 0, expected a whole number of at least 1",
        "x.yaml:9: metrics.confidence: found 'ful', expected 'candidates' or 'full'",
        "x.yaml:10: teacher.model.checkpoint: family 'scratch' takes no checkpoint; leave it out",
        "x.yaml:10: teacher.finetune: found 7, expected a mapping",
        "x.yaml:12: student.model.checkpoint: found './nowhere', expected a hub id such as "
        f"'owner/name', or a folder; there is no folder {folder / 'nowhere'}",
        "x.yaml:14: student.training.epochs: found 'three', expected a number greater than 0",
        "x.yaml:15: student.training.dtype: found yes (which YAML reads as true), expected "
        "'float32' or 'bfloat16'",
        "x.yaml:17: arms.a.mass: has no effect with 'objective: topk-renormalized'; leave it out",
        "x.yaml:18: arms.b.recalibrator.options.delta: found 2, expected a number of at least 0 "
        "and less than 1",
        "x.yaml:19: arms.c.recalibrator.name: missing, expected text",
        "x.yaml:20: arms.d: found 'hello', expected a mapping",
        "x.yaml:21: trainer: found a list, expected a mapping",
        "x.yaml:2: sed: unknown key (did you mean 'seed'?); known: active, arms, evaluate, "
        "knowledge, metrics, name, paper, seed, seeds, student, teacher, train, trainer",
    ]


def test_missing_sections_are_named(folder: Path) -> None:
    assert errors("name: x") == [
        "x.yaml: train: missing, expected a mapping with 'task'",
        "x.yaml: student: missing, expected a mapping with 'model'",
        "x.yaml: arms.first: learns from a teacher, but the recipe has none; add 'teacher' or "
        "'learn: labels'",
    ]


def test_an_empty_evaluate_is_refused(folder: Path) -> None:
    text = GOOD.replace("evaluate:\n  - {task: {name: known-world}}", "evaluate: []")
    assert errors(text) == [
        "x.yaml:4: evaluate: found an empty list, expected a list with at least 1 entry"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a, b\ntrain: {}\n", "x.yaml:2:6: expected ',' or ']', but got ':'"),
        ("name: x\n\tseed: 3\n", "x.yaml:2:1: found character '\\t' that cannot start any token"),
        ("name: x\nname: y\n", "x.yaml:2:1: the key 'name' is given twice, first in line 1"),
        (
            "name: !!python/name:os.system x\n",
            "x.yaml:1:7: found the tag '!!python/name:os.system'",
        ),
        ("train: !x {task: y}\n", "x.yaml:1:8: found the tag '!x'; recipes have no tags"),
        ("seed: !!int 3\n", "x.yaml:1:7: found the tag '!!int'; recipes have no tags"),
        ("on: 1\n", "x.yaml:1:1: YAML reads the key 'on' as yes or no; put it in quotes"),
        ("arms: {1: {}}\n", "x.yaml:1:8: YAML reads the key '1' as a number; put it in quotes"),
        ("? [a]\n: 1\n", "x.yaml:1:3: found a list or a mapping as a key, expected text"),
        ("a: &a [*a]\n", "x.yaml:1:4: nested more than 50 levels deep, aliases expanded"),
        (
            "a: &a {<<: [*a, *a]}\n",
            "x.yaml:1:12: nested more than 50 levels deep, aliases expanded",
        ),
        ("a: {<<: 3}\n", "x.yaml:1:9: '<<' expects a mapping or a list of mappings"),
        ("a: *b\n", "x.yaml:1:4: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2:1: but found another document"),
        ('a: "\\ud800"\n', "x.yaml:1:4: found half of a surrogate pair, expected text"),
        ('a: "\\Uffffffff"\n', "x.yaml: not valid YAML"),
        (f"seed: 1{'0' * 5000}\n", "x.yaml: not valid YAML"),
        ("a: \x07\n", "x.yaml:1: YAML has no character #x07"),
        ("- name\n", "x.yaml: found a list, expected keys such as 'name:' and 'train:'"),
        ("hello\n", "x.yaml: found bare text, expected keys such as 'name:' and 'train:'"),
        ("", "x.yaml: empty; `first init` lists recipes to start from"),
        ("# nothing\n", "x.yaml: empty; `first init` lists recipes to start from"),
        ("a: " + "[" * 200 + "]" * 200, "x.yaml:1:53: nested more than 50 levels deep"),
        ("a: " + "[" * 400_000, "x.yaml: nested more than 50 levels deep"),
        ("{a: " * 200_000, "x.yaml: nested more than 50 levels deep"),
        ("a: [" + "x," * 20_000 + "]", "x.yaml:1:20001: more than 10000 values, aliases expanded"),
        ("x" * 1_000_001, "x.yaml: larger than 1000000 bytes; this is not a recipe"),
    ],
)
def test_text_that_is_not_a_recipe(folder: Path, text: str, message: str) -> None:
    (error,) = errors(text)
    assert error.startswith(message)


def test_alias_bombs_are_refused_before_they_are_expanded(folder: Path) -> None:
    lists = ["a0: &a0 [x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    merges = ["a0: &a0 {k0: 1}"]
    merges += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 30)]
    nested = "&a0 {k0: 1}"
    for i in range(1, 20):
        nested = f"&a{i} {{<<: [{nested}{f', *a{i - 1}' * 10}]}}"
    for bomb in ("\n".join(lists), "\n".join(merges), f"a: {nested}"):
        (error,) = errors(bomb)
        assert error.endswith("more than 10000 values, aliases expanded")


def test_earlier_mappings_take_precedence_in_merges_and_own_keys_over_all(folder: Path) -> None:
    text = "x: &x {a: 1, b: 1, c: 1}\ny: &y {b: 2, d: 2}\nz: {c: 3, <<: [*y, *x]}\n"
    assert parse(text, "x.yaml", folder).children["z"].plain() == {"a": 1, "b": 2, "c": 3, "d": 2}


def test_aliases_and_merge_keys_work(folder: Path) -> None:
    text = GOOD.replace("fine-tune: {learn", "fine-tune: &base {learn")
    text += "  copy: *base\n  other: {<<: *base, training: {epochs: 2}}\n"
    arms = load(text).arms
    assert arms["copy"] == arms["fine-tune"]
    assert arms["other"].learn == "labels" and arms["other"].training is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name: x\n\xff\n", "x.yaml:2: not UTF-8 text; save the recipe as UTF-8"),
        (b"\x89PNG\0\0", "x.yaml: this is a binary file, expected a recipe in YAML"),
        ("name: x".encode("utf-16"), "x.yaml: this is a binary file, expected a recipe in YAML"),
    ],
)
def test_bytes_that_are_not_text(folder: Path, data: bytes, message: str) -> None:
    Path("x.yaml").write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_recipe(Path("x.yaml"))
    assert caught.value.messages == (message,)


def test_a_byte_order_mark_is_allowed(folder: Path) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8-sig")
    assert load_recipe(Path("x.yaml")).name == "run"


def test_missing_files_and_folders(folder: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        load_recipe(Path("gone.yaml"))
    Path("dir").mkdir()
    with pytest.raises(UserError, match="dir: this is a folder, expected a recipe file"):
        load_recipe(Path("dir"))
    Path("locked.yaml").write_text(GOOD)
    Path("locked.yaml").chmod(0)
    if not os.access("locked.yaml", os.R_OK):  # root can read every file
        with pytest.raises(UserError, match=r"locked\.yaml: cannot be read: Permission denied"):
            load_recipe(Path("locked.yaml"))


@pytest.mark.parametrize("written", ["2e-5", "2.0e-5", "2E-5", "0.00002", ".00002", "+2e-05"])
def test_numbers_as_people_write_them(folder: Path, written: str) -> None:
    recipe = load(GOOD.replace("2e-5", written))
    assert recipe.teacher is not None and recipe.teacher.finetune is not None
    assert recipe.teacher.finetune.learning_rate == 2e-5


@pytest.mark.parametrize("written", [".inf", ".nan", "-.inf", "1e999"])
def test_numbers_are_finite(folder: Path, written: str) -> None:
    (error,) = errors(GOOD.replace("2e-5", written))
    assert error.startswith("x.yaml:6: teacher.finetune.learning_rate: found ")


def test_dates_and_base_60_numbers_are_text(folder: Path) -> None:
    assert load(GOOD.replace("name: run", "name: 2024-01-01")).name == "2024-01-01"
    (error,) = errors(GOOD, "seed=1:30")
    assert (
        error == "--set: seed: found '1:30', expected a whole number of at least 0 and less than"
        " 4294967296"
    )


def test_options_of_an_unknown_plugin_are_located_all_the_same(folder: Path) -> None:
    text = GOOD.replace("label-smoothing, options: {delta: 0.1}", "smoothing, options: 7")
    name, options = errors(text)
    assert name.startswith("x.yaml:13: arms.ls-0.1.recalibrator.name: unknown recalibrator")
    assert options == ("x.yaml:13: arms.ls-0.1.recalibrator.options: found 7, expected a mapping")


def test_installed_distributions_are_scanned_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Mock(side_effect=entrypoints.iter_files_distros)
    monkeypatch.setattr(entrypoints, "iter_files_distros", scan)
    monkeypatch.syspath_prepend(str(folder))  # a search path that was not scanned yet
    recipe = load(GOOD)
    recipe.train.task.build()
    recipe.student.model.build()
    assert scan.call_count == 1


# extends


def test_extends_merges_and_relative_paths_keep_their_base(folder: Path) -> None:
    (folder / "shared" / "model").mkdir(parents=True)
    (folder / "shared" / "base.yaml").write_text(
        GOOD.replace(
            "  model: {family: scratch}", "  model: {family: causal-lm, checkpoint: model}"
        )
    )
    recipe = load(
        "extends: shared/base.yaml\nname: child\nstudent:\n  training: {epochs: 9}\n"
        "arms:\n  fine-tune: null\n  more: {mass: one}\nteacher: {finetune: }\n"
        "evaluate: [{task: {name: known-world}, split: shifted}]\n"
    )
    assert recipe.name == "child"
    assert recipe.student.training.epochs == 9
    assert recipe.student.model.checkpoint == str(folder / "shared" / "model")
    assert list(recipe.arms) == ["ls-0.1", "more"]
    assert recipe.teacher is not None and recipe.teacher.finetune is None
    assert [each.split for each in recipe.evaluate] == ["shifted"]


def test_mistakes_name_the_file_that_contains_them(folder: Path) -> None:
    Path("base.yaml").write_text(GOOD.replace("epochs: 1", "epochs: 0"))
    assert errors("extends: base.yaml\nseed: -1\n") == [
        "x.yaml:2: seed: found -1, expected a whole number of at least 0 and less than 4294967296",
        "base.yaml:10: student.training.epochs: found 0, expected a number greater than 0",
    ]


def test_extends_a_missing_file_itself_or_in_a_circle(folder: Path) -> None:
    assert errors("name: x\nextends: gone.yaml") == ["x.yaml:2: extends: no such file: gone.yaml"]
    assert errors("extends: x.yaml") == [
        "x.yaml:1: extends: recipes extend each other: x.yaml -> x.yaml"
    ]
    Path("y.yaml").write_text("extends: ./x.yaml")
    assert errors("extends: y.yaml") == [
        "y.yaml:1: extends: recipes extend each other: x.yaml -> y.yaml -> x.yaml"
    ]
    for wrong in ("[a.yaml]", "3", ""):
        assert errors(f"extends: {wrong}") == [
            "x.yaml:1: extends: expected the path of another recipe"
        ]


# --set


def test_set_changes_any_key(folder: Path) -> None:
    recipe = load(
        GOOD,
        "seed=7",
        "student.training.epochs=0.5",
        "evaluate.0.split=shifted",
        "arms.ls-0.1.recalibrator.options.delta=.2",
        "arms.new={mass: one}",
        "metrics.bins=20",
        "teacher.finetune=",
    )
    assert (recipe.seed, recipe.student.training.epochs, recipe.metrics.bins) == (7, 0.5, 20)
    assert recipe.evaluate[0].split == "shifted"
    assert list(recipe.arms) == ["fine-tune", "ls-0.1", "new"]
    smoothing = recipe.arms["ls-0.1"].recalibrator
    assert smoothing is not None and smoothing.given == {"delta": 0.2}
    assert recipe.teacher is not None and recipe.teacher.finetune is None


def test_set_removes_with_null_and_the_last_override_wins(folder: Path) -> None:
    assert list(load(GOOD, "arms.fine-tune=null").arms) == ["ls-0.1"]
    assert load(GOOD, "seed=1", "seed=2").seed == 2


def test_set_can_change_the_default_arm(folder: Path) -> None:
    text = GOOD[: GOOD.index("arms:")]
    arm = load(text, "arms.first.mass=one").arms["first"]
    assert arm.mass == "one"
    assert arm.recalibrator is not None and arm.recalibrator.name == "temperature-scaling"


def test_paths_in_set_start_from_the_current_folder(folder: Path) -> None:
    Path("sub").mkdir()
    Path("model").mkdir()
    Path("sub/x.yaml").write_text(GOOD)
    change = "student.model={family: causal-lm, checkpoint: ./model}"
    recipe = load_recipe(Path("sub/x.yaml"), [change])
    assert recipe.student.model.checkpoint == str(folder / "model")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected key.path=value, as in --set student.training.epochs=1"),
        ("=1", "--set =1: expected key.path=value, as in --set student.training.epochs=1"),
        ("name.x=1", "--set name.x: name has no keys"),
        (
            "evaluate.3.split=test",
            "--set evaluate.3: found '3', expected the index of one of the 1 entries of evaluate, "
            "counted from 0",
        ),
        (
            "arms.fine-tunr.training.epochs=1",
            "--set arms.fine-tunr.training.epochs: the recipe has no arm 'fine-tunr' (did you mean "
            "'fine-tune'?); its arms: fine-tune, ls-0.1",
        ),
        (
            "studnet.training.epochs=1",
            "--set: studnet: unknown key (did you mean 'student'?); known: active, arms, evaluate, "
            "knowledge, metrics, name, paper, seed, seeds, student, teacher, train, trainer",
        ),
        (
            "student.training.epcohs=1",
            "--set: student.training.epcohs: unknown key (did you mean 'epochs'?); known: "
            "batch_size, batching, dtype, ema, epochs, interpolate, learning_rate, lora, "
            "micro_batch_size, save, save_dtype",
        ),
        (
            "name=yes",
            "--set: name: found yes (which YAML reads as true), expected text; put it in quotes if "
            "it is meant as text",
        ),
        ("train={validation: 0.1}", "--set: train.task: missing, expected a mapping with 'name'"),
        ("seed=[1", "--set seed:1:3: expected ',' or ']', but got '<stream end>'"),
        ("seed=!!int 3", "--set seed:1:1: found the tag '!!int'; recipes have no tags"),
    ],
)
def test_mistakes_in_set(folder: Path, override: str, message: str) -> None:
    assert errors(GOOD, override) == [message]


def test_all_mistakes_in_set_are_reported(folder: Path) -> None:
    assert len(errors(GOOD, "seed", "name.x=1", "seed=3")) == 2


# the schema for editors


def test_the_schema_offers_installed_plugins_and_allows_any() -> None:
    whole = schema()
    json.dumps(whole)
    name = whole["$defs"]["TaskRef"]["properties"]["name"]
    assert "known-world" in name["anyOf"][0]["enum"]
    assert name["anyOf"][1] == {"type": "string"}
    assert (
        "logit-temperature"
        in whole["$defs"]["PosthocRef"]["properties"]["name"]["anyOf"][0]["enum"]
    )
    assert "extends" in whole["properties"]
    assert "required" not in whole["$defs"]["Train"]
