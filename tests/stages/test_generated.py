"""Evaluation of generated explanations: what is generated, read, scored and counted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from firstcli.active.reading import StudentReader
from firstcli.api import ExplainedText, ExplanationForm, Sample, same_answer
from firstcli.data.reasoning import final_answer
from firstcli.metrics.guessing import explains_all
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.summary import summarize
from firstcli.pipeline.plan import Request, open_run
from firstcli.recipe.evaluations import GenerationSettings
from firstcli.recipe.load import load_recipe
from firstcli.stages import generated, generated_texts, inputs, role_models
from firstcli.stages.evaluate import EVALUATE as STAGE
from firstcli.stages.generated import LEAST, _votes, chosen_answer
from firstcli.tasks.known_steps import FORM, KnownSteps, KnownStepsOptions
from firstcli.tasks.reasoning import Reasoning, ReasoningOptions
from support import command_line
from support.command_line import Finished, first, write_recipe, write_rows

OPTIONS = {"train": 160, "test": 12, "shifted": 4, "pool": 4}
TASK = {"name": "known-steps", "options": OPTIONS}
MODEL: dict[str, Any] = {
    "family": "scratch",
    "options": {"hidden_size": 32, "layers": 1, "heads": 2, "vocabulary": 600, "context": 192},
}
TRAINING = {"epochs": 12, "learning_rate": 1e-2, "batch_size": 16}
MOST = 70
EVALUATE: list[dict[str, Any]] = [
    {"name": "greedy", "max_new_tokens": MOST},
    {"name": "vote", "samples": 3, "max_new_tokens": MOST},
    {"name": "mean", "samples": 3, "confidence": "probability", "max_new_tokens": MOST},
    {"name": "given", "answers": "scored"},
]


def sections(**changes: Any) -> dict[str, Any]:
    """Return a recipe of one student that learns labels."""
    return {
        "train": {"task": TASK, "validation": 0.2},
        "evaluate": EVALUATE,
        "teacher": None,
        "student": {"model": MODEL, "training": TRAINING},
        "arms": {"labels": {"learn": "labels", "posthoc": {"name": "logit-temperature"}}},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("generated")
    recipe, run = write_recipe(folder, **sections()), folder / "run"
    result = first("report", recipe, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    return Finished(recipe, run, result)


def records(finished: Finished, evaluation: str, model: str = "labels") -> EvalRecords:
    return EvalRecords.load(finished.run / "eval" / evaluation / f"{model}.parquet")


def questions() -> list[Sample]:
    return list(KnownSteps(KnownStepsOptions(**OPTIONS)).load("test").samples)


@torch.inference_mode()
def naive_candidates(model: Any, tokenizer: Any, prompt: str, explanation: str) -> list[float]:
    """Return the log-probability of each digit after an explanation, in one text each."""
    start = prompt + FORM.prefix([explanation] if explanation else [])
    naive = []
    for number in range(10):
        whole = list(tokenizer(start + f"The answer is {number}.").input_ids)
        place = len(tokenizer(start + "The answer is").input_ids)
        scores = model(torch.tensor([whole[:place]])).logits[0, -1].double()
        naive.append(float(scores.log_softmax(-1)[whole[place]]))
    return naive


@torch.inference_mode()
def naive_answer(
    model: Any, tokenizer: Any, prompt: str, said: ExplainedText, form: ExplanationForm
) -> float:
    """Return the probability of a free answer and the end of its sentence, token by token."""
    start = prompt + form.prefix([said.explanation] if said.explanation else [])
    ids = tokenizer(start + form.sentence(said.answer or "")).input_ids
    other = tokenizer(start + form.sentence("?")).input_ids
    first = next(i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
    product = 1.0
    for place in range(first, len(ids)):
        scores = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        product *= float(scores.softmax(-1)[ids[place]])
    return product


def texts_of(recipe: Path, folder: Path, evaluation: str) -> dict[str, list[ExplainedText]]:
    """Generate the explanations of a finished run again."""
    run = open_run(Request(recipe, run_dir=folder, quiet=True))
    units = STAGE.units(run.recipe, run.folder)
    unit = next(unit for unit in units if unit.key == f"eval {evaluation}/labels")
    asked = generated.questions_of(run, unit)
    with torch.inference_mode():
        return generated_texts.texts_of(run, unit, asked, role_models.model(run, unit.model))


def test_the_probability_is_the_mean_over_the_explanations(finished: Finished) -> None:
    folder = finished.run / "students" / "labels"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found, texts = records(finished, "mean"), texts_of(finished.recipe, finished.run, "mean")
    for index, sample in enumerate(questions()[:4]):
        several = texts[str(sample.id)]
        assert len(several) == 3
        rows = [naive_candidates(model, tokenizer, sample.prompt, t.explanation) for t in several]
        assert np.exp(found.log_probs[index]) == pytest.approx(np.exp(rows).mean(0), abs=1e-5)


def test_greedy_answers_equal_those_of_plain_transformers(finished: Finished) -> None:
    folder = finished.run / "students" / "labels"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = records(finished, "greedy")
    for index, sample in enumerate(questions()):
        assert found.ids[index] == sample.id and found.answer[index] == sample.answer
        ids = list(tokenizer(sample.prompt).input_ids)
        new: list[int] = []
        with torch.inference_mode():
            while len(new) < MOST:
                logits = model(torch.tensor([ids + new])).logits[0, -1]
                if int(logits.argmax()) == tokenizer.eos_token_id:
                    break
                new.append(int(logits.argmax()))
            text = str(tokenizer.decode(ids + new))[len(sample.prompt) :].replace("<pad>", "")
        naive = naive_candidates(model, tokenizer, sample.prompt, FORM.read(text).explanation)
        assert found.log_probs[index] == pytest.approx(naive, abs=1e-4)


def test_votes_are_shares_of_the_samples(finished: Finished) -> None:
    votes, mean = records(finished, "vote"), records(finished, "mean")
    shares = np.exp(votes.log_probs)
    # A vote for none of the ten candidates is spread over them.
    thirtieths = np.round(shares * 30)
    assert np.abs(shares - np.maximum(thirtieths / 30, LEAST)).max() < 1e-4
    assert shares.sum(axis=1) == pytest.approx(np.ones(12))
    assert votes.ids == mean.ids and not np.allclose(votes.log_probs, mean.log_probs)


def test_batches_change_no_text(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(finished, "vote")
    monkeypatch.setattr(generated_texts, "BATCH_SIZE", 5)
    run = finished.copied_to(finished.run.parent / "again")
    result = first("eval", finished.recipe, "--run-dir", run, "--force", "--json")
    assert result.code == 0, result.err
    after = EvalRecords.load(run / "eval" / "vote" / "labels.parquet")
    assert after.log_probs == pytest.approx(before.log_probs, abs=1e-6)


def test_probabilities_are_recalibrated_by_a_temperature_of_generated_answers(
    finished: Finished,
) -> None:
    stored = json.loads((finished.run / "calibration" / "labels+T.json").read_text("utf-8"))
    plain, tempered = records(finished, "greedy"), records(finished, "greedy", "labels+T")
    powered = plain.log_probs / stored["state"]["temperature"]
    expected = np.exp(powered) / np.exp(powered).sum(axis=1, keepdims=True)
    assert tempered.probabilities == pytest.approx(expected, abs=1e-9)


def test_selectors_get_a_temperature_of_texts_as_long_as_theirs(finished: Finished) -> None:
    stored = json.loads((finished.run / "calibration" / "labels+T.json").read_text("utf-8"))
    run = open_run(Request(finished.recipe, run_dir=finished.run, quiet=True))

    def temperature(most: int) -> float:
        reader = StudentReader(run, "labels", FORM, recalibrated=True, seed=1, max_new_tokens=most)
        fitted = reader._fitted()
        assert fitted is not None
        return float(fitted.facts["temperature"])

    assert temperature(MOST) == stored["state"]["temperature"]
    assert temperature(5) != temperature(MOST)


@pytest.mark.parametrize("evaluation", ["vote", "mean"])
def test_several_explanations_get_one_temperature_of_their_own(
    finished: Finished, evaluation: str
) -> None:
    plain, tempered = records(finished, evaluation), records(finished, evaluation, "labels+T")
    spreads = [np.ptp(each.log_probs, axis=1) for each in (plain, tempered)]
    known = spreads[0] > 1e-9
    ratios = spreads[0][known] / spreads[1][known]
    assert ratios == pytest.approx(np.full(len(ratios), ratios[0]), rel=1e-6)
    assert (plain.prediction == tempered.prediction).all()


def test_an_evaluation_is_repeated_only_if_its_settings_change(
    finished: Finished, tmp_path: Path
) -> None:
    run = ("--run-dir", finished.run)
    assert command_line.pending(finished.recipe, *run) == set()
    evaluate = [EVALUATE[0], {**EVALUATE[1], "samples": 2}, *EVALUATE[2:]]
    other = command_line.pending(write_recipe(tmp_path, **sections(evaluate=evaluate)), *run)
    assert other == {"eval vote/labels", "eval vote/labels+T", "report"}
    longer = [{**EVALUATE[0], "max_new_tokens": MOST + 1}, *EVALUATE[1:]]
    path = tmp_path / "longer"
    path.mkdir()
    other = command_line.pending(write_recipe(path, **sections(evaluate=longer)), *run)
    assert {"posthoc labels+T", "eval greedy/labels"} <= other


def test_validation_questions_are_answered_as_long_as_in_greedy_evaluations(
    tmp_path: Path,
) -> None:
    both = [*EVALUATE, {"name": "short", "max_new_tokens": 9}]
    recipe = load_recipe(write_recipe(tmp_path, **sections(evaluate=both)))
    assert recipe.validation_answers == GenerationSettings(max_new_tokens=MOST)
    sampled = {"samples": 3, "max_new_tokens": 9}
    recipe = load_recipe(write_recipe(tmp_path, **sections(evaluate=[sampled])))
    assert recipe.validation_answers == GenerationSettings()


def test_scored_answers_follow_the_explanation_of_the_data(finished: Finished) -> None:
    given = records(finished, "given")
    assert given.log_probs.shape == (12, 10)
    assert not np.allclose(given.log_probs, records(finished, "greedy").log_probs)


def test_free_answers_from_a_file(tmp_path: Path) -> None:
    def rows(numbers: range) -> list[dict[str, Any]]:
        return [
            {"question": f"{n} + 1?", "steps": [f"{n} and 1."], "answer": str(n + 1)}
            for n in numbers
        ]

    write_rows(tmp_path / "data" / "train.jsonl", rows(range(60)))
    write_rows(tmp_path / "data" / "test.jsonl", rows(range(60, 80)))
    task = {"name": "reasoning", "options": {"path": str(tmp_path / "data")}}
    evaluate = [
        {"name": "greedy", "max_new_tokens": 30},
        {"name": "vote", "samples": 3, "max_new_tokens": 30},
        {"name": "mean", "samples": 3, "confidence": "probability", "max_new_tokens": 30},
    ]
    student = {"model": MODEL, "training": {**TRAINING, "epochs": 40}}
    train = {"task": task, "validation": 0.2}
    changed = sections(train=train, evaluate=evaluate, student=student)
    recipe, run = write_recipe(tmp_path, **changed), tmp_path / "run"
    result = first("report", recipe, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    for evaluation in ("greedy", "vote"):
        for model in ("labels", "labels+T"):
            found = EvalRecords.load(run / "eval" / evaluation / f"{model}.parquet")
            assert found.stated and (found.prediction == 0).all() and (found.count == 2).all()
            assert ((found.confidence > 0) & (found.confidence < 1)).all()
            assert explains_all([found]) is None
    folder = run / "students" / "labels"
    student_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer, form = AutoTokenizer.from_pretrained(folder), ExplanationForm()
    asked = Reasoning(ReasoningOptions(path=tmp_path / "data")).load("test").samples
    prompts = [sample.prompt for sample in asked]
    for evaluation in ("greedy", "mean"):
        found = EvalRecords.load(run / "eval" / evaluation / "labels.parquet")
        texts = list(texts_of(recipe, run, evaluation).items())
        place, read = {id: index for index, id in enumerate(found.ids)}, 0
        for id, several in texts:
            _, numbers = chosen_answer([text.answer for text in several])
            read += len(numbers)
            chances = [
                naive_answer(student_model, tokenizer, prompts[place[id]], several[n], form)
                for n in numbers
            ]
            expected = min(max(sum(chances) / len(several), LEAST), 1 - LEAST)
            assert np.exp(found.log_probs[place[id], 0]) == pytest.approx(expected, abs=1e-5)
        assert read  # some answers can be read


def test_the_most_frequent_answer_is_chosen_and_the_first_of_equals() -> None:
    assert chosen_answer(["2", "1,000", None, "1000.0"]) == ("1,000", [1, 3])
    assert chosen_answer(["b", "a"]) == ("b", [0])
    assert chosen_answer([None, None]) == (None, [])


def test_votes_of_candidates() -> None:
    form = ExplanationForm()
    sample = Sample.question("Q", [f" The answer is {name}." for name in ("3", "4", "no")], 1)
    texts = [ExplainedText("", answer) for answer in ("4.0", "4", "5", None)]
    votes = np.exp(_votes(sample, form, texts))
    assert votes == pytest.approx(np.array([1 / 6, 2 / 3, 1 / 6]))  # half is spread over three
    every = np.exp(_votes(sample, form, [ExplainedText("", "no")]))
    assert every == pytest.approx([LEAST, LEAST, 1], rel=1e-5) and every.sum() == pytest.approx(1)


@pytest.mark.parametrize("right", [0, 1])
def test_unreadable_votes_are_no_confidence(right: int) -> None:
    form = ExplanationForm()
    sample = Sample.question("Q", [" The answer is 3.", " The answer is 4."], right)
    unread, read = ExplainedText("", None), ExplainedText("", "3")
    rows = [_votes(sample, form, texts) for texts in ([unread] * 9 + [read], [unread] * 10)]
    found = EvalRecords.from_log_probs(["one", "none"], [right, right], rows)
    assert found.confidence == pytest.approx([0.1 + 0.9 / 2, 0.5], abs=1e-5)
    assert found.correct.tolist() == [right == 0, False]
    assert found.candidate_mass == pytest.approx([1, 1])


def test_records_of_free_answers_keep_the_stated_prediction(tmp_path: Path) -> None:
    """Half of them have a probability below one half, and are the models' answers nevertheless."""
    chance = np.array([0.9, 0.2, 0.4, 0.7])
    rows = np.log(np.stack([chance, 1 - chance], axis=1))
    ids = [str(number) for number in range(4)]
    made = EvalRecords.from_log_probs(ids, [0, 1, 0, 1], [*rows], prediction=[0] * 4)
    made.save(tmp_path / "a.parquet", {})
    for each in (made, EvalRecords.load(tmp_path / "a.parquet"), made.only(ids)):
        assert each.confidence == pytest.approx(chance)
        assert each.correct.tolist() == [True, False, True, False]
        assert each.stated and not each.tie.any()
    summary = summarize(made, "candidates", 10)
    assert summary.accuracy == 0.5 and summary.chance == 0
    assert summary.ece == pytest.approx((0.1 + 0.2 + 0.6 + 0.7) / 4)
    assert summary.auroc == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"evaluate": [{"samples": 0}]}, ("samples",)),
        ({"evaluate": [{"confidence": "agreement"}]}, ("add `samples: 10`",)),
        ({"evaluate": [{"temperature": 0.5}]}, ("add `samples: 10`",)),
        ({"evaluate": [{"answers": "scored", "samples": 3}]}, ("unless answers are generated",)),
        (
            {"evaluate": [{"answers": "generated", "task": {"name": "known-world"}}]},
            ("'known-world' has no explanations",),
        ),
    ],
)
def test_settings_without_effect_are_refused(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path, **sections(**changes))
    first("plan", recipe, "--run-dir", tmp_path / "run").mistake(*parts)


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path: Path) -> None:
    small = {**MODEL, "options": {**MODEL["options"], "context": 40}}
    student = {"model": small, "training": TRAINING}
    train = {"task": TASK, "validation": 0.2, "too_long": "drop"}
    recipe = write_recipe(tmp_path, **sections(student=student, train=train, evaluate=EVALUATE[:1]))
    result = first("plan", recipe, "--run-dir", tmp_path / "run")
    assert result.code == 2 and "Traceback" not in result.err


