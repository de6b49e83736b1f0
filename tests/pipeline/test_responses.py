"""The teacher writes responses: seeded, resumable, cached, and learned by students only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstcli.models import generation
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import units_of, writing
from firstcli.stages.response_cache import CACHE
from firstcli.workspace import responses
from firstcli.workspace.artifacts import Digests
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import MODEL, WORLD, copy_run, first, pending, write_rows

LEARNED = {"epochs": 40, "learning_rate": 1e-2, "batch_size": 8}
ARMS = {"fine-tune": {"learn": "labels"}, "distill": {}}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 12}


def rows(count: int, response: str, start: int = 0) -> list[dict[str, str]]:
    texts = (f"Say {i} and then {'yes' if i % 2 else 'no'}:" for i in range(start, start + count))
    return [{"prompt": text, "response": response and f" {text[-4:-1].strip()}"} for text in texts]


def write_recipe(folder: Path, data: list[Any], **sections: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = write_rows(folder / "train.jsonl", data)
    task = {"name": "instruction", "options": {"path": str(path)}}
    recipe = {
        "train": {"task": task, "validation": 0.2},
        "evaluate": [{"task": WORLD}],
        "teacher": {"model": MODEL, "finetune": LEARNED},
        "knowledge": {"responses": "teacher", "sampling": SAMPLING},
        "arms": ARMS,
    }
    return command_line.write_recipe(folder, **{**recipe, **sections})


@dataclass(frozen=True)
class Job:
    recipe: Path
    run: Path

    def opened(self) -> Run:
        return Run(load_recipe(self.recipe), self.run, Console(quiet=True))

    def facts(self, key: str) -> Any:
        unit = units_of(self.opened().recipe, self.run)[key]
        return json.loads(unit.artifact.manifest_path.read_text("utf-8"))["facts"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """40 prompts with a response, 10 without, and one that also occurs with a response."""
    folder = tmp_path_factory.mktemp("responses")
    recipe = write_recipe(folder, [*rows(40, "x"), *rows(10, "", 100), *rows(1, "")])
    result = first("distill", recipe, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    assert "1 of 11 prompts without a response are left out" in result.err
    yield Job(recipe, folder / "run")


def test_students_learn_what_the_teacher_finished(job: Job) -> None:
    facts = job.facts("respond responses")
    assert facts["prompts"] == 10
    assert facts["written"] + facts["unfinished"] + facts["empty"] == 10
    assert facts["written"] > 0
    trained = job.facts("distill fine-tune")["samples"]
    learned = job.facts("distill distill")
    assert learned["samples"] == trained + facts["written"]
    assert learned["written"] == facts["written"]
    knowledge = job.facts("extract written")
    assert knowledge["samples"] == facts["written"] and "accuracy" not in knowledge


def test_nothing_is_written_twice(job: Job) -> None:
    assert pending(job.recipe, "--run-dir", job.run) <= {
        *(f"eval {WORLD['name']}/{name}" for name in ("teacher", "fine-tune", "distill")),
        "report",
    }


def test_further_prompts_cost_only_themselves(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = generation.continuations

    def counted(model: Any, prompts: list[Any], *rest: Any) -> Any:
        asked.append(len(prompts))
        return real(model, prompts, *rest)

    monkeypatch.setattr("firstcli.stages.writing.continuations", counted)
    run = copy_run(job.run, tmp_path / "run")
    before = responses.read(run / "responses" / responses.FILE_NAME)
    data = [*rows(40, "x"), *rows(13, "", 100), *rows(1, "")]
    again = write_recipe(tmp_path / "more", data)
    result = first("respond", again, "--run-dir", run)
    assert result.code == 0, result.err
    after = responses.read(run / "responses" / responses.FILE_NAME)
    assert sum(asked) == 3
    assert len(after) == 13 and {key: after[key] for key in before} == before


def test_a_killed_run_goes_on_where_it_stopped(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run(job.run, tmp_path / "run")
    whole = (run / "responses" / responses.FILE_NAME).read_bytes()
    (cache,) = (run / CACHE).glob("*/0.jsonl")
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # killed while it wrote the fifth
    unit = units_of(job.opened().recipe, run)["respond responses"]
    manifest = unit.artifact.manifest(Digests())
    assert manifest
    unit.artifact.reopen([responses.FILE_NAME], manifest.fingerprint)
    monkeypatch.setattr(writing, "BATCH_SIZE", 3)  # which changes no text
    shown = first("respond", job.recipe, "--run-dir", run, "--dry-run", "--json")
    resumes = {each["unit"]: each.get("resumes") for each in shown.json["units"]}
    assert resumes["respond responses"] == "response 4 of 10"
    result = first("respond", job.recipe, "--run-dir", run, "--force")  # which loses nothing, too
    assert result.code == 0, result.err
    assert "4 of 10 responses need not be written again" in result.out
    assert (run / "responses" / responses.FILE_NAME).read_bytes() == whole
    assert len(responses.read(cache)) == 10


def test_force_writes_every_response_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that was kept is not the teacher's any more, say because a library changed."""
    run = copy_run(job.run, tmp_path / "run")
    whole = (run / "responses" / responses.FILE_NAME).read_bytes()
    (cache,) = (run / CACHE).glob("*/0.jsonl")
    cache.write_text(cache.read_text("utf-8").replace('"text": "', '"text": "old'), "utf-8")
    result = first("respond", job.recipe, "--run-dir", run, "--force")
    assert result.code == 0, result.err
    assert "need not be written again" not in result.out
    assert (run / "responses" / responses.FILE_NAME).read_bytes() == whole


