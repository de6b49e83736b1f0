"""Copies of training samples: students learn them; nothing is fitted or evaluated on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from firstcli.errors import UserError
from firstcli.knowledge.store import Knowledge
from firstcli.recipe.load import load_recipe
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import checks, distill, inputs, teacher_knowledge, units_of
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import Result, copy_run, first, of_files, recipe, sums, write_rows

PLAIN = {
    "fine-tune": {"learn": "labels"},
    "distill": {"recalibrator": {"name": "none"}},
}
PLUS = {"first-plus": {"preset": "first-plus"}}
RIVAL = {"fine-tune-copies": {"learn": "labels", "augment": True}}
PER_SAMPLE = 4


@dataclass(frozen=True)
class Job:
    """A run with an arm that learns copies, made from a finished run without them."""

    recipe: Path
    run: Path
    result: Result
    worked_on: list[str]

    def opened(self) -> Run:
        return Run(load_recipe(self.recipe), self.run, Console(quiet=True))

    def manifest(self, key: str) -> Any:
        unit = units_of(self.opened().recipe, self.run)[key]
        return json.loads(unit.artifact.manifest_path.read_text("utf-8"))

    def pending(self, folder: Path, **sections: Any) -> set[str]:
        """Return the units that a changed recipe would run."""
        folder.mkdir(exist_ok=True)
        whole = {"arms": {**PLAIN, **PLUS, **RIVAL}, **sections}
        path = command_line.write_recipe(folder, **whole)
        return command_line.pending(path, "--run-dir", self.run)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("augment")
    before = folder / "before"
    before.mkdir()
    path = command_line.write_recipe(before, arms=PLAIN)
    done = first("report", path, "--run-dir", folder / "run")
    assert done.code == 0, done.err
    path = command_line.write_recipe(folder, arms={**PLAIN, **PLUS, **RIVAL})
    run = copy_run(folder / "run", folder / "again")
    with pytest.MonkeyPatch.context() as patch, command_line.recorded_work(patch) as keys:
        result = first("report", path, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    yield Job(path, run, result, list(keys))


def test_nothing_but_what_learns_copies_is_new(job: Job) -> None:
    """Neither teacher nor other arms depend on copies; the preset brings its own temperature."""
    made = {key for key in job.worked_on if not key.startswith("eval ")}
    assert made == {
        *("extract copies", "extract validation", "calibrate first-plus"),
        *("distill first-plus", "distill fine-tune-copies", "posthoc first-plus+T", "report"),
    }
    evaluated = {key.partition("/")[2] for key in job.worked_on if key.startswith("eval ")}
    assert evaluated == {"first-plus", "first-plus+T", "fine-tune-copies"}
    assert command_line.pending(job.recipe, "--run-dir", job.run) == set()


def test_the_preset_is_the_whole_method() -> None:
    arm = Recipe.model_validate(recipe(arms=PLUS)).arms["first-plus"]
    assert arm.augment and arm.recalibrator and arm.posthoc
    assert arm.recalibrator.name == arm.posthoc.name == "logit-temperature"
    assert arm.recalibrator.effective["criterion"] == "nll"
    assert arm.posthoc.effective["criterion"] == "nll"
    changed = {"first-plus": {"preset": "first-plus", "augment": False, "top_k": 3}}
    other = Recipe.model_validate(recipe(arms=changed)).arms["first-plus"]
    assert (other.augment, other.top_k, other.recalibrator) == (False, 3, arm.recalibrator)


def test_a_resolved_recipe_means_the_same() -> None:
    whole = Recipe.model_validate(recipe(arms={**PLUS, **RIVAL}))
    text = yaml.safe_dump(whole.resolved())
    again = Recipe.model_validate(yaml.safe_load(text))
    assert "preset" not in text
    assert again.resolved() == whole.resolved()
    assert again.augmentation == whole.augmentation


def test_recipes_without_copies_resolve_as_before() -> None:
    text = yaml.safe_dump(Recipe.model_validate(recipe(arms=PLAIN)).resolved())
    assert "augment" not in text and "preset" not in text


def test_copies_are_counted(job: Job) -> None:
    run = job.opened()
    rows = len(run.training.train)
    copies = len(run.copies)
    assert rows * PER_SAMPLE * 0.9 < copies <= rows * PER_SAMPLE
    shown = first("plan", job.recipe, "--json")
    units = {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}
    assert f"{copies} samples, " in units["extract copies"]
    assert f"{rows} samples (and {copies} copies)," in units["distill first-plus"]
    assert f"{rows} samples (and {copies} copies)," in units["distill fine-tune-copies"]
    assert f"{rows} samples, " in units["distill distill"]
    facts = job.manifest("distill first-plus")["facts"]
    plain = job.manifest("distill distill")["facts"]
    assert facts["copies"] == copies
    assert all(facts[name] == plain[name] for name in ("samples", "steps", "positions"))
    assert "copies" not in plain
    card = (job.run / "students" / "first-plus" / "README.md").read_text("utf-8")
    assert f"{copies} copies with other prompts could stand for" in " ".join(card.split())
    other = (job.run / "students" / "distill" / "README.md").read_text("utf-8")
    assert "copies with other prompts" not in other
    notes = {note["label"]: note["value"] for note in job.result.json["result"]["notes"]}
    assert notes["copies"].startswith(f"{copies} copies of training samples, made by perturb; ")
    assert notes["data"].startswith(f"{rows} training samples; ")
    assert "knowledge of copied samples" in notes


def test_copies_are_stored_apart_and_labelled_as_their_samples(job: Job) -> None:
    run = job.opened()
    stored = Knowledge(job.run / "knowledge" / "copies")
    assert len(stored) == len(run.copies)
    by_id = {sample.id: sample for sample in run.training.train}
    for copy in run.copies:
        sample = by_id[str(copy.id).partition("/")[2]]
        assert (copy.candidates, copy.answer, copy.response, copy.truth) == (
            *(sample.candidates, sample.answer, sample.response, sample.truth),
        )
    assert any(copy.prompt not in {s.prompt for s in by_id.values()} for copy in run.copies)
    assert not (job.run / "knowledge" / "copies" / "concentration.json").exists()


def test_copies_enter_neither_fitting_nor_evaluation_nor_fine_tuning(job: Job) -> None:
    run = job.opened()
    units = units_of(run.recipe, job.run)
    for key in ("calibrate first-plus", "finetune", "distill distill", "distill fine-tune"):
        assert "extract copies" not in units[key].needs
    held_out = {sample.id for sample in run.training.validation}
    fitted, _ = teacher_knowledge.validation_knowledge(run, run.recipe.arms["first-plus"])
    assert {row.id for row in fitted} == held_out
    assert {row.id for row in inputs.training_rows(run, "student", "validation")} == held_out
    trained = {row.id for row in inputs.rows_of(run, units["finetune"])}
    assert trained == {sample.id for sample in run.training.train}
    assert inputs.copies_of(run, units["finetune"]) is None
    assert inputs.copies_of(run, units["distill distill"]) is None
    for name in ("known-world", "shifted"):
        asked = {question.id for question in inputs.questions(run, "student", name)}
        assert not any(id.startswith("copy") for id in asked)


def test_a_new_share_trains_only_the_arms_that_learn_copies(job: Job, tmp_path: Path) -> None:
    train = {**recipe()["train"], "augment": {"share": 0.25}}
    assert {
        key for key in job.pending(tmp_path, train=train) if key.startswith(("ext", "dis", "fin"))
    } == {
        "distill first-plus",
        "distill fine-tune-copies",
    }
    same = {**recipe()["train"], "augment": {"share": 0.5}}
    assert job.pending(tmp_path, train=same) == set()  # the defaults may be stated


def test_new_levels_extract_only_copies(job: Job, tmp_path: Path) -> None:
    perturb = {"name": "perturb", "options": {"levels": [0.5]}}
    train = {**recipe()["train"], "augment": {"augmenters": [perturb]}}
    pending = job.pending(tmp_path, train=train)
    assert {key for key in pending if key.startswith(("ext", "cal", "fin"))} == {"extract copies"}
    assert {key for key in pending if key.startswith("distill")} == {
        "distill first-plus",
        "distill fine-tune-copies",
    }


def test_a_teacher_can_be_fine_tuned_on_copies(tmp_path: Path) -> None:
    teacher = recipe()["teacher"]
    teacher = {**teacher, "finetune": {**teacher["finetune"], "augment": True}}
    arms = {"distill": PLAIN["distill"]}
    path = command_line.write_recipe(tmp_path, teacher=teacher, arms=arms)
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    units = units_of(run.recipe, run.folder)
    assert "extract copies" not in units
    rows, choice = inputs.with_copies(run, units["finetune"])
    assert choice is not None and len(choice) == len(run.training.train) < len(rows)
    done = first("finetune", path, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert f"{len(rows) - len(choice):,} copies" in done.out + done.err


def opened(folder: Path, train: list[Any], test: list[Any], **augment: Any) -> Run:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
    section = {"task": of_files(folder), "validation": 0.3, "augment": augment}
    sections = recipe(train=section, evaluate=None, arms=PLUS)
    return Run(Recipe.model_validate(sections), folder / "run", Console(quiet=True))


def test_a_copy_that_is_an_evaluation_prompt_is_not_unnoticed(tmp_path: Path) -> None:
    """Every second word of the questions is a number: swapping gives many others' questions."""
    swap = {"name": "perturb", "options": {"kinds": ["swap"], "levels": [0.3] * 8}}
    run = opened(tmp_path, sums(60), sums(40, 60), augmenters=[swap])
    copied = {sample.prompt for sample in run.copies}
    held_out = {sample.prompt for sample in run.training.validation}
    assert not copied & held_out
    with run.console.collect_warnings() as warnings:
        checks.OVERLAP.run(run)
    assert not any("copies" in warning for warning in warnings)
    # The evaluation's prompts are now copies of training prompts.
    some = [sample for sample in run.copies if sample.prompt not in _prompts(run)][:5]
    rows = [_row(sample.prompt, number) for number, sample in enumerate(some)]
    again = opened(tmp_path / "again", sums(60), [*rows, *sums(20, 60)], augmenters=[swap])
    with again.console.collect_warnings() as warnings:
        checks.OVERLAP.run(again)
    (warning,) = [text for text in warnings if "copies" in text]
    assert "5 of 25 questions (20.0 %) are also among the copies of train.augment" in warning


