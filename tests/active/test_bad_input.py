"""Mistakes in the section `active` and in its data: one sentence each, exit code 2."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest

from support import command_line
from support.command_line import MODEL, Result, first, of_files, sums, write_rows

POOL = 20
ACTIVE: dict[str, Any] = {"seed_samples": 5, "budget": {"samples": 4}, "rounds": 2}


def planned(folder: Path, *args: object, active: dict[str, Any] | None, **sections: Any) -> Result:
    """Plan a recipe with 30 training rows, 10 test rows and a pool of 20 questions."""
    data = folder / "data"
    write_rows(data / "train.jsonl", sums(30))
    write_rows(data / "test.jsonl", sums(10, first=30))
    if not (folder / "pool.jsonl").exists():
        write_rows(folder / "pool.jsonl", sums(POOL, first=40))
    pool = {"task": of_files(folder / "pool.jsonl")}
    given = {
        "train": {"task": of_files(data), "validation": 0.3},
        "evaluate": [{"task": of_files(data)}],
        "active": None if active is None else {"pool": pool, **ACTIVE, **active},
        "arms": {"first": {"recalibrator": {"name": "temperature-scaling"}}},
        **sections,
    }
    path = command_line.write_recipe(folder, **given)
    return first("plan", path, "--run-dir", folder / "run", *args)


@pytest.mark.parametrize(
    ("active", "parts"),
    [
        ({"budget": {}}, ("active.budget", "no limit", "samples, tokens or cost")),
        ({"budget": {"samples": 0}}, ("active.budget.samples", "at least 1")),
        ({"budget": {"cost": 2.0}}, ("active.budget.cost", "active.prices")),
        (
            {"budget": {"cost": 2.0}, "prices": {"read": 0, "written": 0}},
            ("active.budget.cost", "limits nothing", "active.prices are 0", "samples or tokens"),
        ),
        ({"budget": 1000}, ("active.budget: found 1000", "a mapping such as {samples: 1000}")),
        (
            {"rounds": 9},
            ("active.rounds", "9 rounds are more than the 4 annotations of the budget"),
        ),
        ({"budget": {"samples": 500}}, ("active.budget.samples", "500", "20 questions")),
        ({"seed_samples": 100}, ("active.seed_samples", "100", "labelled samples")),
        ({"selector": {"name": "entropie"}}, ("active.selector.name", "did you mean 'entropy'")),
        ({"annotator": {"name": "oracle"}}, ("active.annotator", "'oracle' reads explanations")),
        (
            {"annotator": {"name": "revise"}},
            ("active.annotator", "'revise' reads explanations", "has none"),
        ),
        (
            {"selector": {"name": "explanation-uncertainty"}},
            ("active.selector", "'explanation-uncertainty' reads explanations", "has none"),
        ),
        (
            {"annotator": {"name": "explain"}},
            ("annotator 'explain'", "no room for a text in the teacher's context", "`template`"),
        ),
        ({"seed_sample": 3}, ("active.seed_sample", "did you mean 'seed_samples'")),
        ({"pool": {}}, ("active.pool", "teacher.finetune would read")),
        (
            {"annotator": {"name": "label"}, "budget": {"tokens": 500}},
            ("active.budget", "arms.first", "'label' asks no teacher", "add samples"),
        ),
        ({"stop": {"patience": 0}}, ("active.stop.patience", "at least 1")),
        ({"train": "from_scratch"}, ("active.train", "'from-scratch'")),
    ],
)
def test_the_section(tmp_path: Path, active: dict[str, Any], parts: tuple[str, ...]) -> None:
    planned(tmp_path, active=active).mistake(*parts)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        (
            {"teacher": None, "arms": {"a": {"learn": "labels"}}},
            ("active.annotator", "'answer' asks a teacher"),
        ),
        (
            {"arms": {"first": {"selector": {"name": "entropy"}}}, "active": None},
            ("arms.first.selector: is for the section `active`, which is missing",),
        ),
        (
            {"arms": {"a": {"selector": {"name": "instruction-following-difficulty"}}}},
            ("arms.a.selector: 'instruction-following-difficulty' reads responses",),
        ),
        (
            {"arms": {"a": {"budget": {"cost": 3.0}}}},
            ("arms.a.budget.cost: needs the prices of tokens", "active.prices"),
        ),
        (
            {"arms": {"a": {"selector": {"name": "typo"}}}},
            ("arms.a.selector.name: unknown selector 'typo'",),
        ),
        (
            {"arms": {"a": {"budget": {"samples": 1}}}},
            ("arms.a.budget.samples: 2 rounds are more than the 1 annotations",),
        ),
        (
            {"arms": {"a": {"annotator": {"name": "label"}, "budget": {"tokens": 9}}}},
            ("arms.a.budget: 'label' asks no teacher",),
        ),
        (
            {"teacher": None, "arms": {"a": {"learn": "labels", "annotator": {"name": "explain"}}}},
            ("arms.a.annotator: 'explain' asks a teacher",),
        ),
        (
            {"arms": {"a": {"budget": {"samples": 500}}}},
            ("arms.a.budget.samples", "500", "20 questions"),
        ),
        ({"knowledge": {"folds": 2}}, ("active", "knowledge.folds")),
        ({"teacher": {"model": MODEL, "finetune": {}, "seeds": [1, 2]}}, ("teacher.seeds",)),
    ],
)
def test_the_rest_of_the_recipe(
    tmp_path: Path, sections: dict[str, Any], parts: tuple[str, ...]
) -> None:
    planned(tmp_path, **{"active": {}, **sections}).mistake(*parts)


def test_the_name_of_the_evaluation_that_stops_is_taken(tmp_path: Path) -> None:
    evaluate = [{"task": of_files(tmp_path / "data"), "name": "active-held-out"}]
    result = planned(tmp_path, active={"stop": {}}, evaluate=evaluate)
    result.mistake("active.stop", "'active-held-out'", "evaluate[0]")


def test_a_tokenizer_is_not_trained_on_explanations_before_they_are_bought(tmp_path: Path) -> None:
    """Candidates contain the steps."""
    sections: dict[str, Any] = {
        "train": {"task": {"name": "known-steps", "options": {"train": 60, "pool": 60}}},
        "evaluate": [{"task": {"name": "known-steps"}, "answers": "scored"}],
        "teacher": None,
        "arms": {"a": {"learn": "labels"}},
    }
    active = {"annotator": {"name": "label"}}
    result = planned(tmp_path, active={**active, "pool": {}}, **sections)
    result.mistake("active.pool", "the tokenizer of student.model", "before they are bought")


def test_a_tokenizer_is_not_trained_on_right_labels_before_they_are_bought(tmp_path: Path) -> None:
    """Of more than 26 candidates, tokenizers are trained on the right one alone."""
    codes = {f"class {letter}": letter for letter in ascii_letters[:30]}
    names = list(codes)
    rows = [{"text": f"What is {i}?", "label": names[i % 30]} for i in range(60)]
    write_rows(tmp_path / "many" / "train.jsonl", rows)
    write_rows(tmp_path / "many" / "test.jsonl", [{"text": "What?", "label": names[0]}])
    options = {"path": str(tmp_path / "many"), "labels": names, "answers": "codes"}
    task = {"name": "classification", "options": {**options, "codes": codes}}
    sections: dict[str, Any] = {
        "train": {"task": task, "validation": 0.3},
        "evaluate": [{"task": task}],
        "teacher": None,
        "arms": {"a": {"learn": "labels"}},
    }
    active = {"annotator": {"name": "label"}, "pool": {}}
    result = planned(tmp_path, active=active, **sections)
    result.mistake("active.pool", "more than 26 candidates", "before it is bought")


def test_recalibrated_confidence_needs_held_out_samples(tmp_path: Path) -> None:
    data = {"task": of_files(tmp_path / "data"), "validation": 0}
    sections: dict[str, Any] = {"train": data, "arms": {"a": {"recalibrator": {"name": "none"}}}}
    uncertain = {"selector": {"name": "entropy"}}
    planned(tmp_path, active=uncertain, **sections).mistake("active.confidence", "held-out")
    result = planned(tmp_path, active={**uncertain, "confidence": "raw"}, **sections)
    assert result.code == 0, result.err
    arm = {"selector": {"name": "entropy"}, "confidence": "recalibrated"}
    result = planned(tmp_path, active={"confidence": "raw"}, train=data, arms={"a": arm})
    result.mistake("arms.a.confidence: recalibrated probabilities need held-out samples")


def test_the_place_of_a_mistake_is_the_line_of_the_arm(tmp_path: Path) -> None:
    difficult = {"selector": {"name": "instruction-following-difficulty"}}
    result = planned(tmp_path, active={}, arms={"a": difficult})
    path = tmp_path / "recipe.yaml"
    line = path.read_text("utf-8").split("instruction-following")[0].count("\n")  # `selector:`
    result.mistake(f"recipe.yaml:{line}: arms.a.selector: ")


def test_prices_of_nothing_are_allowed_beside_another_limit(tmp_path: Path) -> None:
    free = {"budget": {"cost": 2.0, "samples": 4}, "prices": {"read": 0, "written": 0}}
    result = planned(tmp_path, active=free)
    assert result.code == 0, result.err


def test_a_question_of_an_evaluation(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", sums(POOL, first=35))
    planned(tmp_path, active={}).mistake("active.pool", "5 of its 20 questions", "evaluate", "q35")


def test_a_pool_without_questions(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", sums(POOL))  # all of them are training rows
    planned(tmp_path, active={}).mistake("active.pool", "no question is left")


def test_repeated_questions_count_once(tmp_path: Path) -> None:
    pool = sums(POOL, first=40)
    again = [{**row, "id": f"again-{row['id']}"} for row in pool[:3]]
    write_rows(tmp_path / "pool.jsonl", [*pool, *again])
    result = planned(tmp_path, "--json", active={})
    assert result.code == 0, result.err
    assert "3 questions repeat an earlier one" in " ".join(result.err.split())
    assert result.json["active"][0]["pool"] == POOL


def test_the_plan_states_the_budget_and_its_cost(tmp_path: Path) -> None:
    prices = {"read": 1e6, "written": 2e6}  # one per token that is read
    result = planned(tmp_path, "--json", active={"prices": prices})
    assert result.code == 0, result.err
    (arm,) = result.json["active"]
    assert (arm["annotations"], arm["pool"], arm["seed_samples"]) == (4, POOL, 5)
    assert arm["cost"] == arm["tokens_read"] > 4
    assert [unit["unit"] for unit in result.json["units"]] == ["finetune"]
    shown = " ".join(planned(tmp_path, active={"prices": prices}).out.split())
    assert "budget of each arm and seed: 4 annotations, in 2 rounds" in shown
    assert "first@7 random answer 0 of 2 4" in shown


def test_an_arm_with_its_own_budget(tmp_path: Path) -> None:
    arm = {"recalibrator": {"name": "none"}}
    arms = {"some": arm, "all": {**arm, "budget": {"samples": POOL}}}
    result = planned(tmp_path, "--json", active={}, arms=arms)
    assert result.code == 0, result.err
    assert [each["annotations"] for each in result.json["active"]] == [4, POOL]
    shown = " ".join(planned(tmp_path, active={}, arms=arms).out.split())
    assert "budget of each arm and seed, unless the arm has its own: 4 annotations" in shown


def test_select_without_the_section(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    first("select", path, "--run-dir", tmp_path / "run").mistake("no section `active`")


def test_mistakes_in_the_data_are_found_before_the_teacher_is_trained(tmp_path: Path) -> None:
    active = {"annotator": {"name": "explain"}}  # whose prompts are too long for the teacher
    for settings in ({"budget": {"samples": 500}}, active):
        planned(tmp_path, active=settings)
        result = first("select", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run")
        result.mistake("500" if "budget" in settings else "annotator 'explain'")
        assert not (tmp_path / "run" / "teacher").exists()


def test_an_unknown_arm(tmp_path: Path) -> None:
    planned(tmp_path, "--arm", "fist", active={}).mistake("--arm fist", "did you mean 'first'")
