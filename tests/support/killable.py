"""Commands in separate processes that start at once, to be killed at a chosen moment.

A server that has imported everything forks them, so that each takes no longer than its work.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARD_POSITIONS = 32  # small enough for several shards
PRELOADED = [
    "firstcli.stages.scoring",
    "firstcli.stages.train_model",
    "firstcli.recalibration.diagnostics",
    "firstcli.reporting.page",
    "firstcli.cli",
    "firstcli.pipeline.execute",
    "firstcli.families.scratch",
    "firstcli.tasks.known_world",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "safetensors.torch",
]
STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Moment:
    """When a process is killed: after so much CPU time, or before a step on its files."""

    seconds: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it printed, and how long it took if it came to its end."""

    code: int
    output: str
    seconds: float
    steps: int


def command(args: Sequence[object], run: Path, moment: Moment | None = None) -> Ended:
    """Run `first ARGS --run-dir RUN`, killed with SIGKILL at a moment or left to its end."""
    log, moment = run.with_suffix(".log"), moment or Moment()
    argv = ["first", *map(str, args), "--run-dir", str(run)]
    log.write_text("", "utf-8")  # a process may be killed before it opens its log
    process = _server().Process(target=_child, args=(argv, log, run, moment.step))
    process.start()
    assert process.pid
    while moment.seconds is not None and process.is_alive():
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if time.clock_gettime(_cpu_clock(process.pid)) > moment.seconds:
                process.kill()
                break
        time.sleep(0.002)
    process.join(120)
    assert process.exitcode is not None, "it did not end"
    text, _, numbers = log.read_text("utf-8").rpartition("\0")
    took = json.loads(numbers) if text else {"seconds": 0.0, "steps": 0}
    return Ended(process.exitcode, text or numbers, **took)


def _server() -> Any:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _cpu_clock(pid: int) -> int:
    """Return the clock of another process's CPU time, as clock_getcpuclockid(3) does on Linux."""
    return (~pid << 3) | 2


def _child(argv: list[str], log: Path, run: Path, step: int | None) -> None:
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    from firstcli import cli
    from firstcli.knowledge import store
    from support import blank_figures

    gc.freeze()  # otherwise every collection visits all imported modules
    torch.set_num_threads(1)
    store.SHARD_POSITIONS = SHARD_POSITIONS
    # Otherwise most moments of a whole run would be moments of drawing.
    blank_figures.leave_blank(pytest.MonkeyPatch())
    steps = _counted(str(run), step)
    sys.argv = argv
    try:
        cli.main()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        took = {"seconds": used.ru_utime + used.ru_stime, "steps": len(steps)}
        os.write(1, ("\0" + json.dumps(took)).encode())


def _counted(folder: str, deadly: int | None) -> list[str]:
    """Note every step on files of a folder; die before the step with a number."""
    steps: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event in STEPS or (event == "open" and str(args[0]).startswith(folder)):
            steps.append(event)
            if len(steps) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    return steps