def test_other_settings_write_other_responses(job: Job) -> None:
    changed = "knowledge.sampling.temperature=0.5"
    assert "respond responses" in pending(job.recipe, "--run-dir", job.run, "--set", changed)
    assert "distill distill" in pending(job.recipe, "--run-dir", job.run, "--set", changed)
    assert "distill fine-tune" not in pending(job.recipe, "--run-dir", job.run, "--set", changed)


def test_prompts_alone_are_enough_for_a_finished_teacher(job: Job, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        rows(10, "", 200),
        teacher={"model": {"family": "causal-lm", "checkpoint": str(job.run / "teacher")}},
        student={
            "model": {"family": "causal-lm", "checkpoint": str(job.run / "teacher")},
            "training": command_line.TRAINING,
        },
        arms={"distill": {}},
    )
    result = first("distill", recipe, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    facts = result.json["result"]["distill"]
    assert facts["samples"] == facts["written"] > 0


def test_a_teacher_that_ends_nothing_is_a_mistake(job: Job, tmp_path: Path) -> None:
    run = copy_run(job.run, tmp_path / "run")
    short = "knowledge.sampling.max_new_tokens=1"
    first("respond", job.recipe, "--run-dir", run, "--set", short).mistake(
        "students can learn none of the teacher's responses", "10 reached the limit of 1 tokens"
    )


def test_mistakes_in_the_recipe_name_their_keys(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, rows(20, "x"))
    first("plan", recipe).mistake("every row of the training split has a response")
    data = "knowledge.responses=data"
    first("plan", recipe, "--set", data).mistake("knowledge.sampling", "has no effect")
    question = command_line.write_recipe(tmp_path, knowledge={"responses": "teacher"})
    first("plan", question).mistake("knowledge.responses", "has candidates")
    prompts = write_recipe(tmp_path, rows(20, ""), knowledge={})
    first("plan", prompts).mistake("no row of the training split has a response")


def test_a_chat_template_renders_the_prompts(job: Job, tmp_path: Path) -> None:
    """The teacher answers rendered prompts; responses are kept under those of the data."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    teacher = {"family": "causal-lm", "checkpoint": str(job.run / "teacher")}
    path = write_rows(tmp_path / "train.jsonl", [*rows(40, "x"), *rows(10, "", 100)])
    task = {"name": "instruction", "chat": True, "options": {"path": str(path)}}
    recipe = command_line.write_recipe(
        tmp_path,
        train={"task": task, "validation": 0.2},
        evaluate=[{"task": WORLD}],
        teacher={"model": {**teacher, "chat_template": str(template)}, "finetune": LEARNED},
        student={"model": teacher, "training": command_line.TRAINING},
        knowledge={"responses": "teacher", "sampling": {**SAMPLING, "temperature": 0.0}},
        arms={"distill": {}},
    )
    result = first("distill", recipe, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    assert result.json["result"]["distill"]["written"] > 0


def test_a_file_without_a_column_of_responses(job: Job, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": r["prompt"]} for r in rows(10, "")])
    model = {"family": "causal-lm", "checkpoint": str(job.run / "teacher")}
    task = {"name": "instruction", "options": {"path": str(path), "response": ""}}
    recipe = command_line.write_recipe(
        tmp_path,
        train={"task": task},
        evaluate=[{"task": WORLD}],
        teacher={"model": model},
        student={"model": model, "training": command_line.TRAINING},
        knowledge={"responses": "teacher", "sampling": SAMPLING},
        arms={"distill": {}},
    )
    shown = first("plan", recipe, "--run-dir", tmp_path / "run", "--probe", "--json")
    assert shown.code == 0, shown.err
    units = {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}
    assert units["respond responses"].startswith("10 prompts")
