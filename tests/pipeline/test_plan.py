"""What a plan remembers for the next command, and mistakes, which come before the table."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstcli.data.joint import JointEncoder
from firstcli.pipeline.plan import PlanRow, summary
from firstcli.stages import encoded
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Unit
from support import command_line
from support.command_line import Result, first

ROWS = command_line.sums(40)
LABELS = {"fine-tune": {"learn": "labels"}}


@pytest.fixture
def recipe(tmp_path: Path, pico_folder: Path) -> Path:
    """A recipe over files, 40 rows to train on and 20 to evaluate on."""
    model = {"family": "causal-lm", "checkpoint": str(pico_folder)}
    command_line.write_rows(tmp_path / "data" / "train.jsonl", ROWS)
    command_line.write_rows(tmp_path / "data" / "test.jsonl", command_line.sums(20, 60))
    task = command_line.of_files(tmp_path / "data")
    train = {"task": task, "validation": 0.3}
    return command_line.write_recipe(
        tmp_path,
        train=train,
        evaluate=[{"task": task}],
        teacher={"model": model, "finetune": command_line.TRAINING},
        student={"model": model, "training": command_line.TRAINING},
    )


@pytest.fixture
def times_encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of samples of each set that is encoded; sets of every size are kept in files."""
    counts: list[int] = []
    real = JointEncoder.__call__

    def counted(self: JointEncoder, samples: Any) -> Any:
        whole = list(samples)
        counts.append(len(whole))
        return real(self, whole)

    monkeypatch.setattr(JointEncoder, "__call__", counted)
    monkeypatch.setattr(encoded, "FEW", 1)
    yield counts


# Tokens and checks.


def test_teacher_and_student_share_the_tokens(recipe: Path, times_encoded: list[int]) -> None:
    assert first("plan", recipe, "--run-dir", recipe.parent / "run").code == 0
    # the parts of the training split, the evaluation, and the example
    assert len(times_encoded) == 4 and sum(times_encoded) == 61


def test_a_second_plan_checks_nothing_again(recipe: Path, times_encoded: list[int]) -> None:
    run = recipe.parent / "run"
    before = first("plan", recipe, "--run-dir", run, "--json")
    assert {path.name for path in run.iterdir()} == {".checks.json", ".digests.json", ".tokens"}
    times_encoded.clear()
    again = first("plan", recipe, "--run-dir", run, "--json")
    assert again.json == before.json
    assert not times_encoded
    row = {**ROWS[0], "question": "New?", "id": "new"}
    command_line.write_rows(recipe.parent / "data" / "train.jsonl", [*ROWS, row])
    assert first("plan", recipe, "--run-dir", run).code == 0
    assert sum(times_encoded) < 41  # one part has changed, the other parts are kept


def test_work_uses_the_tokens_that_the_plan_has_kept(
    recipe: Path, times_encoded: list[int]
) -> None:
    run, fresh = recipe.parent / "run", recipe.parent / "fresh"
    assert first("plan", recipe, "--run-dir", run).code == 0
    times_encoded.clear()
    distill = ("distill", recipe, "--arm", "fine-tune")
    assert first(*distill, "--run-dir", run).code == 0
    assert sum(times_encoded) == 1  # the answers of firstcli.json
    assert first(*distill, "--run-dir", fresh).code == 0
    assert times_encoded
    weights = "students/fine-tune/model.safetensors"
    assert (run / weights).read_bytes() == (fresh / weights).read_bytes()


