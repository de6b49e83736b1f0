"""The whole job on tiny models, and that nothing is done twice or left out."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

MODELS = ("teacher", "fine-tune", "distill", "first")


def evals(*models: str) -> set[str]:
    return {f"eval {on}/{model}" for on in ("known-world", "shifted") for model in models}


def students(*arms: str) -> set[str]:
    return {f"distill {arm}" for arm in arms} | evals(*arms) | {"report"}


KNOWLEDGE = {"extract train", "extract validation", "calibrate first"}
LEARNERS = students("distill", "first")
TEACHER = {"finetune"} | evals("teacher") | KNOWLEDGE | LEARNERS
ALL = TEACHER | students("fine-tune")


# What comes out.


def test_report_makes_every_artifact_from_nothing(finished: Finished) -> None:
    files = set(command_line.contents(finished.run))
    for folder in ("teacher", "students/fine-tune", "students/distill", "students/first"):
        assert {f"{folder}/{name}" for name in ("config.json", "model.safetensors")} <= files
        assert {f"{folder}/{name}" for name in ("tokenizer.json", "manifest.json")} <= files
    assert {f"students/{arm}/README.md" for arm in MODELS[1:]} <= files
    for part in ("train", "validation"):
        assert {
            f"knowledge/{part}/{name}" for name in ("shard-00000.parquet", "manifest.json")
        } <= (files)
    assert {name for name in files if name.startswith("calibration/")} == {
        "calibration/first.json",
        "calibration/first.manifest.json",
    }
    for evaluation in ("known-world", "shifted"):
        assert {f"eval/{evaluation}/{model}.parquet" for model in MODELS} <= files
    assert {f"report/{name}" for name in ("index.html", "table.md", "table.csv", "table.json")} <= (
        files
    )
    assert any(name.startswith("report/figures/") and name.endswith(".svg") for name in files)
    assert any(name.startswith("report/figures/") and name.endswith(".png") for name in files)
    assert yaml.safe_load((finished.run / "recipe.yaml").read_text())["name"] == "tiny"


def test_no_work_folder_remains(finished: Finished) -> None:
    hidden = {path.name for path in finished.run.rglob(".*")}
    assert hidden == {".lock", ".digests.json", ".checks.json"}
    assert not list(finished.run.rglob("checkpoint*"))
    assert not list(finished.run.rglob("*.tmp"))


def test_students_load_in_plain_transformers(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in (finished.run / "teacher", finished.run / "students" / "first"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        logits = model(**tokenizer("At dusk in the fog it will", return_tensors="pt")).logits
        assert logits.shape[-1] == len(tokenizer) == model.config.vocab_size
        assert logits.isfinite().all()


def test_a_model_card_states_recipe_arm_data_and_numbers(finished: Finished) -> None:
    card = (finished.run / "students" / "first" / "README.md").read_text()
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert "`first`" in text and "temperature-scaling" in text
    assert "known-world" in text and "66 training samples" in text and "30 held out" in text
    assert "| steps | 5 |" in text and "| loss |" in text and "| Q |" in text
    recipe = yaml.safe_load(text.split("~~~yaml\n")[1].split("~~~")[0])
    assert recipe["student"]["training"]["learning_rate"] == 1e-3


def test_the_table_follows_from_the_records_alone(finished: Finished) -> None:
    table = json.loads((finished.run / "report" / "table.json").read_text())
    assert table["rows"] == finished.result.json["result"]["rows"]
    assert {(row["evaluation"], row["model"]) for row in table["rows"]} == {
        (evaluation, model) for evaluation in ("known-world", "shifted") for model in MODELS
    }
    for row in table["rows"]:
        path = finished.run / "eval" / row["evaluation"] / f"{row['model']}.parquet"
        accuracy, ece = naive_metrics(pq.read_table(path).to_pylist())
        assert row["n"] == 24
        assert row["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert row["ece"] == pytest.approx(ece, abs=1e-12)
        assert row["trust"] == pytest.approx(accuracy - ece, abs=1e-12)


def naive_metrics(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Return accuracy and ECE (10 bins, closed on the right) of eval records."""
    judged = []
    for record in records:
        weights = [math.exp(value) for value in record["log_probs"]]
        best = weights.index(max(weights))
        judged.append((max(weights) / sum(weights), best == record["answer"]))
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for confidence, correct in judged:
        bins[max(math.ceil(confidence * 10) - 1, 0)].append((confidence, correct))
    gaps = (abs(sum(hit for _, hit in b) - sum(share for share, _ in b)) for b in bins)
    return sum(hit for _, hit in judged) / len(judged), sum(gaps) / len(judged)


