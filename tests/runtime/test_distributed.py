"""Several processes: the same results, output from one of them, and no waiting forever.

On a CPU, `accelerate launch` starts several processes only with `--multi_gpu`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from firstcli.errors import UserError
from firstcli.knowledge import store
from firstcli.runtime import distributed
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

SHARD_POSITIONS = 32  # small enough for several shards
COMMAND = """
import gc, os, signal, sys
from firstcli import cli
from firstcli.knowledge import shards, store
from firstcli.training import trainer

store.SHARD_POSITIONS = int(os.environ["SHARD_POSITIONS"])
point = os.environ.get("DIE_AT", "")
if point and os.environ.get("RANK") == "1":
    owner, name = {
        "shard": (shards, "write_shard"), "step": (trainer._Progress, "on_step_end")
    }[point.split()[0]]
    real, left = getattr(owner, name), int(point.split()[1])

    def deadly(*args, **kwargs):
        global left
        real(*args, **kwargs)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)
if "FSDP_VERSION" in os.environ:
    # Accelerate shards weights only on GPUs, but PyTorch can on CPUs: pretend to have GPUs.
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FSDPModule

    choose = PartialState._prepare_backend
    PartialState._prepare_backend = lambda *args: (choose(*args)[0], DistributedType.MULTI_GPU)
    gather = trainer.PositionTrainer.gathered_weights

    def gathered_weights(self):
        assert isinstance(self.model, FSDPModule)
        ours = sum(weight.to_local().numel() for weight in self.model.parameters())
        found = gather(self)
        if found:
            assert ours < 0.6 * sum(weight.numel() for weight in found.values())
            print("weights were sharded")
        return found

    trainer.PositionTrainer.gathered_weights = gathered_weights
