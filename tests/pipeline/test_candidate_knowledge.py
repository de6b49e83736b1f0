"""`knowledge.over: candidates`: a teacher and a student with different tokenizers, on questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import inputs, role_models, scoring, shared_tokens, teacher_knowledge, units_of
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import TRAINING, Finished, first, of_files, write_rows

ARMS: dict[str, Any] = {
    "fine-tune": {"learn": "labels"},
    "first": {"recalibrator": {"name": "temperature-scaling"}},
}
ANSWERS = ["wet", "dry and green", "green"]


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with three candidates, every fifth with two; one candidate has several tokens."""
    return [
        {
            "id": f"q{i}",
            "question": f"What is water {i}?",
            "choices": ANSWERS[: 2 if i % 5 == 0 else 3],
            "answer": i % 2,
        }
        for i in range(start, start + count)
    ]


def model(folder: Path) -> dict[str, Any]:
    return {"family": "causal-lm", "checkpoint": str(folder)}


@pytest.fixture(scope="module")
def sections(
    tmp_path_factory: pytest.TempPathFactory,
    pico_folder: Path,
    piece_tokenizer: PreTrainedTokenizerFast,
    make_llama: MakeLlama,
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("candidates")
    write_rows(folder / "data" / "train.jsonl", questions(60))
    write_rows(folder / "data" / "test.jsonl", questions(12, 100))
    make_llama(len(piece_tokenizer), seed=1).save_pretrained(folder / "student")
    piece_tokenizer.save_pretrained(folder / "student")
    task = of_files(folder / "data", prompt="{question}\nAnswer:", respond_with="text")
    return {
        "train": {"task": task, "validation": 0.3},
        "evaluate": [{"task": task, "name": "own"}],
        "teacher": {"model": model(pico_folder), "finetune": TRAINING},
        "student": {"model": model(folder / "student"), "training": TRAINING},
        "knowledge": {"over": "candidates"},
        "arms": ARMS,
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, sections: dict[str, Any]) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("job")
    recipe = command_line.write_recipe(folder, **sections)
    result = first("report", recipe, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    yield Finished(recipe, folder / "run", result)


def opened(job: Finished) -> Run:
    return Run(load_recipe(job.recipe), job.run, Console(quiet=True))


def test_a_teacher_with_another_tokenizer_teaches(job: Finished) -> None:
    run = opened(job)
    stored = teacher_knowledge.stored_knowledge(run, "train")
    assert stored.top_k == 3  # of `top_k: 5`, because no sample has more candidates
    assert {facts["over"] for facts in stored.facts} == {"candidates"}
    knowledge = teacher_knowledge.knowledge_of(run, run.recipe.arms["first"])
    unit = units_of(run.recipe, run.folder)["distill first"]
    rows = inputs.rows_of(run, unit)
    teachers = dict(inputs.candidate_tokens(run, "teacher", "train"))
    students = inputs.candidate_tokens(run, "student", "train")
    assert any(teachers[row.id] != students[row.id] for row in rows)
    for row in rows:
        known = knowledge.of(row)
        assert row.answer_position is not None
        position = row.answer_position - row.start
        count = len(students[row.id])
        assert set(known.token_ids[position, :count].tolist()) == set(students[row.id])
        others = np.arange(len(row.targets)) != position
        assert known.token_ids[others, 0].tolist() == row.targets[others].tolist()
        assert (known.log_probs[others, 0] == 0).all()
    assert command_line.pending(job.recipe, "--run-dir", job.run) == set()


def test_recalibrators_are_fitted_on_the_commonest_number_of_candidates(job: Finished) -> None:
    assert "validation rows, those with the commonest number of candidates, 3" in job.result.err


def test_stored_probabilities_are_those_of_the_whole_candidates(job: Finished) -> None:
    """The same as a sum over the teacher's tokens, one candidate at a time, in float64."""
    import torch

    run = opened(job)
    stored = teacher_knowledge.stored_knowledge(run, "train")
    teacher = role_models.teacher(run)
    for question in inputs.candidate_questions(run, "train")[:6]:
        expected = []
        for tokens in question.candidates:
            ids = torch.tensor([[*question.input_ids[: question.start].tolist(), *tokens]])
            with torch.no_grad():
                log_p = teacher(ids).logits[0].double().log_softmax(-1)
            places = range(question.start - 1, ids.shape[1] - 1)
            expected.append(
                float(np.exp(sum(log_p[i, t].item() for i, t in zip(places, tokens, strict=True))))
            )
        row = next(r for r in inputs.knowledge_rows(run, "train") if r.id == question.id)
        known = stored.of(row)
        found = dict(zip(known.token_ids[0].tolist(), np.exp(known.log_probs[0]), strict=True))
        for index, p in enumerate(expected):
            assert found[index] == pytest.approx(p, abs=0.005)
        assert np.exp(known.log_tail[0]) == pytest.approx(1 - sum(expected), abs=0.005)


def test_verify_scores_again(job: Finished) -> None:
    verified = first("extract", job.recipe, "--run-dir", job.run, "--verify", 5, "--json")
    assert verified.json["verified"]["extract train"]["samples"] == 5
    assert verified.json["verified"]["extract train"]["probability"] < 0.005


def test_with_equal_tokenizers_it_is_knowledge_over_tokens_restricted_to_the_candidates(
    tmp_path: Path,
) -> None:
    """The candidates of `known-world` have one token each."""
    recipe = command_line.write_recipe(tmp_path, arms=ARMS)
    run = Run(load_recipe(recipe), tmp_path / "run", Console(quiet=True))
    assert first("extract", recipe, "--run-dir", run.folder).code == 0
    over = Run(load_recipe(recipe, ["knowledge.over=candidates"]), run.folder, Console(quiet=True))
    unit = units_of(over.recipe, over.folder)["extract train"]
    (shard,) = scoring.shards_of(over, unit)
    scored = scoring.scorer_of(over, unit)(shard, teacher_knowledge.knowledge_width(over))
    tokens = inputs.candidate_tokens(run, "teacher", "train")
    unit = units_of(run.recipe, run.folder)["extract train"]
    (shard,) = scoring.shards_of(run, unit)
    whole = scoring.scorer_of(run, unit)(shard, shared_tokens.shared_vocabulary(run))
    for row in shard.rows:
        position = row.answer_position - row.start  # type: ignore[operator]
        of_tokens = dict(
            zip(
                whole[row.id].token_ids[position].tolist(),
                np.exp(whole[row.id].log_probs[position], dtype=float),
                strict=True,
            )
        )
        known = scored[row.id]
        expected = [of_tokens[tokens[row.id][index]] for index in known.token_ids[0].tolist()]
        np.testing.assert_allclose(np.exp(known.log_probs[0]), expected, rtol=1e-5)
        assert np.exp(known.log_tail[0]) == pytest.approx(1 - sum(expected), abs=1e-6)


def test_over_tokens_different_tokenizers_are_refused_with_advice(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    recipe = command_line.write_recipe(tmp_path, **sections | {"knowledge": {}})
    result = first("distill", recipe, "--run-dir", tmp_path / "run")
    result.mistake("tokenizer", "or set knowledge.over: candidates")


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        (
            {"arms": {"a": {"recalibrate": "all"}}},
            "arms.a.recalibrate",
            "the answer position alone; leave it out",
        ),
        (
            {"arms": {"a": {"objective": "topk-renormalized"}}},
            "arms.a.objective",
            "several tokens at every position",
        ),
    ],
)
def test_mistakes(
    tmp_path: Path, sections: dict[str, Any], changes: dict[str, Any], key: str, problem: str
) -> None:
    path = command_line.write_recipe(tmp_path, **sections | changes)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert any(key in text and problem in text for text in error.value.messages), error.value


def test_text_tasks_are_refused(tmp_path: Path, sections: dict[str, Any]) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(9)]
    data = write_rows(tmp_path / "text" / "train.jsonl", rows).parent
    task = {"name": "instruction", "options": {"path": str(data)}}
    path = command_line.write_recipe(tmp_path, **sections | {"train": {"task": task}})
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert any(
        "knowledge.over" in text and "no candidates" in text for text in error.value.messages
    )