def test_a_recipe_of_labels_needs_no_teacher(labels: Finished) -> None:
    files = set(command_line.contents(labels.run))
    assert "students/fine-tune/model.safetensors" in files
    assert not any(name.startswith(("teacher/", "knowledge/", "calibration/")) for name in files)
    assert {row["model"] for row in labels.result.json["result"]["rows"]} == {"fine-tune"}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished recipe without a teacher, over files."""
    folder = tmp_path_factory.mktemp("labels")
    for split, start in (("train", 0), ("test", 60)):
        command_line.write_rows(
            folder / "data" / f"{split}.jsonl", command_line.sums(60 - start // 2, start)
        )
    task = command_line.of_files(folder / "data")
    path = command_line.write_recipe(
        folder,
        teacher=None,
        train={"task": task},
        evaluate=[{"task": task}],
        arms={"fine-tune": {"learn": "labels"}},
    )
    result = command_line.report(path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return Finished(path, folder / "run", result)


def test_an_arm_of_labels_trains_no_teacher(tmp_path: Path, work: list[str]) -> None:
    path = command_line.write_recipe(tmp_path)
    result = first("distill", path, "--arm", "fine-tune", "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert work == ["distill fine-tune"]


def test_validation_knowledge_is_extracted_only_for_what_is_fitted(tmp_path: Path) -> None:
    arms = {"smooth": {"recalibrator": {"name": "label-smoothing"}}, "plain": {}}
    path = command_line.write_recipe(tmp_path, arms=arms)
    assert "extract validation" not in command_line.pending(path)
    whole = command_line.write_recipe(
        tmp_path, arms=arms, train={"task": command_line.WORLD, "validation": 0}
    )
    assert first("plan", whole, "--run-dir", tmp_path / "run").code == 0


# What is up to date stays as it is.


def test_nothing_reruns(finished: Finished, work: list[str]) -> None:
    before = command_line.times(finished.run)
    for stage in ("finetune", "extract", "calibrate", "distill", "eval", "report"):
        result = first(stage, finished.recipe, "--run-dir", finished.run)
        assert result.code == 0, result.err
        assert "will run" not in result.out
    assert work == []
    after = command_line.times(finished.run)
    unimportant = (".lock", ".digests.json", ".checks.json")
    assert {k: v for k, v in before.items() if k not in unimportant} == {
        k: v for k, v in after.items() if k not in unimportant
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("metrics.bins=5", {"report"}),
        ("metrics.confidence=full", {"report"}),
        ("name=other", {"report"}),
        ("student.training.epochs=2", students("fine-tune", "distill", "first")),
        ("arms.first.training.learning_rate=2e-3", students("first")),
        ("arms.distill.mass=one", students("distill")),
        ("arms.distill.objective=topk-renormalized", students("distill")),
        ("arms.first.recalibrator.options.criterion=nll", {"calibrate first"} | students("first")),
        ("arms.first.recalibrate=all", {"calibrate first"} | students("first")),
        ("knowledge.top_k=4", KNOWLEDGE | LEARNERS),
        ("teacher.finetune.epochs=2", TEACHER),
        ("teacher.model.options.hidden_size=32", TEACHER),
        ("student.model.options.layers=2", students("fine-tune", "distill", "first")),
        ("seed=8", ALL),
        ("train.validation=0.2", ALL),
        ("train.task.options.noise=0.7", ALL),
        ("trainer.weight_decay=0.1", ALL),
        (
            "evaluate.1.task.options.shifted=20",
            {f"eval shifted/{model}" for model in MODELS} | {"report"},
        ),
        ("train.limit=60", ALL),
        ("evaluate.1.limit=20", {f"eval shifted/{model}" for model in MODELS} | {"report"}),
        # What changes no result reruns nothing.
        ("train.limit=96", set()),
        ("evaluate.1.limit=1000", set()),
        ("trainer.ddp_timeout=3600", set()),
        ("trainer.dataloader_persistent_workers=false", set()),
        ("teacher.finetune.micro_batch_size=8", set()),
        ("student.training.micro_batch_size=4", set()),
        ("arms.first.training.micro_batch_size=4", set()),
        ("student.training.batching=packed", set()),
        ("teacher.finetune.batching=packed", set()),
        ("knowledge.batching=packed", set()),
        ("trainer.logging_steps=1", set()),
        ("trainer.save_strategy=steps", set()),
        ("train.too_long=drop", set()),
        ("student.training.epochs=1.0", set()),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it(
    finished: Finished, override: str, expected: set[str]
) -> None:
    assert (
        command_line.pending(finished.recipe, "--run-dir", finished.run, "--set", override)
        == expected
    )


def test_a_limit_uses_the_first_rows_and_says_so(finished: Finished, tmp_path: Path) -> None:
    limits = ("--set", "train.limit=60", "--set", "evaluate.0.limit=5")
    result = first("plan", finished.recipe, "--run-dir", tmp_path / "run", "--json", *limits)
    assert result.code == 0, result.err
    assert "train.task: only the first 60 rows of split 'train' are used (limit)" in result.err
    assert "evaluate 'known-world': only the first 5 rows of split 'test'" in result.err
    assert "evaluate 'shifted': only" not in result.err
    first("plan", finished.recipe, "--set", "train.limit=0").mistake("train.limit")


def test_the_plan_says_what_changed(finished: Finished) -> None:
    changed = ("--run-dir", finished.run, "--set", "student.training.epochs=2")
    result = first("report", finished.recipe, "--dry-run", "--json", *changed)
    reasons = {unit["unit"]: unit["reason"] for unit in result.json["units"]}
    assert reasons["distill first"] == "student.training.epochs changed (1.0 -> 2.0)"
    assert reasons["eval shifted/first"] == "after distill first, if its result changes"
    assert reasons["finetune"] == "up to date"


def test_an_added_arm_redoes_no_other(finished: Finished, tmp_path: Path, work: list[str]) -> None:
    run = finished.copied_to(tmp_path)
    arms = command_line.recipe()["arms"] | {"smooth": {"recalibrator": {"name": "label-smoothing"}}}
    path = command_line.write_recipe(tmp_path, arms=arms)
    assert command_line.pending(path, "--run-dir", run) == students("smooth")
    assert first("distill", path, "--run-dir", run).code == 0
    assert work == ["distill smooth"]


def test_another_order_of_arms_changes_the_report_alone(finished: Finished, tmp_path: Path) -> None:
    arms = dict(reversed(command_line.recipe()["arms"].items()))
    path = command_line.write_recipe(tmp_path, arms=arms)
    assert command_line.pending(path, "--run-dir", finished.run) == {"report"}


def test_a_redo_with_the_same_result_leaves_dependants_alone(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    before = command_line.contents(run / "teacher")
    assert first("finetune", finished.recipe, "--run-dir", run, "--force").code == 0
    after = command_line.contents(run / "teacher")
    assert before["model.safetensors"] == after["model.safetensors"]
    assert first("report", finished.recipe, "--run-dir", run).code == 0
    assert work == ["finetune"]


def test_force_redoes_this_stage_and_no_other(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    forced = first("distill", finished.recipe, "--run-dir", run, "--force", "--arm", "distill")
    assert forced.code == 0
    assert "--force" in forced.out
    assert work == ["distill distill"]


def test_a_redo_with_another_result_makes_dependants_stale(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    bins = ("--set", "arms.first.recalibrator.options.criterion=nll")
    assert first("calibrate", finished.recipe, "--run-dir", run, *bins).code == 0
    assert work == ["calibrate first"]
    assert command_line.pending(finished.recipe, "--run-dir", run, *bins) == students("first")
    back = command_line.pending(finished.recipe, "--run-dir", run)
    assert back == {"calibrate first"} | students("first")


@pytest.mark.parametrize(
    ("harm", "name", "expected"),
    [
        ("corrupted", "teacher/model.safetensors", ["finetune"]),
        ("corrupted", "calibration/first.json", ["calibrate first"]),
        ("corrupted", "eval/shifted/teacher.parquet", ["eval shifted/teacher"]),
        ("deleted", "eval/shifted/teacher.manifest.json", ["eval shifted/teacher"]),
        ("deleted", "students/first/config.json", ["distill first"]),
        ("deleted", "report/table.md", ["report"]),
    ],
)
def test_a_damaged_artifact_is_redone_and_nothing_else(
    finished: Finished, tmp_path: Path, work: list[str], harm: str, name: str, expected: list[str]
) -> None:
    run = finished.copied_to(tmp_path)
    path = run / name
    if harm == "deleted":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)
    assert command_line.report(finished.recipe, "--run-dir", run).code == 0
    assert work == expected
    assert command_line.pending(finished.recipe, "--run-dir", run) == set()


def test_changed_rows_make_their_readers_stale(labels: Finished, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labels.recipe.parent / "data", data)
    moved = ["--set", f"train.task.options.path={data}"]
    moved += ["--set", f"evaluate.0.task.options.path={data}", "--run-dir", str(labels.run)]
    assert command_line.pending(labels.recipe, *moved) == set()
    command_line.write_rows(data / "test.jsonl", command_line.sums(29, 60))
    evaluation = {"eval multiple-choice/fine-tune", "report"}
    assert command_line.pending(labels.recipe, *moved) == evaluation
    command_line.write_rows(data / "train.jsonl", command_line.sums(59))
    assert command_line.pending(labels.recipe, *moved) == {"distill fine-tune"} | evaluation


def test_dropped_samples_depend_on_the_context(labels: Finished, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labels.recipe.parent / "data", data)
    long = {"id": "long", "question": "?" * 2000, "choices": ["yes", "no"], "answer": "A"}
    with (data / "test.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    run = labels.copied_to(tmp_path)
    changed = ("--set", f"evaluate.0.task.options.path={data}", "--run-dir", run)
    first("report", labels.recipe, *changed).mistake("'long'", "too_long: drop")
    dropping = ("--set", "train.too_long=drop")
    evaluation = {"eval multiple-choice/fine-tune", "report"}
    assert command_line.pending(labels.recipe, *changed, *dropping) == evaluation
    dropped = first("eval", labels.recipe, *changed, *dropping, "--json")
    assert dropped.code == 0, dropped.err
    assert "1 samples, such as 'long'" in dropped.err
    assert dropped.json["result"]["multiple-choice/fine-tune"]["n"] == 30


def test_a_run_folder_can_move(finished: Finished, tmp_path: Path, work: list[str]) -> None:
    copied = finished.copied_to(tmp_path)
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    shutil.move(copied, moved)
    for path in moved.rglob("*"):
        os.utime(path)  # as `cp -r` leaves them
    assert first("report", finished.recipe, "--run-dir", moved).code == 0
    assert work == []


def test_a_stale_artifact_stays_until_its_successor_is_whole(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    run = finished.copied_to(tmp_path)
    before = command_line.contents(run / "teacher")
    monkeypatch.setattr("firstcli.training.trainer.train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        first("report", finished.recipe, "--run-dir", run, "--set", "teacher.finetune.epochs=2")
    assert command_line.contents(run / "teacher") == before
    assert command_line.pending(finished.recipe, "--run-dir", run) == set()


# Pretrained models, here the finished teacher.


@pytest.fixture(scope="module")
def pretrained(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished job whose models are checkpoints, the teacher taken as it is."""
    folder = tmp_path_factory.mktemp("pretrained")
    shutil.copytree(finished.run / "teacher", folder / "model")
    model = {"family": "causal-lm", "checkpoint": "./model"}
    path = command_line.write_recipe(
        folder,
        teacher={"model": model},
        student={"model": model, "training": command_line.TRAINING},
        evaluate=[{"task": command_line.WORLD}],
        arms={"distill": {}},
    )
    result = command_line.report(path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return Finished(path, folder / "run", result)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.model.options.device=cpu", set()),
        ("student.model.options.device=cpu", set()),
        (
            "student.model.options.dtype=bfloat16",
            {"eval known-world/distill", "report"},
        ),
        (
            "teacher.model.options.dtype=bfloat16",
            {"extract train", "distill distill", "report"}
            | {"eval known-world/teacher", "eval known-world/distill"},
        ),
    ],
)
def test_device_changes_nothing_and_dtype_only_inference(
    pretrained: Finished, override: str, expected: set[str]
) -> None:
    changed = ("--run-dir", pretrained.run, "--set", override)
    assert command_line.pending(pretrained.recipe, *changed) == expected


