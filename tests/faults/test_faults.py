"""Kills, Ctrl-C, clocks and NaN: rerunning the command gives the same result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import command_line
from support.command_line import Finished, first
from workspace.test_artifacts import Killed

pytest_plugins = ["support.finished_runs"]


def results(run: Path) -> dict[str, bytes]:
    """Return the results of a run: models, tokenizers, knowledge, fitted recalibrators."""
    ends = (".safetensors", ".parquet", "tokenizer.json", "calibration/first.json")
    return {name: data for name, data in command_line.contents(run).items() if name.endswith(ends)}


def die(*_: object, **__: object) -> Any:
    raise Killed


@pytest.mark.parametrize("epochs", [0.5, 1, 2.5])
def test_training_that_ended_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    """Die after the last checkpoint, before the saved model is complete."""
    from firstcli.training import trainer

    path = command_line.write_recipe(tmp_path)
    command = ("finetune", path, "--set", f"teacher.finetune.epochs={epochs}", "--run-dir")
    assert first(*command, tmp_path / "undisturbed").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_log", die)
        with pytest.raises(Killed):
            first(*command, tmp_path / "run")
    steps = {0.5: 3, 1: 5, 2.5: 13}[epochs]
    place = f"step {steps} of {steps}"
    planned = first("plan", *command[1:], tmp_path / "run", "--json").json["units"]
    assert {unit["unit"]: unit["resumes"] for unit in planned}["finetune"] == place
    again = first(*command, tmp_path / "run")
    assert again.code == 0, again.err
    assert f"finetune resumes at {place}" in again.out
    assert "resuming after step" in again.out
    assert results(tmp_path / "run") == results(tmp_path / "undisturbed")


def test_extraction_resumes_after_the_last_whole_shard(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstcli.knowledge import shards, store
    from firstcli.stages import scoring

    run = finished.copied_to(tmp_path)
    undisturbed = command_line.copy_run(run, tmp_path / "undisturbed")
    monkeypatch.setattr(store, "SHARD_POSITIONS", 40)  # 20 samples
    command = ("extract", finished.recipe, "--force", "--run-dir")
    assert first(*command, undisturbed).code == 0
    written: list[Path] = []

    def twice(path: Path, *args: Any, real: Any = shards.write_shard) -> None:
        if len(written) == 2:
            path.with_name(f".{path.name}.tmp").write_text("half")
            raise Killed
        real(path, *args)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", twice)
        with pytest.raises(Killed):
            first(*command, run)
    scored: list[int] = []

    def noted(logits_at: Any, rows: Any, *args: Any, real: Any = scoring.top_k_of) -> Any:
        scored.append(len(rows) if args[0] == 5 else 0)  # not the ranks beyond the store's
        return real(logits_at, rows, *args)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "top_k_of", noted)
        again = first(*command, run)
    assert "extract train resumes at shard 2 of 4" in again.out
    assert "extract train: resuming after 40 finished samples" in again.out
    assert sum(scored) == 26 + 30  # the rest of the training part, and the validation part
    assert results(run) == results(undisturbed)
    assert not list(run.rglob("*.tmp"))


SLOW_TRAINING = """
import signal, sys, time
from firstcli.training import trainer
from firstcli.cli import main
fast = trainer._Progress.on_step_end
def slow(self, args, state, control, **rest):
    # After the first checkpoints, so slow that the signal arrives during training.
    time.sleep(0.3 if state.global_step < 10 else 10)
    fast(self, args, state, control, **rest)
