"""Evaluation: each candidate's probability, of its first differing token and as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedQuestion, Encoding, encode_questions
from firstcli.metrics import accuracy, ece
from firstcli.metrics.records import Candidates, EvalRecords
from firstcli.models import readout
from firstcli.models.answers import candidate_log_probs
from firstcli.recipe.load import load_recipe
from firstcli.recipe.sections import MetricsSettings
from firstcli.runtime.console import Console, percent
from firstcli.stages import stage_of, units_of
from firstcli.stages.whole_candidates import CandidateSequences, response_log_probs
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import first

PLACES = ("fire", "water", "the passage", "the dry green fire", "a wet place\n\n\nwith Yes", "no")


def questions(tokenizer: PreTrainedTokenizerFast) -> list[EncodedQuestion]:
    """Questions of different lengths, with two or three candidates."""
    samples = [
        Sample.question(
            f"Q: What is {place}?\nAnswer:",
            [" yes", " no", " The"][: 2 + number % 2],
            number % 2,
            id=place,
        )
        for number, place in enumerate(PLACES)
    ]
    return encode_questions(samples, Encoding(tokenizer, "test"))


@torch.no_grad()
def naive(model: torch.nn.Module, question: EncodedQuestion) -> list[float]:
    """Read the candidates off an ordinary forward pass of this question alone, in float64."""
    ids = torch.tensor(question.input_ids[None], dtype=torch.long)
    log_probs = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
    return [float(log_probs[token]) for token in question.candidate_ids]


@torch.no_grad()
def evaluated(model: Any, batch: Sequence[EncodedQuestion]) -> dict[str, list[float]]:
    return candidate_log_probs(readout.Reader(model), batch)


def test_candidates_get_their_probability_in_the_whole_vocabulary(
    tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    """Whatever the batch and its padding."""
    model, rows = make_llama(len(tokenizer)), questions(tokenizer)
    expected = {one.id: naive(model, one) for one in rows}
    assert len({tuple(values) for values in expected.values()}) == len(rows)
    for batch in (rows, rows[::-1], rows[2:4], *([one] for one in rows)):
        found = evaluated(model, batch)
        assert list(found) == [one.id for one in batch]
        for one in batch:
            np.testing.assert_allclose(found[one.id], expected[one.id], atol=2e-5)


def test_one_forward_pass_answers_a_batch(
    byte_tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    model, rows = make_llama(len(byte_tokenizer)), questions(byte_tokenizer)
    reader = readout.Reader(model)
    rows_seen: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: rows_seen.append(len(inputs[0]))
    )
    scored: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, __, output: scored.append(output.shape))
    with torch.no_grad():
        candidate_log_probs(reader, rows)
    assert rows_seen == [len(rows)]
    assert scored == [(1, len(rows), 3)]  # the candidates at the last positions only


def test_equal_candidates_are_a_tie_that_goes_to_the_first(
    byte_tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    model, rows = make_llama(len(byte_tokenizer)), questions(byte_tokenizer)
    with torch.no_grad():
        model.lm_head.weight[rows[1].candidate_ids[2]] = model.lm_head.weight[
            rows[1].candidate_ids[0]
        ]
        model.lm_head.weight[rows[1].candidate_ids[1]] = model.lm_head.weight[
            rows[1].candidate_ids[0]
        ]
    found = evaluated(model, rows)[rows[1].id]
    assert found[0] == found[1] == found[2]
    records = EvalRecords.from_log_probs([rows[1].id], [rows[1].answer or 0], [found])
    assert records.prediction.tolist() == [0] and records.tie.tolist() == [True]
    assert records.confidence[0] == pytest.approx(1 / 3)


# Whole candidates.

TEXTS = (" wet", " the dry green fire.", " Yes or No")


def encoded(
    tokenizer: PreTrainedTokenizerFast, *candidates: str, prompts: Sequence[str] = PLACES
) -> list[EncodedQuestion]:
    samples = [
        Sample.question(f"Q: What is {prompt}?\nAnswer:", candidates, 0, id=prompt)
        for prompt in prompts
    ]
    return encode_questions(samples, Encoding(tokenizer, "test"))


@torch.no_grad()
def naive_sum(model: torch.nn.Module, question: EncodedQuestion, candidate: int) -> float:
    """Sum the log-probabilities of a candidate's tokens one by one, in float64, unpadded."""
    ids = question.input_ids[: question.start].tolist()
    total = 0.0
    for token in question.candidates[candidate]:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total