def test_damaged_and_foreign_token_files_are_ignored(
    recipe: Path, times_encoded: list[int]
) -> None:
    run = recipe.parent / "run"
    assert first("plan", recipe, "--run-dir", run).code == 0
    train, validation = sorted(
        path for path in (run / ".tokens").iterdir() if not path.name.startswith("evaluation")
    )
    content = bytearray(train.read_bytes())
    content[len(content) // 3] ^= 1
    train.write_bytes(content)
    validation.write_bytes(next((run / ".tokens").glob("evaluation-*")).read_bytes())
    times_encoded.clear()
    (run / ".checks.json").unlink()
    assert first("plan", recipe, "--run-dir", run).code == 0
    assert sum(times_encoded) == 41  # with the example of the plan


# The plan in words.


def row(key: str, reason: str = "", **about: Any) -> PlanRow:
    stage = key.partition(" ")[0]
    return PlanRow(Unit(key, stage, Artifact(Path(key), True)), not reason, reason, **about)


def test_a_plan_in_a_sentence_with_reasons_and_places() -> None:
    changed = "student.training.epochs changed (1.0 -> 2.0)"
    rows = [
        *(row("finetune"), row("extract train"), row("extract validation"), row("calibrate first")),
        row("distill first", changed, resumes="step 140 of 840"),
        *(row("distill a", changed), row("distill b", "not run yet")),
        row("report", "after distill first"),
    ]
    assert summary(rows) == (
        "8 units: 4 up to date; will run distill (3), report",
        [f"distill (2): {changed}", "distill first resumes at step 140 of 840"],
    )
    late = "after finetune, if its result changes"
    rows = [row("finetune", "--force"), *(row(f"eval {name}", late, depends=True) for name in "ab")]
    assert summary(rows) == (
        "3 units: will run finetune, and eval (2) if results change",
        ["finetune: --force"],
    )
    assert summary([row("finetune", "not run yet")]) == ("1 unit: will run finetune", [])


def test_a_plan_names_few_reasons() -> None:
    rows = [row(f"distill {i}", f"key{i} changed") for i in range(5)]
    _, phrases = summary(rows)
    assert phrases == [*(f"distill {i}: key{i} changed" for i in range(3)), "..."]


def test_the_whole_table_is_shown_by_plan_and_on_request(recipe: Path) -> None:
    run = ("--run-dir", recipe.parent / "run")
    short = first("report", recipe, *run, "--dry-run").out
    assert "estimate" not in short
    assert "units: will run finetune, extract (2), calibrate first" in short
    for shown in (
        first("plan", recipe, *run).out,
        first("eval", recipe, *run, "--dry-run", "-v").out,
    ):
        assert "estimate" in shown and "will run: not run yet" in shown


def test_every_unit_is_one_line_in_words_and_more_on_request(recipe: Path) -> None:
    run = ("--run-dir", recipe.parent / "run", "--set", "teacher.finetune.epochs=0.5")
    shown = first("extract", recipe, *run).out.splitlines()
    lines = [line for line in shown if line.startswith("✓")]
    assert len(lines) == 3 and lines[0].startswith("✓ finetune   31 samples · 1 step · loss ")
    assert re.fullmatch(
        r"✓ extract train        \d+ positions · [\d.]+ kB · top 5 hold \d+\.\d % · "
        r"teacher right \d+\.\d %, says \d+\.\d %(   .* s)?",
        lines[1],
    )
    assert not any("mean kl" in line for line in shown)
    verbose = first("extract", recipe, *run, "--force", "--verbose").out
    assert "mean kl" in verbose and "bytes per position" in verbose
    fitted = first("calibrate", recipe, *run).out
    assert re.search(r"✓ calibrate first   temperature-scaling · T = .* · ECE .* → .* · ", fitted)


# Mistakes.


def both(recipe: Path, *args: object) -> tuple[Result, Result]:
    """Return what two commands say about a new run folder."""
    fresh = ("--run-dir", recipe.parent / "fresh")
    return first("plan", recipe, *fresh, *args), first("distill", recipe, *fresh, *args)


def test_mistakes_come_before_the_table_in_new_and_existing_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, start in (("train", 0), ("test", 20)):
        command_line.write_rows(data / f"{split}.jsonl", command_line.sums(20, start))
    task = command_line.of_files(data)
    recipe = command_line.write_recipe(
        tmp_path, train={"task": task}, evaluate=[{"task": task}], arms=LABELS, teacher=None
    )
    existing = ("--run-dir", tmp_path / "existing")
    assert first("distill", recipe, *existing).code == 0
    for split in ("train", "test"):
        command_line.write_rows(data / f"{split}.jsonl", [{"question": "?", "answer": "A"}])
    results = [*both(recipe), first("plan", recipe, *existing), first("distill", recipe, *existing)]
    assert {result.code for result in results} == {2}
    train, test = (f"error: {data / split}.jsonl:1:" for split in ("train", "test"))
    for result in results[::2]:  # distill needs no evaluation
        for error, place in zip(result.errors, (train, test), strict=True):
            assert error.startswith(place)
    for result in results[1::2]:
        result.mistake(str(data / "train.jsonl"))
    assert not any("will run" in result.out for result in results)


@pytest.fixture
def framed_folder(tmp_path: Path, pico_folder: Path) -> Path:
    """The pico model with a tokenizer that puts `<pad>` in front of every text, as a BOS."""
    folder = tmp_path / "framed"
    shutil.copytree(pico_folder, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    }
    file.write_text(json.dumps(content), "utf-8")
    return folder


def with_prompt(folder: Path, checkpoint: Path, prompt: str, response: str = " {answer}") -> Path:
    """Write a recipe with two evaluations, whose prompts all begin alike."""
    for start, name in ((0, "train"), (20, "test"), (40, "dev")):
        command_line.write_rows(folder / "data" / f"{name}.jsonl", command_line.sums(20, start))
    task = command_line.of_files(folder / "data", prompt=prompt, response=response)
    model = {"family": "causal-lm", "checkpoint": str(checkpoint)}
    evaluate = [{"task": task, "name": "a"}, {"task": task, "name": "b", "split": "validation"}]
    return command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=evaluate,
        teacher={"model": model, "finetune": command_line.TRAINING},
        student={"model": model, "training": command_line.TRAINING},
    )


def test_one_cause_is_one_message(tmp_path: Path, pico_folder: Path) -> None:
    """A border in the wrong place meets both roles, both parts and both evaluations."""
    recipe = with_prompt(tmp_path, pico_folder, "{question}\n{choices}\nAnswer: ", "({answer}")
    message = first("plan", recipe).mistake(
        "train.task (train part, teacher's tokenizer)", "crosses the border", "move the border"
    )
    assert "the same in" in message
    assert all(place in message for place in ("validation part", "evaluate 'a'", "evaluate 'b'"))


def test_a_doubled_bos_is_an_error_by_default(tmp_path: Path, framed_folder: Path) -> None:
    recipe = with_prompt(tmp_path, framed_folder, "<pad>{question}\n{choices}\nAnswer:")
    first("plan", recipe).mistake(
        "begins with '<pad>', which the tokenizer adds", "['<pad>', '<pad>', ", "doubled_bos: drop"
    )
    run = ("--run-dir", tmp_path / "run")
    dropped = first("plan", recipe, *run, "--set", "train.doubled_bos=drop")
    assert dropped.code == 0, dropped.err
    first("plan", recipe, *run).mistake("doubled_bos: drop")  # not taken from what was kept


def test_a_chat_template_in_the_prompts_is_told_once(tmp_path: Path, framed_folder: Path) -> None:
    recipe = with_prompt(tmp_path, framed_folder, "{question}</s>\n{choices}\nAnswer:")
    result = first("plan", recipe)
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if "rendered chat template" in line]
    assert lines and all("contains '</s>', encoded as special tokens" in line for line in lines)
