"""Kills, Ctrl-C, full disks and NaN: the same command again finishes, and with the same result."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from tiny import Finished, first

pytest_plugins = ["tiny_runs"]

KILLER = """
import os, signal, sys
from firstcli import cli, knowledge, training

point, count = sys.argv.pop(1), int(sys.argv.pop(1))
owner, name = {
    "step": (training._Progress, "on_step_end"),
    "shard": (knowledge, "write_shard"),
}[point]
real = getattr(owner, name)
knowledge.SHARD_POSITIONS = 32  # 16 samples


def deadly(*args, **kwargs):
    global count
    real(*args, **kwargs)
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)


setattr(owner, name, deadly)
sys.exit(cli.main())
"""
THREE_EPOCHS = {**tiny.TRAINING, "epochs": 3}  # five steps and a checkpoint each


def long_recipe(folder: Path) -> Path:
    return tiny.write_recipe(
        folder,
        teacher={"model": tiny.MODEL, "finetune": THREE_EPOCHS},
        student={"model": tiny.MODEL, "training": THREE_EPOCHS},
    )


def results(run: Path) -> dict[str, bytes]:
    """Return what counts of a run: models, tokenizers, knowledge, what was fitted."""
    ends = (".safetensors", ".parquet", "tokenizer.json", "calibration/first.json")
    return {name: data for name, data in tiny.contents(run).items() if name.endswith(ends)}


def test_a_run_that_is_killed_thrice_ends_like_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = long_recipe(tmp_path)
    command = ("distill", path, "--arm", "first", "--run-dir")
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    for kill, before in (
        (("step", 8), "finetune ..."),
        (("shard", 2), "fine-tuning the teacher: resuming after step 5"),
        (("step", 12), "extract train: going on after 32 finished samples"),
    ):
        killed = tiny.finish(tiny.python(KILLER, *kill, *command, run))
        assert killed.code == -signal.SIGKILL, killed.err
        assert before in killed.out
    monkeypatch.setattr("firstcli.knowledge.SHARD_POSITIONS", 32)
    last = first(*command, run)
    assert last.code == 0, last.err
    assert "finetune ..." not in last.out and "extract train ..." not in last.out
    assert "distilling first: resuming after step 10" in last.out
    assert first(*command, undisturbed).code == 0
    assert len(list((run / "knowledge" / "train").glob("shard-*.parquet"))) == 5
    assert results(run) == results(undisturbed)
    assert {p.name for p in run.rglob(".*")} == {".lock", ".digests.json"}
    assert not list(run.rglob("checkpoint*")) and not list(run.rglob("*.tmp"))


class Killed(BaseException):
    """Stands for the end of the process."""


def die(*_: object, **__: object) -> Any:
    raise Killed


@pytest.mark.parametrize("epochs", [0.5, 1, 2.5])
def test_training_that_ended_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    """Die after the last checkpoint, before the model is saved."""
    from firstcli.stages import finetune

    path = tiny.write_recipe(tmp_path)
    command = ("finetune", path, "--set", f"teacher.finetune.epochs={epochs}", "--run-dir")
    assert first(*command, tmp_path / "undisturbed").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "save", die)
        with pytest.raises(Killed):
            first(*command, tmp_path / "run")
    again = first(*command, tmp_path / "run")
    assert again.code == 0, again.err
    assert "resuming after step" in again.out
    assert results(tmp_path / "run") == results(tmp_path / "undisturbed")


def test_extraction_goes_on_after_the_last_whole_shard(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstcli import knowledge
    from firstcli.stages import extract

    run = finished.copied_to(tmp_path)
    undisturbed = tiny.copy_run(run, tmp_path / "undisturbed")
    monkeypatch.setattr(knowledge, "SHARD_POSITIONS", 40)  # 20 samples
    command = ("extract", finished.recipe, "--force", "--run-dir")
    assert first(*command, undisturbed).code == 0
    written: list[Path] = []

    def twice(path: Path, *args: Any, real: Any = knowledge.write_shard) -> None:
        if len(written) == 2:
            path.with_suffix(".tmp").write_text("half")
            raise Killed
        real(path, *args)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(knowledge, "write_shard", twice)
        with pytest.raises(Killed):
            first(*command, run)
    asked: list[int] = []

    def noted(logits_at: Any, rows: Any, *args: Any, real: Any = extract.top_k_of) -> Any:
        asked.append(len(rows))
        return real(logits_at, rows, *args)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "top_k_of", noted)
        again = first(*command, run)
    assert "extract train: going on after 40 finished samples" in again.out
    assert sum(asked) == 26 + 30  # what is left of the training part, and the validation part
    assert results(run) == results(undisturbed)
    assert not list(run.rglob("*.tmp"))


SLOW_TRAINING = """
import sys, time
from firstcli import training
from firstcli.cli import main
fast = training._Progress.on_step_end
def slow(self, args, state, control, **rest):
    time.sleep(0.3)  # so that the signal meets a training, however busy the machine is
    fast(self, args, state, control, **rest)
training._Progress.on_step_end = slow
sys.exit(main())
"""


def test_ctrl_c_ends_with_130_and_the_same_command_finishes(tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path)
    command = ("finetune", path, "--set", "teacher.finetune.epochs=20", "--run-dir")
    process = tiny.python(SLOW_TRAINING, *command, tmp_path / "run")
    work = tmp_path / "run" / ".teacher.partial" / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(work.glob("*/complete")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    result = tiny.finish(process)
    assert result.code == 130, result.err
    assert result.err == "interrupted; finished work is kept, run the same command again\n"
    assert not (tmp_path / "run" / "teacher").exists()
    again = first(*command, tmp_path / "run")
    assert again.code == 0, again.err
    assert "fine-tuning the teacher: resuming after step" in again.out


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    run = finished.copied_to(tmp_path)
    command = ("report", finished.recipe, "--run-dir", run, "--set", "knowledge.top_k=4")
    before = tiny.contents(run / "knowledge" / "train")
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        first(*command).mistake(str(run), "no space left on the disk", "run the same command")
    assert tiny.contents(run / "knowledge" / "train") == before
    assert first("extract", *command[1:]).code == 0


def test_a_bug_keeps_its_traceback(finished: Finished, tmp_path: Path) -> None:
    bug = "import firstcli.pipeline as p, sys; p.execute = lambda *a: 1 / 0\n"
    code = bug + "from firstcli.cli import main; sys.exit(main())"
    result = tiny.finish(tiny.python(code, "report", finished.recipe, "--run-dir", tmp_path))
    assert result.code == 1
    assert "Traceback" in result.err and "ZeroDivisionError" in result.err


# NaN.


@pytest.fixture
def broken_teacher(finished: Finished, tmp_path: Path) -> Path:
    """A checkpoint with NaN among its weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(finished.run / "teacher", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_in_the_teacher_is_told_before_anything_learns_from_it(
    broken_teacher: Path, finished: Finished, tmp_path: Path
) -> None:
    path = tiny.write_recipe(
        tmp_path,
        teacher={"model": {"family": "causal-lm", "checkpoint": str(broken_teacher)}},
        student={"model": {"family": "causal-lm", "checkpoint": str(finished.run / "teacher")}},
        arms={"distill": {}},
    )
    command = (path, "--run-dir", tmp_path / "run")
    first("distill", *command).mistake("extract train", "the teacher's output is not finite", "'")
    assert not (tmp_path / "run" / "knowledge" / "train").exists()
    assert not (tmp_path / "run" / "students").exists()
    first("eval", *command, "--arm", "teacher").mistake("eval known-world/teacher", "NaN")


def test_nan_in_the_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path)
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