gc.freeze()  # otherwise every collection visits all imported modules
sys.exit(cli.main())
"""


Ended = subprocess.CompletedProcess[str]


def launch(folder: Path, *args: object, **env: str) -> Ended:
    """Run a command in two processes under `accelerate launch`."""
    script = folder / "command.py"
    script.write_text(COMMAND, "utf-8")
    options = ["--num_processes", 2, "--num_machines", 1, "--main_process_port", 0]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", *options]
    return subprocess.run(
        [sys.executable, *map(str, (*launcher, script, *args))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SHARD_POSITIONS": str(SHARD_POSITIONS), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def with_teacher(finished: Finished, folder: Path) -> Path:
    """Return a run folder in which only the teacher is done."""
    run = finished.copied_to(folder)
    for name in ("knowledge", "calibration", "students", "eval", "report"):
        shutil.rmtree(run / name)
    return run


def losses(run: Path, arm: str) -> list[float]:
    lines = (run / "students" / arm / "training_log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def knowledge_of(run: Path) -> dict[str, bytes]:
    found = command_line.contents(run / "knowledge", but=["manifest.json"])
    return {name: data for name, data in found.items() if name.endswith(".parquet")}


def test_two_processes_end_like_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte-identical knowledge, equal loss curves and answers, and output only from rank 0."""
    two = with_teacher(finished, tmp_path / "two")
    one = with_teacher(finished, tmp_path / "one")
    command = ("eval", finished.recipe, "--json", "--run-dir")
    monkeypatch.setattr(store, "SHARD_POSITIONS", SHARD_POSITIONS)
    alone = first(*command, one)
    assert alone.code == 0, alone.err
    shared = launch(tmp_path, *command, two)
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert len(knowledge_of(one)) == 7
    assert knowledge_of(two) == knowledge_of(one)
    for arm in ("fine-tune", "distill", "first"):
        # A student that starts as its teacher has a divergence of 1e-5, close to float32 rounding.
        assert losses(two, arm) == pytest.approx(losses(one, arm), rel=1e-4, abs=1e-6)
    result, expected = json.loads(shared.stdout)["result"], alone.json["result"]
    for key, found in expected.items():
        assert result[key]["nll"] == pytest.approx(found["nll"], rel=1e-4)
    manifest = json.loads((two / "students" / "first" / "manifest.json").read_text("utf-8"))
    assert manifest["versions"]["processes"] == "2"
    assert len(re.findall(r"distill first +\d+ samples", shared.stderr)) == 1
    assert not [path for path in two.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert command_line.pending(finished.recipe, "--run-dir", two) == {"report"}


@pytest.mark.slow
def test_sharded_weights_change_nothing(finished: Finished, tmp_path: Path) -> None:
    """FSDP on two processes: the loss curve of one process, and a folder that can be loaded.

    This is FSDP 2; the deprecated FSDP 1 crashes when it gathers weights on CPUs.
    """
    from transformers import AutoModelForCausalLM

    run = with_teacher(finished, tmp_path)
    shared = launch(
        tmp_path,
        *("distill", finished.recipe, "--run-dir", run, "--arm", "first"),
        ACCELERATE_TORCH_DEVICE="cpu",
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
    )
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert "weights were sharded" in shared.stdout
    expected = losses(finished.run, "first")
    assert losses(run, "first") == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found = AutoModelForCausalLM.from_pretrained(run / "students" / "first")
    alone = AutoModelForCausalLM.from_pretrained(finished.run / "students" / "first")
    for one, other in zip(found.parameters(), alone.parameters(), strict=True):
        assert float((one - other).detach().abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("die_at", ["shard 2", "step 3"])
def test_one_process_dying_ends_the_other_and_a_rerun_resumes(
    finished: Finished, tmp_path: Path, die_at: str
) -> None:
    run = with_teacher(finished, tmp_path)
    command = ("distill", finished.recipe, "--arm", "distill", "--run-dir", run)
    steps = ("--set", "trainer.save_strategy=steps", "--set", "trainer.save_steps=1")
    died = launch(tmp_path, *command, *steps, DIE_AT=die_at)
    assert died.returncode != 0
    assert distributed.LOST in died.stderr  # after a closed connection, or stopped by the launcher
    assert not (run / "students" / "distill").exists()
    again = launch(tmp_path, *command, *steps)
    assert again.returncode == 0, again.stderr[-3000:]
    resumed = "resuming after" if die_at.startswith("shard") else "resuming after step"
    assert resumed in again.stdout
    assert first(*command).code == 0
    assert "everything is up to date" in first(*command).out


@pytest.mark.slow
def test_a_mistake_is_printed_once(finished: Finished, tmp_path: Path) -> None:
    """In the recipe, which all processes read, and in the plan, which only the first makes."""
    for overrides in (["seed=x"], ["train.validation=0", "knowledge.top_k=4"]):
        sets = [part for one in overrides for part in ("--set", one)]
        failed = launch(tmp_path, "distill", finished.recipe, "--run-dir", tmp_path / "run", *sets)
        assert failed.returncode != 0
        errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and overrides[0].split("=")[0] in errors[0], failed.stderr


# A single process.


def test_with_one_process_everything_is_an_ordinary_call() -> None:
    assert distributed.is_first() and distributed.count() == 1
    assert distributed.by_first(lambda: 5) == 5
    assert distributed.gathered("x") == ["x"]
    distributed.wait()
    with pytest.raises(ZeroDivisionError), distributed.together():
        distributed.by_first(lambda: 1 / 0)


def test_only_a_lost_connection_means_a_lost_process() -> None:
    lost = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    ours = RuntimeError("NCCL error: Duplicate GPU detected")
    assert distributed._is_lost(lost) and not distributed._is_lost(ours)


def test_processes_without_a_launcher_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """WORLD_SIZE was set by hand, so there are no other processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    path = command_line.write_recipe(tmp_path)
    failed = first("distill", path, "--run-dir", tmp_path / "run")
    failed.mistake("process 0 of 2 cannot join the others", "accelerate launch")


def test_an_error_of_the_first_process_keeps_its_message() -> None:
    def wrong() -> None:
        raise UserError("reason")

    with pytest.raises(UserError, match="reason"):
        distributed.by_first(wrong)


def test_with_one_process_signal_handlers_stay() -> None:
    before: Sequence[object] = (signal.getsignal(signal.SIGTERM),)
    with distributed.together():
        pass
    assert (signal.getsignal(signal.SIGTERM),) == tuple(before)