def _prompts(run: Run) -> set[str]:
    return {sample.prompt for sample in (*run.training.train, *run.training.validation)}


def _row(prompt: str, number: int) -> dict[str, Any]:
    """Return the row of which a prompt of `sums` was made."""
    question, *lines, _ = prompt.split("\n")
    choices = [line.partition(". ")[2] for line in lines]
    return {"id": f"c{number}", "question": question, "choices": choices, "answer": "A"}


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        (
            {"train": {**recipe()["train"], "augment": {}}, "arms": PLAIN},
            ["arms: no arm learns the copies of train.augment; give one `augment: true`"],
        ),
        (
            {"train": {**recipe()["train"], "augment": {"share": 0.0}}, "arms": PLUS},
            ["train.augment.share", "0"],
        ),
        (
            {
                "train": {**recipe()["train"], "augment": {"augmenters": [{"name": "pertrub"}]}},
                "arms": PLUS,
            },
            [
                "train.augment.augmenters.0.name",
                "unknown augmenter 'pertrub' (did you mean 'perturb'?)",
            ],
        ),
        (
            {
                "train": {
                    **recipe()["train"],
                    "augment": {"augmenters": [{"name": "perturb", "options": {"level": [0.1]}}]},
                },
                "arms": PLUS,
            },
            ["train.augment.augmenters.0.options.level", "did you mean 'levels'?"],
        ),
        ({"arms": PLUS, "knowledge": {"folds": 2}}, ["arms.first-plus.preset", "out_of_fold"]),
        ({"arms": {"a": {"preset": "first-plu"}}}, ["arms.a.preset", "first-plus"]),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, sections: dict[str, Any], parts: list[str]) -> None:
    first("plan", command_line.write_recipe(tmp_path, **sections)).mistake(*parts)


