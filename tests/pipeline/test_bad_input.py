"""Every mistake of a user: one clear sentence each, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import command_line
from support.command_line import Finished, Result, first

pytest_plugins = ["support.finished_runs"]

SECRET = "hf_" + "aB3" * 11


def plan(folder: Path, *args: object, **sections: Any) -> Result:
    return first("plan", command_line.write_recipe(folder, **sections), *args)


def plan_text(folder: Path, text: str | bytes) -> Result:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return first("plan", path)


def as_text(**sections: Any) -> str:
    return yaml.safe_dump(command_line.recipe(**sections), sort_keys=False)


# The recipe.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.trainning.epochs=1", ("student.trainning", "did you mean 'training'")),
        ("train.validaton=0.2", ("train.validaton", "did you mean 'validation'")),
        ("seed=many", ("seed", "found 'many'", "whole number")),
        ("seed=-1", ("seed", "-1", "at least 0")),
        ("train.validation=1.5", ("train.validation", "1.5", "less than 1")),
        ("student.training.epochs=0", ("student.training.epochs", "0", "greater than 0")),
        ("student.training.epochs=yes", ("student.training.epochs", "yes", "number")),
        ("student.training.learning_rate=.nan", ("student.training.learning_rate",)),
        ("knowledge.top_k=0", ("knowledge.top_k", "at least 1")),
        ("metrics.bins=0", ("metrics.bins", "at least 1")),
        ("metrics.confidence=ful", ("metrics.confidence", "'ful'", "'full'")),
        ("evaluate=[]", ("evaluate",)),
        ("name=../../x", ("name", "../../x", "letters, digits")),
        ("name=''", ("name",)),
        (
            "arms.first.recalibrator.name=temperatur-scaling",
            ("did you mean 'temperature-scaling'",),
        ),
        ("train.task.name=known-wold", ("did you mean 'known-world'", "multiple-choice")),
        ("student.model.family=scrach", ("did you mean 'scratch'", "causal-lm")),
        ("train.task.options.choises=3", ("choises", "did you mean 'choices'")),
        ("train.task.options.choices=9", ("train.task.options.choices", "at most 5")),
        (
            "arms.first.recalibrator={name: label-smoothing, options: {delta: 1.0}}",
            ("arms.first.recalibrator.options.delta", "1.0"),
        ),
        (
            "arms.first.recalibrator={name: label-smoothing, options: {delta: -0.1}}",
            ("arms.first.recalibrator.options.delta", "-0.1"),
        ),
        ("train.validation=0", ("arms.first", "temperature-scaling", "validation is 0")),
        ("arms.fine-tune.mass=one", ("arms.fine-tune.mass", "learn: labels")),
        ("arms.teacher={learn: labels}", ("arms", "teacher", "reserved")),
        ("student.training.micro_batch_size=5", ("micro_batch_size", "does not divide")),
        ("student.model.checkpoint=x/y", ("student.model.checkpoint", "scratch")),
        ("evaluate.7.split=test", ("evaluate.7",)),
        ("nonsense", ("--set nonsense", "key.path=value")),
        ("arms.frist.mass=one", ("frist", "did you mean 'first'")),
        ("seed.x=1", ("seed",)),
    ],
)
def test_invalid_values(tmp_path: Path, override: str, parts: tuple[str, ...]) -> None:
    path = command_line.write_recipe(tmp_path)
    first("plan", path, "--set", override).mistake(*parts)


def test_every_arm_without_its_teacher_is_reported(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    result = first("plan", path, "--set", "teacher=null")
    assert result.code == 2 and len(result.errors) == 2


def test_several_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    result = plan(
        tmp_path,
        seed=-1,
        metrics={"bins": "ten"},
        knowledge={"topk": 5},
        arms={"first": {"recalibrator": {"name": "magic"}}},
    )
    assert result.code == 2
    assert len(result.errors) == 4
    path = tmp_path / "recipe.yaml"
    for key in ("seed", "metrics.bins", "knowledge.topk", "arms.first.recalibrator.name"):
        line = next(error for error in result.errors if f" {key}: " in error)
        assert line.startswith(f"error: {path}:")
    assert "available: label-smoothing" in result.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("empty", "first init")),
        ("# nothing but a comment\n", ("empty",)),
        ("just words", ("bare text",)),
        ("- a\n- b\n", ("a list",)),
        ("name: x\ntrain: {task\n", (":3:",)),
        ("name: x\n\tseed: 1\n", (":2:",)),
        ("name: x\nname: y\n", (":2:", "'name' is given twice", "line 1")),
        ("name: !!python/object:os.system x\n", (":1:", "tag")),
        ("name: !x y\n", (":1:", "tag '!x'")),
        ("name: &a [*a]\n", (":1:", "alias")),
        (b"\x89PNG\r\n\x1a\n\0\0\0", ("binary",)),
        ("name: h\xe9\n".encode("latin-1"), (":1:", "UTF-8")),
        ("name: x\nextends: nowhere.yaml\n", ("extends", "nowhere.yaml")),
    ],
)
def test_files_that_are_not_recipes(
    tmp_path: Path, text: str | bytes, parts: tuple[str, ...]
) -> None:
    plan_text(tmp_path, text).mistake("recipe.yaml", *parts)


def test_an_alias_bomb(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    plan_text(tmp_path, "\n".join(["a0: &a0 [x]", *levels])).mistake("values", "recipe.yaml")


@pytest.mark.parametrize("key", ["seed", "train"])
def test_a_key_given_twice(tmp_path: Path, key: str) -> None:
    plan_text(tmp_path, as_text() + f"{key}: 1\n").mistake(f"'{key}' is given twice")


def test_missing_recipes_and_folders(tmp_path: Path) -> None:
    first("plan", tmp_path / "none.yaml").mistake("none.yaml", "no such file", "first init")
    first("distill", tmp_path).mistake("folder")


def test_all_wrong_overrides_are_reported(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    result = first("plan", path, "--set", "sed=1", "--set", "metrics.bin=3")
    assert result.code == 2 and len(result.errors) == 2
    assert all("--set" in error for error in result.errors)


def test_an_unknown_arm_and_an_unknown_split(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    first("distill", path, "--arm", "frist").mistake("--arm frist", "did you mean 'first'")
    first("plan", path, "--set", "evaluate.0.split=tset").mistake(
        "evaluate 'known-world'", "'tset'", "did you mean 'test'"
    )


@pytest.mark.parametrize("key", ["hub_token", "hub_model_id", "wandb_api_key"])
def test_credentials_are_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    result = plan(tmp_path, trainer={key: SECRET})
    result.mistake(f"trainer.{key}: firstcli takes no credentials", "HF_TOKEN")
    assert SECRET not in result.out + result.err
    assert not (tmp_path / "run").exists()


def test_what_looks_like_a_secret_is_in_no_message(tmp_path: Path) -> None:
    result = plan(tmp_path, train={"task": command_line.WORLD, "validation": SECRET})
    result.mistake("train.validation", "<redacted>")
    assert SECRET not in result.out + result.err


@pytest.mark.parametrize(
    ("trainer", "parts"),
    [
        ({"wieght_decay": 0.1}, ("trainer.wieght_decay", "did you mean 'weight_decay'")),
        ({"learning_rate": 1e-3}, ("trainer.learning_rate", "training.learning_rate")),
        ({"lr_scheduler_type": "cosinus"}, ("trainer", "cosinus")),
    ],
)
def test_trainer_fields(tmp_path: Path, trainer: dict[str, Any], parts: tuple[str, ...]) -> None:
    plan(tmp_path, trainer=trainer).mistake(*parts)


# The data.

ROW = {"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}


def plan_rows(folder: Path, data: bytes | list[Any], **options: Any) -> Result:
    """Plan a recipe of labels over a file of ten good rows and the given data."""
    path = folder / "data" / "train.jsonl"
    good = command_line.sums(10)
    command_line.write_rows(path, [*good, *(data if isinstance(data, list) else [])])
    if isinstance(data, bytes):
        path.write_bytes(path.read_bytes() + data)
    command_line.write_rows(folder / "data" / "test.jsonl", command_line.sums(5, 50))
    task = command_line.of_files(folder / "data", **options)
    arms = {"fine-tune": {"learn": "labels"}}
    sections = {"train": {"task": task}, "evaluate": [{"task": task}], "teacher": None}
    return plan(folder, arms=arms, **sections)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ([{**ROW, "answer": "Z"}], ("train.jsonl:11", "'answer'", "Z")),
        ([{**ROW, "answer": 5}], ("train.jsonl:11", "'answer'", "5")),
        ([{**ROW, "choices": ["4"]}], ("train.jsonl:11", "1 choices", "2 to 26")),
        ([{**ROW, "choices": []}], ("train.jsonl:11", "0 choices")),
        ([{"question": "?", "answer": "A"}], ("train.jsonl:11", "'choices'")),
        ([{"choices": ["a", "b"], "answer": "A"}], ("train.jsonl:11", "'question'")),
        ([["a", "b"]], ("train.jsonl:11", "object")),
        (["text"], ("train.jsonl:11", "object")),
        ([7], ("train.jsonl:11", "object")),
        (b"{not json\n", ("train.jsonl:11", "JSON")),
        (b'{"question": "caf\xe9"}\n', ("train.jsonl:11", "UTF-8")),
        ([{**ROW, "id": "q3"}], ("'q3'", "more than once")),
    ],
)
def test_invalid_rows(tmp_path: Path, data: bytes | list[Any], parts: tuple[str, ...]) -> None:
    plan_rows(tmp_path, data).mistake(*parts)


def test_missing_columns_and_files(tmp_path: Path) -> None:
    result = plan_rows(tmp_path, [], question_column="sentence")
    assert result.code == 2 and len(result.errors) == 2
    for error, split in zip(result.errors, ("train", "test"), strict=True):
        assert f"{split}.jsonl:1: there is no column 'sentence'" in error
    task = command_line.of_files(tmp_path / "nothing.jsonl")
    missing = plan(tmp_path, train={"task": task, "validation": 0.2}, evaluate=[{"task": task}])
    missing.mistake("nothing.jsonl", "no such file")
    task = command_line.of_files(tmp_path / "nothing")
    assert plan(tmp_path, train={"task": task}).mistake(str(tmp_path / "nothing"))


def test_empty_splits(tmp_path: Path) -> None:
    command_line.write_rows(tmp_path / "empty" / "train.jsonl", [])
    task = command_line.of_files(tmp_path / "empty")
    plan(tmp_path, train={"task": task, "validation": 0.2}).mistake("train.jsonl", "no rows")
    texts = [{"prompt": "Say it.", "response": ""}]
    command_line.write_rows(tmp_path / "texts" / "train.jsonl", texts)
    task = {"name": "instruction", "options": {"path": str(tmp_path / "texts")}}
    arms = {"fine-tune": {"learn": "labels"}}
    plan(tmp_path, train={"task": task}, arms=arms).mistake(
        "train.task", "no row of the training split has a response"
    )


def test_a_validation_part_without_rows(tmp_path: Path) -> None:
    first("plan", command_line.write_recipe(tmp_path), "--set", "train.validation=1e-9").mistake(
        "train.validation", "no sample"
    )
    first("plan", tmp_path / "recipe.yaml", "--set", "train.validation=0.9999999").mistake(
        "train.validation", "none to train on"
    )


def test_candidates_that_share_a_token(tmp_path: Path) -> None:
    row = {**ROW, "id": "alike", "choices": ["xq", "xz", "yy"], "answer": "C"}
    plan_rows(tmp_path, [row], respond_with="text")
    letters = ("--set", "student.model.options.vocabulary=260")  # too few for whole words
    result = first("plan", tmp_path / "recipe.yaml", *letters)
    result.mistake("'alike'", "' xq', ' xz' share the token 'x'")


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    long = {**ROW, "id": "endless", "question": "why? " * 200}
    plan_rows(tmp_path, [long]).mistake("1 samples", "'endless'", "too_long: drop", "128 tokens")
    dropped = first("plan", tmp_path / "recipe.yaml", "--set", "train.too_long=drop")
    assert dropped.code == 0
    assert "1 samples, such as 'endless'" in dropped.err and "dropped" in dropped.err


def test_a_shifted_prompt_longer_than_the_context(tmp_path: Path) -> None:
    wording = "why? " * 200 + "{question}\n{choices}\nAnswer:"
    long = ("--set", f"evaluate.0.shift={json.dumps({'wording': [wording]})}")
    plan_rows(tmp_path, [], prompt="{question}\n{choices}\nAnswer:")
    first("plan", tmp_path / "recipe.yaml", *long).mistake(
        "'.shift.wording (1) (", "128 tokens; leave it out, or set train.too_long: drop"
    )


# The models.


def test_top_k_beyond_the_vocabulary(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    first("plan", path, "--set", "knowledge.top_k=5000").mistake("knowledge.top_k", "5000", "300")


def test_tokenizers_that_do_not_match(tmp_path: Path, finished: Finished) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished.run / "teacher", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [token for token, id in vocabulary.items() if id in (40, 50)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = plan(
        tmp_path,
        teacher={"model": {"family": "causal-lm", "checkpoint": str(other)}},
        student={"model": {"family": "causal-lm", "checkpoint": str(finished.run / "teacher")}},
    )
    result.mistake("incompatible tokenizers", "2 of the", "first is 40")


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"config.json": "not json"}])
def test_a_folder_that_is_not_a_checkpoint(tmp_path: Path, content: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    model = {"family": "causal-lm", "checkpoint": "./model"}
    arms = {"fine-tune": {"learn": "labels"}}
    result = plan(tmp_path, student={"model": model}, teacher=None, arms=arms)
    result.mistake(str(folder))


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    model = {"family": "causal-lm", "checkpoint": "./nowhere"}
    plan(tmp_path, student={"model": model}).mistake("student.model.checkpoint", "no folder")


# The run folder.


def test_a_run_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    path = command_line.write_recipe(tmp_path)
    result = first("distill", path, "--run-dir", tmp_path / "file" / "run")
    result.mistake(str(tmp_path / "file" / "run"), "cannot be written", "--run-dir")
    assert first("plan", path, "--run-dir", tmp_path / "file" / "run").code == 0
    for command in ("plan", "distill"):
        first(command, path, "--run-dir", tmp_path / "file").mistake("file: is not a folder")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_run_folder(tmp_path: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    path = command_line.write_recipe(tmp_path)
    result = first("distill", path, "--run-dir", mounted / "run")
    result.mistake("cannot be written", "--run-dir")


@pytest.mark.parametrize("room", [0, 10_000, 90_000])
def test_a_full_disk(
    tmp_path: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = command_line.write_recipe(tmp_path)
    filler = mounted / "filler"
    free = shutil.disk_usage(mounted).free
    filler.write_bytes(b"x" * (free - room))
    monkeypatch.setattr("firstcli.pipeline.plan.check_disk", lambda *_: None)
    command = ("distill", path, "--run-dir", mounted / "run")
    first(*command).mistake(str(mounted / "run"), "o space left on", "run the same")
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", str(mounted)], check=True)
    again = first(*command)
    assert again.code == 0, again.err
    assert {p.name for p in mounted.rglob(".*")} <= {
        "run",
        ".lock",
        ".digests.json",
        ".checks.json",
    }


def test_too_little_room_is_seen_beforehand(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    path = command_line.write_recipe(tmp_path)
    first("plan", path, "--run-dir", tmp_path / "run").mistake("need 327 kB, but 200 kB are free")
    assert first("plan", finished.recipe, "--run-dir", finished.run).code == 0


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    import fcntl

    path = command_line.write_recipe(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        first("distill", path, "--run-dir", run).mistake(f"in use by process {os.getpid()}")
        assert first("plan", path, "--run-dir", run).code == 0
