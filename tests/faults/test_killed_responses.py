"""`kill -9` and Ctrl-C while the teacher writes: no response is lost, and none changes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from firstcli.stages.response_cache import CACHE
from firstcli.workspace import responses
from support import command_line, killable
from support.command_line import MODEL, WORLD, copy_run, first, write_rows
from support.killable import Moment

PROMPTS = 60
LEARNED = {"epochs": 40, "learning_rate": 1e-2, "batch_size": 8}
SLOW_WRITING = """
import signal, sys, time
from firstcli.stages import writing
from firstcli.cli import main
fast, batches = writing.append_lines, []
def slow(path, lines):
    fast(path, lines)
    batches.append(lines)
    time.sleep(60 if len(batches) == 2 else 0)  # so that the signal arrives in the middle
writing.append_lines = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
sys.exit(main())
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    texts = [f"Say {i} and then {'yes' if i % 2 else 'no'}:" for i in range(40 + PROMPTS)]
    rows = [{"prompt": text, "response": f" {text[-4:-1].strip()}"} for text in texts]
    rows[40:] = [{**row, "response": ""} for row in rows[40:]]
    path = write_rows(folder / "train.jsonl", rows)
    task = {"name": "instruction", "options": {"path": str(path)}}
    return command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.2},
        evaluate=[{"task": WORLD}],
        teacher={"model": MODEL, "finetune": LEARNED},
        knowledge={
            "responses": "teacher",
            "sampling": {"temperature": 1.0, "max_new_tokens": 12},
        },
        arms={"distill": {}},
    )


@pytest.fixture(scope="module")
def taught(recipe: Path) -> Path:
    """A run whose teacher is trained and has written nothing yet."""
    run = recipe.parent / "taught"
    result = first("finetune", recipe, "--run-dir", run)
    assert result.code == 0, result.err
    return run


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, taught: Path) -> tuple[killable.Ended, bytes]:
    """How a run ended that nobody killed, and its responses."""
    run = copy_run(taught, recipe.parent / "undisturbed")
    ended = killable.command(("respond", recipe), run)
    assert ended.code == 0, ended.output
    return ended, written(run)


def written(run: Path) -> bytes:
    return (run / "responses" / responses.FILE_NAME).read_bytes()


def kept(run: Path) -> list[str]:
    """Return the complete lines of the cache."""
    texts = [path.read_text("utf-8") for path in (run / CACHE).glob("*/*.jsonl")]
    return [line for text in texts for line in text.split("\n")[:-1]]


def test_kills_in_one_run_after_another(
    recipe: Path, taught: Path, undisturbed: tuple[killable.Ended, bytes], tmp_path: Path
) -> None:
    """Each rerun is killed again, until one is left to its end."""
    whole, expected = undisturbed
    run = copy_run(taught, tmp_path / "run")
    kills, before = 0, list[str]()
    for share in (0.9, 0.6, 0.8):
        moments = (Moment(step=int(share * whole.steps)), Moment(seconds=share * whole.seconds))
        ended = killable.command(("respond", recipe), run, moments[kills % 2])
        assert ended.code in (0, -9), ended.output
        kills += ended.code == -9
        assert kept(run)[: len(before)] == before
        before = kept(run)
    last = killable.command(("respond", recipe), run)
    assert last.code == 0, last.output
    assert kills
    assert written(run) == expected
    assert len(kept(run)) == PROMPTS


def test_ctrl_c_keeps_what_is_written(
    recipe: Path, taught: Path, undisturbed: tuple[killable.Ended, bytes], tmp_path: Path
) -> None:
    run = copy_run(taught, tmp_path / "run")
    process = command_line.python(SLOW_WRITING, "respond", recipe, "--run-dir", run)
    deadline = time.monotonic() + 60
    while len(kept(run)) < 2 * 16:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    result = command_line.finish(process)
    assert result.code == 130, result.err
    assert result.err == "interrupted; finished work is kept, run the same command again\n"
    shown = first("respond", recipe, "--run-dir", run, "--dry-run")
    assert f"resumes at response 32 of {PROMPTS}" in " ".join(shown.out.split())
    again = first("respond", recipe, "--run-dir", run)
    assert again.code == 0, again.err
    assert f"32 of {PROMPTS} responses need not be written again" in again.out
    assert written(run) == undisturbed[1]