def test_no_copies_are_made_of_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write_rows(tmp_path / "train.jsonl", [{"id": f"{n}", "messages": turns} for n in range(20)])
    task = {"name": "instruction", "options": {"path": str(tmp_path / "train.jsonl")}}
    evaluate = [{"task": command_line.WORLD}]
    arms = {"plus": {"augment": True}}
    section = {"task": task, "validation": 0.3}
    run = Run(
        Recipe.model_validate(recipe(train=section, evaluate=evaluate, arms=arms)),
        tmp_path / "run",
        Console(quiet=True),
    )
    with pytest.raises(UserError, match="the samples are conversations, of which no copies"):
        _ = run.copies


def test_copies_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    """An invented word may have more tokens than the word that it replaces."""

    def opened_with(context: int) -> Run:
        model: dict[str, Any] = {**command_line.MODEL}
        model["options"] = {**model["options"], "context": context}
        models = {"model": model, "training": command_line.TRAINING}
        teacher = {"model": model, "finetune": command_line.TRAINING}
        sections = recipe(arms=PLUS, student=models, teacher=teacher)
        return Run(Recipe.model_validate(sections), tmp_path / "run", Console(quiet=True))

    def rows_of(run: Run) -> tuple[list[int], int]:
        unit = units_of(run.recipe, run.folder)["distill first-plus"]
        rows, choice = inputs.with_copies(run, unit)
        assert choice is not None
        return [len(row.input_ids) for row in rows], len(choice)

    lengths, count = rows_of(opened_with(128))
    longest = max(lengths[:count])
    assert max(lengths) > longest
    run = opened_with(longest)
    with run.console.collect_warnings() as warnings:
        kept, again = rows_of(run)
    assert again == count
    assert kept == [length for length in lengths if length <= longest]
    left_out = len(lengths) - len(kept)
    assert any(f"{left_out} of {len(run.copies)} copies are longer than the" in w for w in warnings)