def test_checkpoints_count_by_content(pretrained: Finished, tmp_path: Path) -> None:
    model = tmp_path / "moved-model"
    shutil.copytree(pretrained.recipe.parent / "model", model)
    changed = ["--run-dir", pretrained.run]
    for role in ("teacher", "student"):
        changed += ["--set", f"{role}.model.checkpoint={model}"]
    assert command_line.pending(pretrained.recipe, *changed) == set()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert "distill distill" in command_line.pending(pretrained.recipe, *changed)


# Options of the commands.


def test_only_runs_one_stage_and_names_what_is_missing(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    new = ("--run-dir", tmp_path / "new")
    missing = first("eval", finished.recipe, *new, "--only")
    command = f"`first finetune {finished.recipe} --run-dir {new[1]}`"
    missing.mistake("--only: finetune is not up to date", f"run {command} first")
    run = finished.copied_to(tmp_path)
    stale = ("--run-dir", run, "--set", "knowledge.top_k=4")
    first("distill", finished.recipe, "--only", *stale).mistake(
        "extract train is not up to date", "knowledge.top_k changed (5 -> 4)", "`first extract"
    )
    assert work == []
    only = first(
        "distill", finished.recipe, "--only", "--force", "--run-dir", run, "--arm", "first"
    )
    assert only.code == 0, only.err
    assert work == ["distill first"]


def test_a_dry_run_writes_nothing(finished: Finished, tmp_path: Path) -> None:
    nowhere = tmp_path / "run"
    result = first("report", finished.recipe, "--run-dir", nowhere, "--dry-run")
    assert result.code == 0
    assert f"{len(ALL)} units: will run finetune, extract (2)" in result.out
    assert not nowhere.exists()
    first("plan", finished.recipe, "--run-dir", finished.run)  # remembers digests and checks
    before = command_line.times(finished.run)
    again = ("--run-dir", finished.run, "--dry-run", "--set", "seed=9")
    assert first("report", finished.recipe, *again).code == 0
    assert first("plan", finished.recipe, "--run-dir", finished.run).code == 0
    assert command_line.times(finished.run) == before


def test_plan_shows_every_stage_with_its_size(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    result = first("plan", path, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0
    units = {unit["unit"]: unit for unit in result.json["units"]}
    assert set(units) == ALL
    assert not any(unit["up_to_date"] for unit in units.values())
    assert "66 samples, 132 positions" in units["finetune"]["estimate"]
    assert "of memory" in units["finetune"]["estimate"]
    assert "kB of knowledge" in units["extract train"]["estimate"]
    assert "30 validation samples" in units["calibrate first"]["estimate"]
    assert units["eval shifted/teacher"]["estimate"].startswith("24 questions; about ")


def test_plan_of_some_arms(finished: Finished, tmp_path: Path) -> None:
    result = first("plan", finished.recipe, "--json", "--arm", "fine-tune")
    assert {unit["unit"] for unit in result.json["units"]} == students("fine-tune") - {"report"}


def test_plan_counts_what_overlaps_and_what_is_left_out(tmp_path: Path) -> None:
    rows = [*command_line.sums(30), command_line.sums(1)[0] | {"id": "again"}]
    command_line.write_rows(tmp_path / "mc" / "train.jsonl", rows)
    task = command_line.of_files(tmp_path / "mc")
    path = command_line.write_recipe(
        tmp_path, train={"task": task}, evaluate=[{"task": task, "split": "train"}]
    )
    result = first("plan", path)
    assert "evaluate 'multiple-choice': all 31 questions are also in the training" in result.err
    assert "1 rows of split 'train' repeat the prompt and response" in result.err
    (tmp_path / "texts").mkdir()
    for number in range(2):
        lines = [f"Say {i}.;{i or ''}" for i in range(20 * number, 20 * number + 20)]
        file = tmp_path / "texts" / f"{number}.csv"
        file.write_text("\n".join(["prompt;response", *lines]))
    files = [str(tmp_path / "texts" / "0.csv"), str(tmp_path / "texts" / "[1-9].csv")]
    instruction = {"name": "instruction", "options": {"path": files}}
    path = command_line.write_recipe(tmp_path, train={"task": instruction, "validation": 0.3})
    shown = first("plan", path).err
    assert "1 rows of split 'train' are left out" in shown
    assert f"train.task: {file}: its cells are separated by semicolons" in shown


def test_a_teacher_that_is_not_fine_tuned_here_is_warned_of(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path, teacher={"model": command_line.MODEL})
    assert "may have seen the validation samples" in first("plan", path).err
    labels = {"fine-tune": {"learn": "labels"}}
    path = command_line.write_recipe(tmp_path, teacher={"model": command_line.MODEL}, arms=labels)
    assert "may have seen the validation samples" not in first("plan", path).err
    followed = {"model": command_line.MODEL, "posthoc": {"name": "logit-temperature"}}
    path = command_line.write_recipe(tmp_path, teacher=followed, arms=labels)
    assert "may have seen the validation samples" in first("plan", path).err


@pytest.mark.parametrize("arms", [{"distill": {}}, {"fine-tune": {"learn": "labels"}}])
def test_a_stage_with_nothing_to_do_says_why(tmp_path: Path, arms: dict[str, Any]) -> None:
    path = command_line.write_recipe(tmp_path, arms=arms)
    first("calibrate", path).mistake("nothing to calibrate", "no arm has a recalibrator")
    if "fine-tune" in arms:
        first("extract", path).mistake("nothing to extract", "every arm learns labels")
    path = command_line.write_recipe(tmp_path, arms=arms, teacher={"model": command_line.MODEL})
    first("finetune", path).mistake("nothing to finetune", "no teacher.finetune")