def test_answers_that_cannot_be_told_apart_are_refused_before_anything_is_generated(
    tmp_path: Path,
) -> None:
    row = {"question": "?", "choices": ["red car", "red bus", "sky"], "answer": 0, "steps": ["a"]}
    write_rows(tmp_path / "data" / "test.jsonl", [row])
    options = {"path": str(tmp_path / "data"), "respond_with": "text"}
    task = {"name": "reasoning-choice", "options": options}
    evaluate = [{"name": "colours", "task": task, "split": "test"}]
    recipe = write_recipe(tmp_path, **sections(evaluate=evaluate))
    first("plan", recipe, "--run-dir", tmp_path / "run").mistake("colours", "token")


def test_explanations_beyond_the_context_lose_their_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def encoded(run: Any, role: Any, questions: Any, samples: list[Sample]) -> Any:
        asked.append([sample.prompt for sample in samples])
        return [SimpleNamespace(start=0, candidates=(s.prompt.split(),)) for s in samples]

    monkeypatch.setattr(generated, "_encoded", encoded)
    monkeypatch.setattr(inputs, "context", lambda *_: 5)
    texts = ["a b\nc", "a b\nc d e f", ""]
    made = [(text, lambda text: Sample(f"Q {text} A", "")) for text in texts]
    none: Any = None
    found = generated._fitting(none, none, none, made)
    lengths = [len(question.candidates[0]) for question in found]
    assert lengths == [5, 5, 2] and asked[1:] == [["Q a b\nc A"]]


def test_the_right_answers_are_those_of_the_questions() -> None:
    for sample in questions():
        answer = final_answer(sample, FORM)
        assert answer is not None and same_answer(answer, str(sample.answer))