def test_knowledge_over_candidates_has_copies(tmp_path: Path) -> None:
    """Questions whose candidates differ from row to row, each with its own copies."""
    write_rows(tmp_path / "data" / "train.jsonl", sums(40))
    write_rows(tmp_path / "data" / "test.jsonl", sums(10, 100))
    train = {"task": of_files(tmp_path / "data"), "validation": 0.3}
    arms = {"plus": {"augment": True}}
    path = command_line.write_recipe(
        tmp_path, train=train, evaluate=None, arms=arms, knowledge={"over": "candidates"}
    )
    done = first("distill", path, "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    assert len(Knowledge(tmp_path / "run" / "knowledge" / "copies")) == len(run.copies)


def test_further_teachers_are_asked_about_copies(tmp_path: Path) -> None:
    teacher = {**recipe()["teacher"], "seeds": [1, 2]}
    arms = {"plus": {"augment": True, "teachers": "mean"}}
    whole = Recipe.model_validate(recipe(teacher=teacher, arms=arms))
    units = units_of(whole, tmp_path)
    assert {"extract copies", "extract copies seed 2"} <= set(units["distill plus"].needs)


def test_an_instruction_keeps_its_template_and_its_response(tmp_path: Path) -> None:
    rows = [{"q": f"Say the number {n} now", "response": f" {n}"} for n in range(40)]
    write_rows(tmp_path / "train.jsonl", rows)
    options = {"path": str(tmp_path / "train.jsonl"), "prompt": "## {q}\nAnswer:"}
    train = {"task": {"name": "instruction", "options": options}, "validation": 0.3}
    evaluate = [{"task": command_line.WORLD}]
    arms = {"plus": {"augment": True}}
    path = command_line.write_recipe(tmp_path, train=train, evaluate=evaluate, arms=arms)
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    responses = {sample.id: sample.response for sample in run.training.train}
    for copy in run.copies:
        assert copy.prompt.startswith("## ") and copy.prompt.endswith("\nAnswer:")
        assert copy.response == responses[str(copy.id).partition("/")[2]]
    assert first("distill", path, "--run-dir", tmp_path / "run").code == 0


def test_without_a_response_in_the_data_there_is_nothing_to_copy(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "response": ""} for n in range(20)]
    write_rows(tmp_path / "train.jsonl", rows)
    task = {"name": "instruction", "options": {"path": str(tmp_path / "train.jsonl")}}
    path = command_line.write_recipe(
        tmp_path,
        train={"task": task, "validation": 0},
        evaluate=[{"task": command_line.WORLD}],
        teacher={"model": command_line.MODEL},
        knowledge={"responses": "teacher"},
        arms={"plus": {"augment": True}},
    )
    first("plan", path).mistake("train.augment: no row of the training split has a response")


def sized(folder: Path, teacher: int, student: int, run: Path, **sections: Any) -> Path:
    """Write a recipe whose models have these contexts; return it."""
    models = []
    for context in (teacher, student):
        model: dict[str, Any] = {**command_line.MODEL}
        models.append({**model, "options": {**model["options"], "context": context}})
    finetune = {**command_line.TRAINING, **sections.pop("finetune", {})}
    sections = {
        "teacher": {"model": models[0], "finetune": finetune},
        "student": {"model": models[1], "training": command_line.TRAINING},
        "evaluate": [{"task": command_line.WORLD}],
        **sections,
    }
    folder.mkdir(exist_ok=True)
    return command_line.write_recipe(folder, **sections)


def longest_of(folder: Path) -> tuple[int, int]:
    """Return the lengths in tokens of the longest sample and of the longest copy."""
    path = sized(folder, 128, 128, folder / "run", arms={**PLUS, **RIVAL})
    run = Run(load_recipe(path), folder / "run", Console(quiet=True))
    unit = units_of(run.recipe, run.folder)["distill first-plus"]
    rows, choice = inputs.with_copies(run, unit)
    assert choice is not None
    lengths = [len(row.input_ids) for row in rows]
    return max(lengths[: len(choice)]), max(lengths)


