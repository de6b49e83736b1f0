"""Seeds, post-hoc temperatures, out-of-fold knowledge and k by arm: a real, tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from firstcli.data import splits
from firstcli.knowledge.store import Knowledge
from firstcli.metrics.records import EvalRecords
from firstcli.pipeline.plan import Request, open_run
from firstcli.plugins import recalibrators
from firstcli.plugins.recalibrators import CheckedRecalibrator
from firstcli.recalibration.builtin import LogitTemperature
from firstcli.recalibration.candidates import recalibrated
from firstcli.stages import inputs, posthoc, role_models, scoring, shared_tokens, units_of
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import first

T = {"name": "logit-temperature"}
TS = {"name": "temperature-scaling"}
WORLD = command_line.WORLD | {"options": command_line.WORLD["options"] | {"unanswerable": 20}}
SECTIONS: dict[str, Any] = {
    "seeds": [1, 2],
    "knowledge": {"top_k": 6, "folds": 2},
    "teacher": {"model": command_line.MODEL, "finetune": command_line.TRAINING, "posthoc": T},
    "evaluate": [
        {"task": WORLD},
        {"task": WORLD, "name": "unanswerable", "split": "unanswerable"},
    ],
    "arms": {
        "fine-tune": {"learn": "labels", "posthoc": T},
        "first": {"recalibrator": TS},
        "seen": {"recalibrator": TS, "out_of_fold": False, "top_k": 2},
    },
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and its finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("baselines")
    path = command_line.write_recipe(folder, **SECTIONS)
    result = first("report", path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return path, folder / "run"


def opened(done: tuple[Path, Path]) -> Run:
    return open_run(Request(done[0], run_dir=done[1], quiet=True))


def records(done: tuple[Path, Path], model: str, evaluation: str = "known-world") -> EvalRecords:
    return EvalRecords.load(done[1] / "eval" / evaluation / f"{model}.parquet")


# Seeds.


def test_seeds_make_different_students(done: tuple[Path, Path]) -> None:
    weights = {
        name: (done[1] / "students" / name / "model.safetensors").read_bytes()
        for name in ("fine-tune@1", "fine-tune@2", "first@1", "first@2")
    }
    assert len(set(weights.values())) == 4
    assert records(done, "first@1").ids == records(done, "first@2").ids


def test_a_seed_of_several_is_the_student_that_it_makes_alone(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = command_line.write_recipe(tmp_path, **SECTIONS | {"seeds": [2]})
    result = first("distill", alone, "--arm", "fine-tune", "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    name = "students/fine-tune@2/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (done[1] / name).read_bytes()


def test_one_more_seed_redoes_no_other(done: tuple[Path, Path]) -> None:
    more = command_line.pending(done[0], "--run-dir", done[1], "--set", "seeds=[1,2,3]")
    assert more - {"report"} and all("@3" in key for key in more - {"report"})
    assert "distill first@3" in more and not command_line.pending(done[0], "--run-dir", done[1])


# Post-hoc temperatures.


def test_a_temperature_changes_confidence_and_no_answer(done: tuple[Path, Path]) -> None:
    plain, followed = records(done, "fine-tune@1"), records(done, "fine-tune@1+T")
    state = json.loads((done[1] / "calibration" / "fine-tune@1+T.json").read_text("utf-8"))
    temperature = state["state"]["temperature"]
    assert state["criterion"] == "nll" and state["rows"] == 30 and temperature != 1
    expected = np.exp(log_softmax(plain.log_probs / temperature, axis=1))
    np.testing.assert_allclose(followed.probabilities, expected, rtol=1e-12)
    assert followed.prediction.tolist() == plain.prediction.tolist()
    assert followed.ids == plain.ids
    assert followed.confidence_full is None and followed.candidate_mass is None


def tempered(temperature: float) -> CheckedRecalibrator:
    options = LogitTemperature.Options(temperature=temperature)
    return recalibrators.recalibrator("logit-temperature", options)


def test_temperature_one_renormalises_only() -> None:
    rows = [np.log([0.5, 0.2, 0.1]), np.log([0.3, 0.6])]
    plain = EvalRecords.from_log_probs(["a", "b"], [0, 1], rows, [[0.5, 0.5, 0], [1, 0]])
    same = recalibrated(plain, tempered(1.0), "task")
    np.testing.assert_allclose(same.probabilities, plain.probabilities, rtol=1e-15)
    assert same.truth is not None and plain.truth is not None
    assert same.truth.tolist() == plain.truth.tolist()
    flat = recalibrated(plain, tempered(1e6), "task")
    np.testing.assert_allclose(flat.confidence, [1 / 3, 1 / 2], atol=1e-5)
    sure = recalibrated(plain, tempered(0.01), "task")
    np.testing.assert_allclose(sure.confidence, 1, atol=1e-12)


def test_its_temperature_is_fitted_on_what_the_model_says_where_it_decides(
    done: tuple[Path, Path],
) -> None:
    """Against the whole softmax at the last position of each validation prompt."""
    import torch

    run = opened(done)
    unit = units_of(run.recipe, run.folder)["posthoc fine-tune@1+T"]
    rows = posthoc._rows(run, unit)
    top, is_label = scoring.answer_rows(run, unit, rows, {})
    topk = top.topk
    assert topk.shape == (30, 6) == is_label.shape
    assert unit.model
    model = role_models.model(run, unit.model)
    for row, probabilities, true in zip(rows, topk, is_label, strict=True):
        assert row.answer_position is not None
        ids = torch.tensor(row.input_ids[None, : row.answer_position], dtype=torch.long)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double()
        best = logits.softmax(-1).topk(6)
        np.testing.assert_allclose(probabilities, best.values, rtol=1e-4)
        assert true.tolist() == (best.indices == int(row.input_ids[row.answer_position])).tolist()


def test_questions_without_an_answer_are_judged_by_confidence(done: tuple[Path, Path]) -> None:
    unanswerable = records(done, "fine-tune@1+T", "unanswerable")
    assert len(unanswerable) == 20 and not unanswerable.answerable


# Out-of-fold knowledge.


def test_no_row_is_scored_by_a_teacher_that_has_seen_it(done: tuple[Path, Path]) -> None:
    run = opened(done)
    rows = inputs.training_rows(run, "teacher", "train")
    seen = [{one.id for one in inputs.rows_of_fold(run, fold, seen=True)} for fold in (1, 2)]
    unseen = [{one.id for one in inputs.rows_of_fold(run, fold, seen=False)} for fold in (1, 2)]
    assert unseen[0] | unseen[1] == {one.id for one in rows} and not unseen[0] & unseen[1]
    assert [not a & b for a, b in zip(seen, unseen, strict=True)] == [True, True]
    stored = Knowledge(done[1] / "knowledge" / "out-of-fold")
    assert len(stored) == len(rows)
    limit = shared_tokens.shared_vocabulary(run)
    from firstcli.models import readout

    for fold in (1, 2):
        reader = readout.Reader(role_models.teacher(run, fold))
        for row in list(inputs.rows_of_fold(run, fold, seen=False))[:5]:
            exact = scoring.top_k_of(reader, [row], 6, limit)[row.id]
            known = stored.of(row)
            assert known.token_ids.tolist() == exact.token_ids.tolist()
            np.testing.assert_allclose(np.exp(known.log_probs), np.exp(exact.log_probs), atol=5e-3)


def test_the_fold_hangs_on_the_prompt_alone() -> None:
    from firstcli.api import Sample

    samples = [Sample(f"prompt {i}", "yes") for i in range(2000)]
    folds = [splits.fold_of(sample, 5) for sample in samples]
    assert set(folds) == {1, 2, 3, 4, 5}
    assert min(folds.count(fold) for fold in set(folds)) > 320
    assert splits.fold_of(Sample("prompt 7", "no", id="x"), 5) == folds[7]


def test_too_many_folds_are_refused(done: tuple[Path, Path], tmp_path: Path) -> None:
    result = first("plan", done[0], "--run-dir", tmp_path, "--set", "knowledge.folds=67")
    assert result.code == 2 and "knowledge.folds: 67 folds of 66 training samples" in result.err


def test_folds_leave_the_teacher_s_own_knowledge_alone(done: tuple[Path, Path]) -> None:
    redone = command_line.pending(done[0], "--run-dir", done[1], "--set", "knowledge.folds=3")
    assert {"finetune fold 1", "extract out-of-fold", "distill first@1"} <= redone
    assert not {"finetune", "extract train", "extract validation", "distill seen@1"} & redone


def test_out_of_fold_knowledge_is_verified_and_repaired(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    run = command_line.copy_run(done[1], tmp_path / "run")
    folder = run / "knowledge" / "out-of-fold"
    before = command_line.contents(folder, but=["manifest.json"])
    sound = first("extract", done[0], "--run-dir", run, "--verify", 5)
    assert sound.code == 0 and "extract out-of-fold: 5 samples" in sound.out
    (folder / "shard-00001.parquet").unlink()
    assert first("extract", done[0], "--run-dir", run, "--repair").code == 0
    assert command_line.contents(folder, but=["manifest.json"]) == before


# k by arm.


def test_an_arm_s_k_is_what_extraction_with_that_k_gives(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    run = command_line.copy_run(done[1], tmp_path / "run")
    smaller = ("--set", "knowledge.top_k=2", "--set", "arms.seen.top_k=2", "--run-dir", run)
    assert first("extract", done[0], *smaller).code == 0
    full, small = (Knowledge(of / "knowledge" / "train") for of in (done[1], run))
    for row in inputs.training_rows(opened(done), "teacher", "train"):
        kept, known = full.of(row).first(2), small.of(row)
        assert kept.token_ids.tolist() == known.token_ids.tolist()
        np.testing.assert_allclose(np.exp(kept.log_probs), np.exp(known.log_probs), atol=5e-3)
        np.testing.assert_allclose(np.exp(kept.log_tail), np.exp(known.log_tail), atol=1e-2)


def test_students_of_fewer_tokens_are_taught_less_mass(done: tuple[Path, Path]) -> None:
    facts = [
        json.loads((done[1] / "students" / name / "manifest.json").read_text("utf-8"))["facts"]
        for name in ("first@1", "seen@1")
    ]
    assert facts[0]["P"] > facts[1]["P"] > 0
    fitted = json.loads((done[1] / "calibration" / "seen.json").read_text("utf-8"))
    assert [one["rank"] for one in fitted["ranks"]] == [1, 2]


# Facts about the teacher.


def test_the_teacher_s_first_token_is_judged_where_it_decides(done: tuple[Path, Path]) -> None:
    run = opened(done)
    for part in ("train", "validation", "out-of-fold"):
        folder = done[1] / "knowledge" / part
        facts = json.loads((folder / "manifest.json").read_text("utf-8"))["facts"]
        rows = inputs.training_rows(run, "teacher", part)
        stored, confidence, correct = Knowledge(folder), [], []
        for row in rows:
            assert row.answer_position is not None
            known, at = stored.of(row), row.answer_position - row.start
            confidence.append(np.exp(known.log_probs[at, 0]))
            correct.append(known.token_ids[at, 0] == row.targets[at])
        assert facts["judged"] == len(rows)
        assert facts["accuracy"] == pytest.approx(np.mean(correct))
        assert facts["confidence"] == pytest.approx(np.mean(confidence), abs=5e-3)


def test_concentration_is_measured_over_many_ranks(done: tuple[Path, Path]) -> None:
    found = json.loads((done[1] / "knowledge" / "train" / "concentration.json").read_text("utf-8"))
    mean, low, high = (np.array(found[name]) for name in ("mean", "low", "high"))
    assert found["ranks"] == list(range(1, 101)) and found["positions"] == 132
    assert (np.diff(mean) >= 0).all() and (low <= mean).all() and (mean <= high).all()
    assert (np.array(found["p05"]) <= np.array(found["p95"])).all() and high[-1] <= 1
    facts = json.loads((done[1] / "knowledge" / "train" / "manifest.json").read_text("utf-8"))
    assert mean[5] == pytest.approx(facts["facts"]["mean_top_k_mass"], abs=2e-3)
    sizes = found["bytes"]
    assert list(map(int, sizes)) == [1, 2, 3, 5, 6, 10, 20, 50, 100]
    assert list(sizes.values()) == sorted(sizes.values())


# Mistakes.

QUESTIONS = {"a": {"recalibrator": {"name": "none"}}}
MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"seeds": [1, 1]}, ("seeds: found [1, 1], expected seeds without repetition",)),
    ({"arms": {"a": {"top_k": 6}}}, ("arms.a.top_k: 6 exceeds knowledge.top_k (5)",)),
    ({"arms": {"a": {"out_of_fold": True}}}, ("arms.a.out_of_fold", "set knowledge.folds")),
    (
        {"arms": {"a": {"learn": "labels", "out_of_fold": False}}},
        ("arms.a.out_of_fold: has no effect with 'learn: labels'",),
    ),
    (
        {"arms": {"a": {"posthoc": {"name": "logit-temperatur"}}}},
        ("arms.a.posthoc.name: unknown recalibrator", "did you mean 'logit-temperature'?"),
    ),
    (
        {"arms": {"a": {"posthoc": T | {"options": {"temperature": 2.0}}}}},
        ("arms.a.posthoc.options: its temperature is fitted", "leave it out"),
    ),
    (
        {"arms": {"a": {"posthoc": T | {"options": {"criterium": "nll"}}}}},
        ("arms.a.posthoc.options.criterium: unknown key (did you mean 'criterion'?)",),
    ),
    (
        {"arms": {"a": {"recalibrator": {"name": "label-smoothing"}, "top_k": 1}}},
        ("arms.a.recalibrator: recalibrator 'label-smoothing' needs at least two", "top_k is 1"),
    ),
    (
        {
            "train": {"task": command_line.WORLD, "validation": 0},
            "arms": {"a": {"learn": "labels", "posthoc": T}},
        },
        ("arms.a.posthoc: it is fitted on held-out samples", "train.validation is 0"),
    ),
    (
        {"teacher": {"model": command_line.MODEL}, "knowledge": {"folds": 2}, "arms": QUESTIONS},
        ("knowledge.folds", "there is no teacher.finetune; add it"),
    ),
]


@pytest.mark.parametrize(("sections", "parts"), MISTAKES)
def test_an_impossible_recipe_gets_one_sentence(
    tmp_path: Path, sections: dict[str, Any], parts: tuple[str, ...]
) -> None:
    result = first("plan", command_line.write_recipe(tmp_path, **sections))
    result.mistake("recipe.yaml:", *parts)


def test_a_post_hoc_temperature_for_an_instruction_task_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}", "output": str(i)} for i in range(8)]
    command_line.write_rows(tmp_path / "data" / "train.jsonl", rows)
    task = {"name": "instruction", "options": {"path": str(tmp_path / "data")}}
    arms = {"a": {"learn": "labels", "posthoc": T}}
    result = first("plan", command_line.write_recipe(tmp_path, train={"task": task}, arms=arms))
    result.mistake("arms.a.posthoc: task 'instruction' has no candidates to choose from")
