"""`first select` from the first samples to the last round, on tiny recipes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from firstcli.active.active_run import ActiveRun
from firstcli.active.data import ActiveData
from firstcli.active.loop import ArmLoop
from firstcli.active.reading import StudentReader
from firstcli.active.select import OUTDATED
from firstcli.api import FloatArray, Sample
from firstcli.pipeline.plan import Request, open_run
from firstcli.tasks.annotated import from_row
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions
from firstcli.workspace.units import Model
from support import command_line
from support.command_line import (
    TRAINING,
    Finished,
    contents,
    first,
    of_files,
    sums,
    times,
    write_rows,
)

CHANGING = (".lock", ".digests.json", ".checks.json", "firstcli.json", "start.mark")
"""Files that hold times, paths of the machine, the number of a process, or a digest of all data."""


def world(train: int) -> dict[str, Any]:
    return {**command_line.WORLD, "options": {**command_line.WORLD["options"], "train": train}}


ACTIVE: dict[str, Any] = {
    "pool": {"task": world(160)},
    "seed_samples": 12,
    "budget": {"samples": 10},
    "rounds": 2,
    "annotator": {"name": "label"},
}
FIRST = {"first": {"recalibrator": {"name": "temperature-scaling"}}}


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write a recipe whose pool are 64 questions of the known world, one arm, one evaluation."""
    given = {
        "evaluate": [{"task": command_line.WORLD}],
        "arms": FIRST,
        "active": ACTIVE,
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return command_line.write_recipe(folder, **given)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two rounds; tests must not change them."""
    folder = tmp_path_factory.mktemp("active")
    path = write_recipe(folder)
    result = first("select", path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return Finished(path, folder / "run", result)


def test_each_round_learns_the_first_samples_and_all_bought_so_far(finished: Finished) -> None:
    folder = finished.run / "rounds" / "first"
    known = [
        [from_row(row) for row in rows(folder / str(number) / "train.jsonl")] for number in range(3)
    ]
    assert [len(samples) for samples in known] == [12, 17, 22]
    for before, after in pairwise(known):
        assert after[: len(before)] == before
    chosen = [
        json.loads((folder / str(number) / "chosen.json").read_text())["ids"] for number in (1, 2)
    ]
    assert [sample.id for sample in known[2][12:]] == [f"pool/{id}" for ids in chosen for id in ids]
    prompts = {sample.prompt for sample in known[2]}
    assert len(prompts) == 22
    held_out = {from_row(row).prompt for row in rows(finished.run / "rounds/.held-out.jsonl")}
    assert not prompts & held_out


def test_the_highest_scores_of_the_whole_pool_are_chosen(finished: Finished) -> None:
    folder = finished.run / "rounds" / "first"
    table = pq.read_table(folder / "1" / "scores.parquet")
    assert table.num_rows == 64
    ranked = sorted(zip(table["score"].to_pylist(), table["id"].to_pylist(), strict=True))
    chosen = json.loads((folder / "1" / "chosen.json").read_text())["ids"]
    assert chosen == [id for _, id in reversed(ranked)][:5]
    later = pq.read_table(folder / "2" / "scores.parquet")
    assert set(later["id"].to_pylist()) == set(table["id"].to_pylist()) - set(chosen)


def test_what_a_round_has_cost_and_brought(finished: Finished) -> None:
    facts = finished.result.json["arms"]["first"]
    assert [each["annotations"] for each in facts] == [0, 5, 10]
    assert [each["round"] for each in facts] == [0, 1, 2]
    assert [each["asked"] for each in facts] == [0, 5, 10]
    for each in facts:
        assert each["contradictions"] == 0  # labels are bought
        assert each["flawed"] is each["right_for_wrong_reasons"] is None  # and nothing else
        measured = each["evaluations"]["known-world"]["first"]
        assert 0 <= measured["accuracy"] <= 1
        assert measured["trust"] == pytest.approx(measured["accuracy"] - measured["ece"])


def test_a_round_is_an_ordinary_run(finished: Finished) -> None:
    run = finished.run / "rounds" / "first" / "2" / "run"
    result = first("eval", run / "recipe.yaml", "--run-dir", run, "--arm", "first", "--dry-run")
    assert result.code == 0, result.err
    assert "everything is up to date" in result.out
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert "active" not in recipe
    assert list(recipe["arms"]) == ["first"]
    assert recipe["teacher"]["model"]["checkpoint"] == str(finished.run / "teacher")


def test_nothing_runs_twice(finished: Finished, work: list[str]) -> None:
    before = times(finished.run)
    result = first("select", finished.recipe, "--run-dir", finished.run)
    assert result.code == 0, result.err
    assert work == []
    changed = {name for name, time in times(finished.run).items() if before.get(name) != time}
    assert {Path(name).name for name in changed} <= {*CHANGING}


def test_rounds_one_at_a_time_end_like_all_at_once(finished: Finished, tmp_path: Path) -> None:
    run = finished.copied_to(tmp_path)
    shutil.rmtree(run / "rounds")
    for number in (1, 2, 2):
        result = first("select", finished.recipe, "--run-dir", run, "--rounds", 1)
        assert result.code == 0, result.err
        assert (run / "rounds" / "first" / str(number) / "round.json").exists()
        assert (run / "rounds" / "first" / "2").exists() == (number == 2)
    assert_same(run, finished.run)


def assert_same(run: Path, expected: Path) -> None:
    """Compare all that a loop leaves, apart from times and absolute paths."""

    def comparable(folder: Path) -> dict[str, bytes]:
        kept = {}
        for name, content in contents(folder / "rounds", but=CHANGING).items():
            if name.endswith("manifest.json"):
                facts = {k: v for k, v in json.loads(content).items() if k != "seconds"}
                content = json.dumps(facts, sort_keys=True).encode()
            for path in (run, expected):
                content = content.replace(str(path).encode(), b"RUN")
            kept[name] = content
        return kept

    found, wanted = comparable(run), comparable(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []


def rounds_done(path: Path, run: Path, *args: object) -> int:
    """Return how many rounds of the first arm the plan counts as done."""
    result = first("plan", path, "--run-dir", run, "--json", *args)
    assert result.code == 0, result.err
    return int(json.loads(result.out)["active"][0]["finished"])


def test_a_plan_counts_the_rounds_that_are_up_to_date(finished: Finished, tmp_path: Path) -> None:
    before = times(finished.run)
    assert rounds_done(finished.recipe, finished.run) == 2
    assert rounds_done(finished.recipe, finished.run, "--set", "active.selector.name=entropy") == 0
    changes = ("student.training.epochs=3", "teacher.finetune.epochs=3", "active.seed_samples=8")
    for change in (*changes, "seed=8"):
        assert rounds_done(finished.recipe, finished.run, "--set", change) == 0
    facts = finished.copied_to(tmp_path) / "rounds" / "first" / "2" / "round.json"
    facts.unlink()
    assert rounds_done(finished.recipe, facts.parents[3]) == 1
    options = ("--run-dir", finished.run, "--set", "active.seed_samples=8")
    assert "0 of 2, then stale" in first("plan", finished.recipe, *options).out
    assert {name for name, time in times(finished.run).items() if before.get(name) != time} <= {
        name for name in times(finished.run) if Path(name).name in CHANGING
    }


def test_a_copied_run_folder_is_up_to_date(
    finished: Finished, tmp_path: Path, work: list[str]
) -> None:
    run, link = finished.copied_to(tmp_path), tmp_path / "link"
    link.symlink_to(run.parent)
    for folder in (run, link / run.name):
        assert rounds_done(finished.recipe, folder) == 2
        result = first("select", finished.recipe, "--run-dir", folder)
        assert result.code == 0, result.err
    assert work == []


def test_data_beside_the_run_folder_is_no_part_of_it(finished: Finished, tmp_path: Path) -> None:
    """Its path begins with that of the run folder."""
    run = open_run(Request(finished.recipe, run_dir=tmp_path / "run", quiet=True))
    assert run.recipe.active
    whole = ActiveRun(run, Request(finished.recipe), ActiveData(run, run.recipe.active), "")
    inside, beside = str(tmp_path / "run" / "a"), str(tmp_path / "run-data" / "a")
    assert whole.without_place({"a": [inside, beside, 1]}) == {"a": ["RUN/a", beside, 1]}


def test_rounds_with_other_settings_are_made_anew_and_not_shown(
    finished: Finished, tmp_path: Path
) -> None:
    run = finished.copied_to(tmp_path)
    both = {**FIRST, "second": {}}
    path = write_recipe(tmp_path, arms=both, active={**ACTIVE, "seed_samples": 8})
    result = first("select", path, "--run-dir", run, "--arm", "second", "--rounds", 1)
    assert result.code == 0, result.err
    assert f"not shown, because {OUTDATED}: first from round 0 on" in result.out
    page = run / "curves"
    assert f"{OUTDATED}: first from round 0 on" in (page / "index.html").read_text("utf-8")
    assert "\nfirst," not in (page / "rounds.csv").read_text("utf-8")
    result = first("select", path, "--run-dir", run, "--arm", "first", "--rounds", 1)
    assert result.code == 0, result.err
    assert "first: round 0 was made with other settings or data, or by an earlier" in result.out
    assert "round 1 was made" not in result.out
    with (page / "rounds.csv").open(encoding="utf-8") as file:
        shown = {(row["arm"], row["round"]) for row in csv.DictReader(file)}
    assert shown == {(arm, number) for arm in ("first", "second") for number in ("0", "1")}
    larger = ("--set", "active.budget.samples=20", "--arm", "first")
    result = first("select", path, "--run-dir", run, "--rounds", 1, *larger)
    assert result.code == 0, result.err
    assert f"{OUTDATED}: second from round 1 on" in result.out
    with (page / "rounds.csv").open(encoding="utf-8") as file:
        shown = {(row["arm"], row["round"]) for row in csv.DictReader(file)}
    assert shown == {("first", "0"), ("first", "1"), ("second", "0")}


def test_commands_that_look_for_a_student_name_the_round(finished: Finished) -> None:
    latest = f"such as {finished.run / 'rounds/first/2/run'}"
    first("predict", finished.run, "1 + 1 =").mistake("neither a student's folder", latest)
    first("predict", finished.recipe, "1 + 1 =", "--run-dir", finished.run).mistake(latest)
    option = f'teacher.from_run={{"run": "{finished.run}", "arm": "first"}}'
    changes = ("--set", "teacher.finetune=null", "--set", "teacher.model=null", "--set", option)
    next_run = finished.run.parent / "next"
    result = first("plan", finished.recipe, "--run-dir", next_run, *changes)
    result.mistake("has no trained student 'first'", latest)


# The labels of the pool.


def files(folder: Path, labels: str) -> dict[str, Any]:
    """Write 30 training rows, 10 test rows and a pool of 20 questions with given labels."""
    data = folder / "data"
    write_rows(data / "train.jsonl", sums(30))
    write_rows(data / "test.jsonl", sums(10, first=30))
    pool = [{**row, "answer": label} for row, label in zip(sums(20, first=40), labels, strict=True)]
    write_rows(folder / "pool.jsonl", pool)
    return {
        "train": {"task": of_files(data), "validation": 0.3},
        "evaluate": [{"task": of_files(data)}],
    }


def selected(folder: Path, labels: str, annotator: str) -> Path:
    """Run one round over a pool with these labels; return the run folder, always the same one."""
    pool = {"task": of_files(folder / "pool.jsonl")}
    active = {**ACTIVE, "pool": pool, "rounds": 1, "annotator": {"name": annotator}}
    active |= {"budget": {"samples": 4}}
    path = write_recipe(folder, **files(folder, labels), active=active)
    result = first("select", path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return folder / "run"


def learned(run: Path) -> list[Sample]:
    """Return the samples that the first round has added to the 12 of the start."""
    return [from_row(row) for row in rows(run / "rounds/first/1/train.jsonl")][12:]


def with_other_labels(folder: Path, run: Path, kept: Collection[str], annotator: str) -> None:
    """The trap: the same pool with other labels, but for those that are kept, changes nothing."""
    before = run.rename(folder / "before")
    ids = [row["id"] for row in sums(20, first=40)]
    labels = "".join("AB"[(i + (id not in kept)) % 2] for i, id in enumerate(ids))
    assert_same(selected(folder, labels, annotator), before)


def test_bought_labels_are_learned_and_no_others_read(tmp_path: Path) -> None:
    run = selected(tmp_path, "AB" * 10, "label")
    bought = {str(sample.id).removeprefix("pool/"): sample.answer for sample in learned(run)}
    assert bought == {id: int(id.removeprefix("q")) % 2 for id in bought}
    assert len(bought) == 4
    with_other_labels(tmp_path, run, bought, "label")


def test_a_label_that_is_corrected_later_is_learned(tmp_path: Path) -> None:
    before = {
        str(sample.id): sample.answer for sample in learned(selected(tmp_path, "AB" * 10, "label"))
    }
    after = {
        str(sample.id): sample.answer for sample in learned(selected(tmp_path, "BA" * 10, "label"))
    }
    assert after == {id: 1 - int(answer or 0) for id, answer in before.items()}


def test_answers_are_learned_and_no_labels_read(tmp_path: Path) -> None:
    run = selected(tmp_path, "AB" * 10, "answer")
    assert [sample.answer for sample in learned(run)] == [None] * 4
    assert (run / "rounds/first/1/run/knowledge/unlabelled").is_dir()
    bought = rows(run / "rounds/first/1/annotations.jsonl")
    assert all(row["tokens_read"] > 5 and len(row["distribution"]) == 2 for row in bought)
    facts = json.loads((run / "rounds/first/1/round.json").read_text())
    assert facts["contradictions"] is None  # no label is known
    with_other_labels(tmp_path, run, (), "answer")


# The training split as the pool, and students that go on from the previous round.


def test_the_training_split_is_the_pool(finished: Finished, tmp_path: Path) -> None:
    """The teacher is a checkpoint; held-out and first samples are no part of the pool."""
    active = {key: value for key, value in ACTIVE.items() if key != "pool"} | {"rounds": 1}
    teacher = {"family": "causal-lm", "checkpoint": str(finished.run / "teacher")}
    student = {"family": "causal-lm", "checkpoint": str(finished.run / "rounds/.start/7")}
    path = write_recipe(
        tmp_path,
        teacher={"model": teacher},
        student={"model": student, "training": TRAINING},
        active=active | {"train": "continue", "stop": {"patience": 1}},
    )
    result = first("select", path, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    folder = tmp_path / "run" / "rounds"
    scored = pq.read_table(folder / "first/1/scores.parquet")["id"].to_pylist()
    first_ones = [row["id"] for row in rows(folder / "first/0/train.jsonl")]
    held_out = [row["id"] for row in rows(folder / ".held-out.jsonl")]
    assert len({*scored, *first_ones, *held_out}) == len(scored) + 12 + len(held_out) == 96
    recipe = yaml.safe_load((folder / "first/1/run/recipe.yaml").read_text())
    start = recipe["student"]["model"]["checkpoint"]
    assert start == str(folder / "first/0/run/students/first")
    measured = result.json["arms"]["first"][0]["evaluations"]["active-held-out"]["first"]
    assert measured["n"] == len(held_out)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_labels_of_the_training_split_are_not_read_before_they_are_bought(
    finished: Finished, tmp_path: Path, has_checkpoint: bool
) -> None:
    """The trap: other labels of all other questions of the pool change nothing."""
    active = {key: value for key, value in ACTIVE.items() if key != "pool"}
    active |= {"rounds": 1, "budget": {"samples": 4}}
    start = {"family": "causal-lm", "checkpoint": str(finished.run / "rounds/.start/7")}
    student = start if has_checkpoint else command_line.MODEL
    run = tmp_path / "run"

    def select(labels: str) -> None:
        sections = files(tmp_path, "AB" * 10)
        given = zip(sums(30), labels, strict=True)
        write_rows(tmp_path / "data/train.jsonl", [{**row, "answer": it} for row, it in given])
        path = write_recipe(
            tmp_path,
            **sections,
            teacher=None,
            student={"model": student, "training": TRAINING},
            arms={"first": {"learn": "labels"}},
            active=active,
        )
        result = first("select", path, "--run-dir", run)
        assert result.code == 0, result.err

    select("AB" * 15)
    known = {row["id"].removeprefix("pool/") for row in rows(run / "rounds/first/1/train.jsonl")}
    held_out = {row["id"] for row in rows(run / "rounds/.held-out.jsonl")}
    assert len(known | held_out) == 12 + 4 + len(held_out) < 30
    known |= held_out
    before = run.rename(tmp_path / "before")
    select("".join("AB"[(i + (f"q{i}" not in known)) % 2] for i in range(30)))
    assert_same(run, before)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Any:
    with command_line.recorded_work(monkeypatch) as keys:
        yield keys


# What the latest student says.


def test_selectors_see_raw_or_recalibrated_probabilities(tmp_path: Path) -> None:
    """Both arms start with the same student, so that a temperature is the only difference."""
    unsure = {**FIRST["first"], "selector": {"name": "entropy"}}
    path = write_recipe(
        tmp_path,
        arms={
            "raw": {**unsure, "confidence": "raw", "posthoc": {"name": "logit-temperature"}},
            "recalibrated": unsure,
        },
        active={**ACTIVE, "rounds": 1},
    )
    run = tmp_path / "run"
    result = first("select", path, "--run-dir", run)
    assert result.code == 0, result.err
    scores = {}
    for arm in ("raw", "recalibrated"):
        table = pq.read_table(run / "rounds" / arm / "1" / "scores.parquet").to_pydict()
        scores[arm] = dict(zip(table["id"], table["score"], strict=True))
    zero = run / "rounds" / "raw" / "0" / "run"
    fitted = json.loads((zero / "calibration" / "raw+T.json").read_text())
    temperature = fitted["state"]["temperature"]
    whole = open_run(Request(zero / "recipe.yaml", run_dir=zero, quiet=True))
    reader = StudentReader(whole, "raw", None, recalibrated=False, seed=7, max_new_tokens=8)
    pool = KnownWorld(KnownWorldOptions(**ACTIVE["pool"]["task"]["options"])).load("train").samples
    asked = [
        replace(sample, response="", answer=None, truth=None)
        for sample in pool
        if sample.id in scores["raw"]
    ]
    assert len(asked) == 64
    answers = reader._reader(None).read(asked, {"answers"}).answers
    assert answers is not None
    for sample, probabilities in zip(asked, answers, strict=True):
        assert scores["raw"][sample.id] == pytest.approx(entropy(probabilities), abs=1e-6)
        flatter = probabilities ** (1 / temperature)
        expected = entropy(flatter / flatter.sum())
        assert scores["recalibrated"][sample.id] == pytest.approx(expected, abs=1e-6)


def entropy(probabilities: FloatArray) -> float:
    return float(-(probabilities * np.log(probabilities)).sum())


def scores_of(run: Path) -> dict[str, float]:
    table = pq.read_table(run / "rounds" / "first" / "1" / "scores.parquet").to_pydict()
    return dict(zip(table["id"], table["score"], strict=True))


def test_a_changed_recalibrator_chooses_anew(tmp_path: Path) -> None:
    """The student stays the same; what the selector sees of it does not."""
    unsure = {**FIRST["first"], "selector": {"name": "entropy"}}
    found: dict[str, dict[str, float]] = {}
    for name in ("logit-temperature", "temperature-scaling", "logit-temperature"):
        path = write_recipe(
            tmp_path,
            arms={"first": {**unsure, "posthoc": {"name": name}}},
            active={**ACTIVE, "rounds": 1},
        )
        result = first("select", path, "--run-dir", tmp_path / "run")
        assert result.code == 0, result.err
        scores = scores_of(tmp_path / "run")
        assert found.setdefault(name, scores) == scores
    assert found["logit-temperature"] != found["temperature-scaling"]


def test_what_a_choice_depends_on(tmp_path: Path) -> None:
    """Prices, limits of the budget and lengths of texts; not the budget of later rounds."""
    entropy = {"selector": {"name": "entropy"}, "annotator": {"name": "answer"}}

    def key(**settings: Any) -> str:
        path = write_recipe(tmp_path, active={**ACTIVE, **entropy, **settings})
        request = Request(path, run_dir=tmp_path / "run", quiet=True)
        run = open_run(request)
        assert run.recipe.active
        whole = ActiveRun(run, request, ActiveData(run, run.recipe.active), "")
        return ArmLoop(whole, Model("first"))._choice_key(1)

    assert key() == key(budget={"samples": 20}, rounds=4) == key(stop={"patience": 3})
    prices = {"read": 1.0, "written": 2.0}
    keys = {
        key(),
        key(max_new_tokens=9),
        key(prices=prices),
        key(budget={"tokens": 10}),
        key(budget={"cost": 10}, prices=prices),
        key(budget={"tokens": 10}, prices=prices),
    }
    assert len(keys) == 6