def test_a_longer_context_makes_what_learns_more_copies_stale(tmp_path: Path) -> None:
    """The copies of the teacher fit into both contexts, those of labels into the student's."""
    longest, most = longest_of(tmp_path / "measured")
    assert most > longest
    run, arms = tmp_path / "run", {**PLUS, **RIVAL}
    path = sized(tmp_path / "one", 128, longest, run, arms=arms)
    done = first("distill", path, "--run-dir", run)
    assert done.code == 0, done.err
    longer = sized(tmp_path / "two", 128, 128, run, arms=arms)
    assert "extract copies" in command_line.pending(longer, "--run-dir", run)
    done = first("distill", longer, "--run-dir", run)
    assert done.code == 0, done.err
    opened = Run(load_recipe(longer), run, Console(quiet=True))
    assert len(Knowledge(run / "knowledge" / "copies")) == len(opened.copies)


def test_labels_of_copies_do_not_depend_on_the_other_context(tmp_path: Path) -> None:
    longest, _ = longest_of(tmp_path / "measured")
    run = tmp_path / "run"
    sections = {"arms": {**RIVAL, "plain": PLAIN["distill"]}, "finetune": {"augment": True}}
    path = sized(tmp_path / "one", 128, longest, run, **sections)
    done = first("finetune", path, "--run-dir", run)
    assert done.code == 0, done.err
    opened = Run(load_recipe(path), run, Console(quiet=True))
    units = units_of(opened.recipe, run)
    (teacher, student) = (
        inputs.copies_of(opened, units[key]) for key in ("finetune", "distill fine-tune-copies")
    )
    assert teacher is not None and student is not None
    assert len(student) < len(teacher) == len(opened.copies)
    other = sized(tmp_path / "two", 128, 128, run, **sections)
    assert "finetune" not in command_line.pending(other, "--run-dir", run)


def test_no_copy_that_fits_is_a_mistake(tmp_path: Path) -> None:
    run = opened(tmp_path, sums(40), sums(10, 100))
    with pytest.raises(UserError, match="no copy fits into the context of 2 tokens"):
        inputs._short_copies(run, np.array([3, 4]), 2, "train.task")


def test_the_gate_gives_copies_no_label(tmp_path: Path) -> None:
    run = opened(tmp_path, sums(40), sums(10, 100))
    gate = {"augment": True, "objective": "hard-gate"}
    arm = Recipe.model_validate(recipe(arms={"gate": gate})).arms["gate"]
    assert distill._without_label(run, arm) == {copy.id for copy in run.copies}
    assert not distill._without_label(run, run.recipe.arms["first-plus"])


@pytest.mark.parametrize(
    ("arms", "learned"),
    [
        (PLUS, "students learn the teacher's answers to them, though not the right ones"),
        ({**PLUS, **RIVAL}, "an arm of `learn: labels` is trained to answer them with the labels"),
    ],
)
def test_the_warning_says_what_is_learned_of_evaluation_prompts(
    tmp_path: Path, arms: dict[str, Any], learned: str
) -> None:
    run = opened(tmp_path, sums(40), sums(10, 100))
    changed = {**run.recipe.arms, **Recipe.model_validate(recipe(arms=arms)).arms}
    run.recipe = run.recipe.model_copy(update={"arms": changed})
    assert learned in checks._of_copies(run)


def test_copies_that_equal_their_samples_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.jsonl", sums(40))
    rare = {"name": "perturb", "options": {"levels": [0.01, 1.0]}}
    run = opened(tmp_path, sums(40), sums(10, 100), augmenters=[rare])
    run.console = Console()
    prompts = {str(sample.id): sample.prompt for sample in run.training.train}
    same = sum(copy.prompt == prompts[str(copy.id).partition("/")[2]] for copy in run.copies)
    assert 0 < same < len(run.copies)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"{same} of {len(run.copies)} copies equal their samples") == 1


def test_copies_that_all_equal_their_samples_are_a_mistake(tmp_path: Path) -> None:
    rows = [{**row, "question": f"\u6570\u5b57{number}"} for number, row in enumerate(sums(40))]
    case = {"name": "perturb", "options": {"kinds": ["case"], "levels": [1.0]}}
    run = opened(tmp_path, rows, sums(10, 100), augmenters=[case])
    with pytest.raises(UserError, match="every copy is equal to its sample"):
        _ = run.copies