trainer._Progress.on_step_end = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
sys.exit(main())
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], tuple[object, ...]]]:
    """A slow training that has saved a checkpoint, and its command."""
    run = tmp_path / "run"
    epochs = ("--set", "teacher.finetune.epochs=60")
    command = ("finetune", command_line.write_recipe(tmp_path), *epochs, "--run-dir", run)
    process = command_line.python(SLOW_TRAINING, *command)
    deadline = time.monotonic() + 60
    while not list((run / ".teacher.partial").glob("checkpoints/*/complete")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    yield process, command
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_ctrl_c_on_the_first_keeps_its_work(
    training: tuple[subprocess.Popen[str], tuple[object, ...]], tmp_path: Path
) -> None:
    process, command = training
    second = command_line.finish(command_line.start(*command))
    message = (f"in use by process {process.pid}", "wait for it", "--run-dir")
    second.mistake(str(tmp_path / "run"), *message)
    assert first("plan", *command[1:]).code == 0  # commands that only read need not wait
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    result = command_line.finish(process)
    assert result.code == 130, result.err
    assert result.err == "interrupted; finished work is kept, run the same command again\n"
    assert not (tmp_path / "run" / "teacher").exists()
    again = first(*command)
    assert again.code == 0, again.err
    assert "fine-tuning the teacher: resuming after step" in again.out


def test_a_bug_keeps_its_traceback(finished: Finished, tmp_path: Path) -> None:
    bug = "import firstcli.pipeline.execute as p, sys; p.execute = lambda *a: 1 / 0\n"
    code = bug + "from firstcli.cli import main; sys.exit(main())"
    result = command_line.finish(
        command_line.python(code, "report", finished.recipe, "--run-dir", tmp_path)
    )
    assert result.code == 1
    assert "Traceback" in result.err and "ZeroDivisionError" in result.err


# The clock.


def test_a_clock_that_went_back_and_files_of_the_future_change_nothing(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    for number, path in enumerate(sorted(run.rglob("*"))):
        os.utime(path, (4e9, 4e9) if number % 2 else (1e9, 1e9))
    result = first("report", finished.recipe, "--run-dir", run)
    assert result.code == 0 and "everything is up to date" in result.out
    assert work == []


def test_a_clock_that_runs_backwards_while_work_is_done(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [4e9]

    def backwards() -> float:
        now[0] -= 60.0
        return now[0]

    def backwards_ns() -> int:
        return int(backwards() * 1e9)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        patch.setattr(time, "time_ns", backwards_ns)
        done = first("eval", finished.recipe, "--arm", "first", "--run-dir", run)
    assert done.code == 0, done.err
    assert results(run).items() <= results(finished.run).items()
    for path in run.rglob("*manifest.json"):
        assert 0 <= json.loads(path.read_text("utf-8"))["seconds"] < 1000
    assert not re.search(r"-[0-9.]+(/s| s\b)", done.out)
    again = first("eval", finished.recipe, "--arm", "first", "--run-dir", run)
    assert "everything is up to date" in again.out


# NaN and infinity.


def spoilt_teacher(finished: Finished, folder: Path, weight: str, row: int, value: float) -> Path:
    """Make a checkpoint with weights that are not finite, and with an untied output layer."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(finished.run / "teacher", folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights[weight][row] = value
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def of_checkpoint(folder: Path, finished: Finished, tmp_path: Path) -> Path:
    return command_line.write_recipe(
        tmp_path,
        teacher={"model": {"family": "causal-lm", "checkpoint": str(folder)}},
        student={"model": {"family": "causal-lm", "checkpoint": str(finished.run / "teacher")}},
        arms={"distill": {}},
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_is_reported_before_anything_learns_from_it(
    finished: Finished, tmp_path: Path, value: float
) -> None:
    folder = spoilt_teacher(finished, tmp_path / "model", "model.norm.weight", 3, value)
    command = (of_checkpoint(folder, finished, tmp_path), "--run-dir", tmp_path / "run")
    message = "the teacher's output is not finite for 66 samples, such as 'train-"
    first("distill", *command).mistake("extract train", message, "check its weights")
    assert not (tmp_path / "run" / "knowledge" / "train").exists()
    assert not (tmp_path / "run" / "students").exists()
    first("eval", *command, "--arm", "teacher").mistake("eval known-world/teacher", "NaN")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_sample_among_many_that_is_not_finite_is_named(
    finished: Finished, tmp_path: Path, value: float
) -> None:
    """Only this sample contains the token whose embedding is not finite."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished.run / "teacher")
    rare = tokenizer("§", add_special_tokens=False).input_ids[-1]
    folder = spoilt_teacher(finished, tmp_path / "model", "model.embed_tokens.weight", rare, value)
    rows = [
        *command_line.sums(40),
        {**command_line.sums(1, first=40)[0], "id": "rare", "question": "§ + §?"},
    ]
    command_line.write_rows(tmp_path / "data" / "train.jsonl", rows)
    task = command_line.of_files(tmp_path / "data")
    path = command_line.write_recipe(
        tmp_path,
        train={"task": task, "validation": 0},
        evaluate=[{"task": task, "split": "train"}],
        teacher={"model": {"family": "causal-lm", "checkpoint": str(folder)}},
        student={"model": {"family": "causal-lm", "checkpoint": str(finished.run / "teacher")}},
        arms={"distill": {}},
    )
    command = (path, "--run-dir", tmp_path / "run")
    message = "the teacher's output is not finite for 1 samples, such as 'rare'"
    first("extract", *command).mistake("extract train", message)
    first("eval", *command, "--arm", "teacher").mistake("1 of 41 questions: 'rare'")


def test_nan_in_the_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    command = ["distill", path, "--arm", "fine-tune", "--run-dir", tmp_path / "run"]
    for override in ("student.training.epochs=3", "trainer.save_strategy=steps"):
        command += ["--set", override]
    command += ["--set", "trainer.save_steps=1", "--set", "trainer.max_grad_norm=0"]
    result = first(*command, "--set", "student.training.learning_rate=1e19")
    result.mistake("distill fine-tune", "of 15", "last good checkpoint is kept", "learning rate")
    work = tmp_path / "run" / "students" / ".fine-tune.partial"
    assert len(list(work.glob("checkpoints/*/complete"))) == 1
    assert not (tmp_path / "run" / "students" / "fine-tune").exists()
    assert first(*command).code == 0