def test_a_whole_candidate_is_the_sum_of_its_tokens_in_any_batch(
    tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    model = make_llama(len(tokenizer))
    rows = encoded(tokenizer, *TEXTS)
    sequences = CandidateSequences(rows)
    assert len({len(row.input_ids) for row in sequences}) > 5  # padding matters
    expected = {
        f"{row.id}, candidate {i + 1}": naive_sum(model, row, i) for row in rows for i in range(3)
    }
    found = {row.id: row.targets.tolist() for row in sequences}
    assert found.keys() <= expected.keys() and min(map(len, found.values())) > 1
    reader, every = readout.Reader(model), list(sequences)
    for batch in (every, every[::-1], every[3:6], *([one] for one in every)):
        with torch.no_grad():
            sums = response_log_probs(reader, batch)
        assert list(sums) == [one.id for one in batch]
        for one in batch:
            assert sums[one.id] == pytest.approx(expected[one.id], abs=1e-4)


def test_a_candidate_of_one_token_needs_no_sequence(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """It has the same probability as a whole, and letters are the usual candidates."""
    rows = encoded(byte_tokenizer, "a", "b")
    assert rows[0].candidates == tuple((token,) for token in rows[0].candidate_ids)
    assert not len(CandidateSequences(rows)) and not CandidateSequences(rows).lengths.size
    mixed = CandidateSequences(encoded(byte_tokenizer, "a", "b)."))
    assert {row.id.rpartition(", ")[2] for row in mixed} == {"candidate 2"}
    assert mixed.lengths.tolist() == [len(row.input_ids) - 1 for row in mixed]


def test_whole_candidates_exclude_one_another(
    tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    """EOS belongs to a candidate only where a longer candidate begins with it."""
    rows = encoded(tokenizer, " wet", " wet, dry", prompts=["fire"])
    ends = [tokens[-1] == tokenizer.eos_token_id for tokens in rows[0].candidates]
    assert ends == [True, False]
    model = make_llama(len(tokenizer))
    alone = [naive_sum(model, rows[0], i) for i in range(2)]
    EvalRecords.from_log_probs(["fire"], [0], [alone], candidates="whole")  # sums to 1 at most


@pytest.fixture(scope="module")
def textual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe whose model answers in words of several tokens, and its finished run."""
    folder = tmp_path_factory.mktemp("textual")
    choices = ["yes it is", "no", "the other one"]
    rows = [{"question": f"{i}?", "choices": choices, "answer": choices[i % 3]} for i in range(49)]
    command_line.write_rows(folder / "data" / "train.jsonl", rows[9:])
    command_line.write_rows(folder / "data" / "test.jsonl", rows[:9])
    task = command_line.of_files(folder / "data", respond_with="text", answer_as="text")
    recipe = command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=[{"task": task, "name": "words"}],
        arms={"fine-tune": {"learn": "labels", "posthoc": {"name": "logit-temperature"}}},
        teacher=None,
    )
    result = first("eval", recipe, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    assert "scored: first-token" in result.out
    return recipe, folder / "run"


def test_what_is_scored_is_chosen_without_a_model(textual: tuple[Path, Path]) -> None:
    recipe, run = textual
    whole = ("--run-dir", run, "--set", "metrics.candidates=whole")
    assert command_line.pending(recipe, *whole) == {"report"}
    shown = {
        name: first("eval", recipe, "--run-dir", run, *more, "--json").json
        for name, more in (("first-token", ()), ("whole", whole[2:]))
    }
    path = run / "eval" / "words" / "fine-tune.parquet"
    stored = EvalRecords.load(path)
    assert stored.whole is not None
    for name, log_probs in (("first-token", stored.log_probs), ("whole", stored.whole)):
        records = EvalRecords.from_log_probs(stored.ids, stored.answer.tolist(), list(log_probs))
        for metrics in (
            shown[name]["result"]["words/fine-tune"],
            first("eval", "--from", path, "--candidates", name, "--json").json["metrics"],
        ):
            assert metrics["confidence"] == pytest.approx(float(records.confidence.mean()))
    assert (stored.whole < stored.log_probs).any() and not (stored.whole > stored.log_probs).any()
    assert "scored: whole" in first("eval", "--from", path, "--candidates", "whole").out


def test_the_line_of_a_finished_evaluation_shows_the_numbers_of_the_table(
    textual: tuple[Path, Path],
) -> None:
    recipe, folder = textual
    choices: tuple[tuple[Candidates, int], ...] = (("first-token", 10), ("whole", 4))
    for candidates, bins in choices:
        metrics = MetricsSettings(candidates=candidates, bins=bins)
        loaded = load_recipe(recipe).model_copy(update={"metrics": metrics})
        run = Run(loaded, folder, Console(quiet=True))
        unit = units_of(loaded, folder)["eval words/fine-tune"]
        stored = EvalRecords.load(unit.artifact.path).scored(candidates)
        shown = stage_of(unit).in_words(run, unit)
        assert shown[0] == f"accuracy {percent(accuracy(stored.correct))}"
        assert shown[1] == f"ECE {percent(ece(stored.confidence, stored.correct, bins))}"


def test_whole_candidates_agree_with_the_log_of_the_harness(
    textual: tuple[Path, Path], tmp_path: Path
) -> None:
    """The log is written as the harness scores: encode both texts, sum over the continuation."""
    run = textual[1]
    model = AutoModelForCausalLM.from_pretrained(run / "students" / "fine-tune").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "students" / "fine-tune")
    lines = []
    for doc in range(9):
        choices = ["yes it is", "no", "the other one"]
        listed = "".join(f"\n{'ABC'[i]}. {text}" for i, text in enumerate(choices))
        context, values = f"{doc}?{listed}\nAnswer:", []
        for choice in choices:
            start, ids = len(tokenizer(context)["input_ids"]), tokenizer(f"{context} {choice}")
            tokens = torch.tensor([ids["input_ids"]])
            with torch.no_grad():
                log_probs = model(input_ids=tokens).logits[0].double().log_softmax(-1)
            scored = log_probs[start - 1 : -1].gather(-1, tokens[0, start:, None])
            values.append(float(scored.sum()))
        lines.append(
            {
                "doc_id": doc,
                "target": doc % 3,
                "acc": float(int(np.argmax(values)) == doc % 3),
                "arguments": [[context, f" {choice}"] for choice in choices],
                "filtered_resps": [[value, False] for value in values],
            }
        )
    log = command_line.write_rows(tmp_path / "samples.jsonl", lines)
    there = first("eval", "--from", log, "--json").json
    here = first(
        "eval", "--from", run / "eval/words/fine-tune.parquet", "--candidates", "whole", "--json"
    ).json
    assert there["candidates"] == here["candidates"] == "whole"
    for name in ("accuracy", "ece", "nll", "brier", "candidate_mass"):
        assert here["metrics"][name] == pytest.approx(there["metrics"][name], abs=1e-4)


def test_a_temperature_changes_whole_candidates_at_the_answer_position_only(
    textual: tuple[Path, Path],
) -> None:
    folder = textual[1] / "eval" / "words"
    plain, tempered = (
        EvalRecords.load(folder / f"{m}.parquet") for m in ("fine-tune", "fine-tune+T")
    )
    assert plain.whole is not None and tempered.whole is not None
    state = json.loads((textual[1] / "calibration" / "fine-tune+T.json").read_text("utf-8"))
    temperature = state["state"]["temperature"]
    assert temperature != 1
    expected = plain.whole - plain.log_probs + plain.log_probs / temperature
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(tempered.whole, expected, atol=1e-9)
    assert tempered.scored("whole").scope == "candidates"


def test_records_without_whole_candidates_say_what_to_do(
    textual: tuple[Path, Path], tmp_path: Path
) -> None:
    stored = EvalRecords.load(textual[1] / "eval" / "words" / "fine-tune.parquet")
    replace(stored, whole=None).save(tmp_path / "old.parquet", {})  # as earlier versions wrote it
    old = tmp_path / "old.parquet"
    assert first("eval", "--from", old, "--json").json["candidates"] == "first-token"
    result = first("eval", "--from", old, "--candidates", "whole")
    result.mistake("old.parquet", "first eval --force")


def test_a_candidate_beyond_the_context_leaves_first_tokens(textual: tuple[Path, Path]) -> None:
    """The prompt fits and a candidate does not: no question is dropped."""
    recipe, run = textual
    rows = [json.loads(line) for line in (recipe.parent / "data" / "test.jsonl").open()]
    rows = [row | {"choices": ["no", "a" + " x y" * 70], "answer": "no"} for row in rows]
    command_line.write_rows(recipe.parent / "long" / "test.jsonl", rows)
    command_line.write_rows(recipe.parent / "long" / "train.jsonl", rows)
    task = command_line.of_files(
        recipe.parent / "long",
        respond_with="text",
        prompt="{question}\nAnswer:",
        choices_column="choices",
    )
    args = (recipe, "--run-dir", run, "--set", f"evaluate=[{json.dumps({'task': task})}]")
    done = first("eval", *args, "--json", "--arm", "fine-tune")
    assert done.code == 0, done.err
    assert "9 candidates" in done.err and "candidate 2'" in done.err
    assert done.json["result"]["multiple-choice/fine-tune"]["n"] == 9
    whole = first("eval", *args, "--set", "metrics.candidates=whole", "--force")
    whole.mistake("metrics.candidates: first-token", "128 tokens")


def test_records_keep_the_groups_of_the_questions(textual: tuple[Path, Path]) -> None:
    """One evaluation of several files, each of them a group; with a post-hoc temperature, too."""
    recipe, run = textual
    rows = [json.loads(line) for line in (recipe.parent / "data" / "test.jsonl").open()]
    for subject, part in (("law", rows[:6]), ("art", rows[6:])):
        command_line.write_rows(recipe.parent / "subjects" / f"{subject}.jsonl", part)
    options = {"respond_with": "text", "answer_as": "text", "group": "{name}"}
    task = command_line.of_files(recipe.parent / "subjects" / "*.jsonl", **options)
    evaluate = json.dumps([{"task": task, "name": "subjects"}])
    done = first("eval", recipe, "--run-dir", run, "--set", f"evaluate={evaluate}")
    assert done.code == 0, done.err
    for model in ("fine-tune", "fine-tune+T"):
        stored = EvalRecords.load(run / "eval" / "subjects" / f"{model}.parquet")
        assert stored.groups == ("art",) * 3 + ("law",) * 6
    assert EvalRecords.load(run / "eval" / "words" / "fine-tune.parquet").groups is None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers(name: str, shared_models: Path, make_llama: MakeLlama) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    samples = [
        Sample.question(f"Q: {text}\nA: The answer is (", ["a).", "b).", "c)."], 2, id=text)
        for text in ("Where?", "What is it that one does in a very small house?")
    ]
    rows = encode_questions(samples, Encoding(tokenizer, "test"))
    assert tokenizer.convert_ids_to_tokens(list(rows[0].candidate_ids)) == ["a", "b", "c"]
    model = make_llama(len(tokenizer))
    found = evaluated(model, rows)
    for one in rows:
        np.testing.assert_allclose(found[one.id], naive(model, one), atol=2e-5)
