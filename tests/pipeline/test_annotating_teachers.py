"""The teacher of a run annotates: its texts and probabilities, counted and kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firstcli import plugins
from firstcli.api import Sample, ToAnnotate, UserError
from firstcli.data.annotations import annotation_lines
from firstcli.plugins.annotators import annotator
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import annotating_teachers, role_models, units_of, writing
from firstcli.stages.annotating import AnnotationOrder
from firstcli.stages.annotating_teachers import annotated, cache_of
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import MODEL, WORLD, first, write_rows

LEARNED = {"epochs": 30, "learning_rate": 1e-2, "batch_size": 16}
CHOICES = (" yes", " no")


def prompt(number: int) -> str:
    return f"Say {number} and then {'yes' if number % 2 else 'no'}:"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    rows = [{"prompt": prompt(i), "response": CHOICES[i % 2 == 0]} for i in range(40)]
    path = write_rows(folder / "train.jsonl", rows)
    path = command_line.write_recipe(
        folder,
        train={"task": {"name": "instruction", "options": {"path": str(path)}}, "validation": 0.2},
        evaluate=[{"task": WORLD}],
        teacher={"model": MODEL, "finetune": LEARNED},
        arms={"distill": {}},
    )
    result = first("finetune", path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return path


def opened(recipe: Path, caches: Path) -> Run:
    """Open the run whose teacher is trained, with its caches in a folder of their own."""
    run = Run(load_recipe(recipe), recipe.parent / "run", Console(quiet=True))
    written = units_of(run.recipe, run.folder)["finetune"].artifact.written()
    assert written
    run.manifests["finetune"] = written
    annotating_teachers.CACHE = str(caches)
    return run


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotating_teachers, "CACHE", annotating_teachers.CACHE)


def order(count: int = 40, **options: Any) -> AnnotationOrder:
    given = {"template": "{question}", "answer": "{answer}", "max_new_tokens": 8, **options}
    built = annotator("answer", plugins.load("annotators", "answer").Options(**given))
    items = [ToAnnotate(Sample(prompt(i), "", id=f"q{i}")) for i in range(count)]
    return AnnotationOrder(built, items, seed=5, max_failures=count)


def as_bytes(made: AnnotationOrder, run: Run) -> bytes:
    outcome = annotated(run, made, "annotating")
    return annotation_lines(outcome.annotations).encode()


def test_texts_are_written_counted_and_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(recipe, tmp_path)
    outcome = annotated(run, order(), "annotating")
    tokenizer = role_models.tokenizer(run, "teacher")
    assert len(outcome.annotations) > 20, outcome.failures[:3]
    assert {each.answer for each in outcome.annotations} <= {"yes", "no"}
    for each in outcome.annotations:
        if each.attempts == 1:
            number = int(each.id[1:])
            assert each.tokens_read == len(tokenizer(prompt(number))["input_ids"])
            # The answer and the token that ends it.
            written = len(tokenizer(f" {each.answer}")["input_ids"]) + 1
            assert abs(each.tokens_written - written) <= 1

    def loaded(run: Run) -> None:
        raise AssertionError("the teacher was loaded again")

    monkeypatch.setattr(role_models, "teacher", loaded)
    again = annotated(opened(recipe, tmp_path), order(), "annotating")
    assert again == outcome


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_interrupted_teacher_goes_on(
    temperature: float, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = order(temperature=temperature)
    expected = as_bytes(made, opened(recipe, tmp_path / "whole"))
    whole, batches = writing.each_batch, list[int]()

    def broken(*args: Any) -> Iterator[Any]:
        for batch in whole(*args):
            if len(batches) == 2:
                raise Stopped
            batches.append(len(batch[0]))
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(annotating_teachers, "each_batch", broken)
        with pytest.raises(Stopped):
            annotated(opened(recipe, tmp_path / "cut"), made, "annotating")
    run = opened(recipe, tmp_path / "cut")
    kept = (cache_of(run) / "texts.jsonl").read_text().count("\n")
    assert kept == sum(batches)
    assert as_bytes(made, run) == expected


def test_candidates_have_the_probabilities_of_the_model(recipe: Path, tmp_path: Path) -> None:
    run = opened(recipe, tmp_path)
    items = [
        ToAnnotate(Sample.question(prompt(i), CHOICES, None, id=f"q{i}"), choices=("yes", "no"))
        for i in range(6)
    ]
    built = annotator("answer", plugins.load("annotators", "answer").Options())
    outcome = annotated(run, AnnotationOrder(built, items, 5, 0), "annotating")
    model, tokenizer = role_models.teacher(run), role_models.tokenizer(run, "teacher")
    for number, found in enumerate(outcome.annotations):
        joint = [tokenizer(prompt(number) + choice)["input_ids"] for choice in CHOICES]
        place = next(i for i, pair in enumerate(zip(*joint, strict=False)) if len({*pair}) > 1)
        with torch.inference_mode():
            logits = model(torch.tensor([joint[0][:place]])).logits[0, -1].double()
        chosen = logits[[ids[place] for ids in joint]].softmax(-1).numpy()
        assert found.distribution is not None
        np.testing.assert_allclose(found.distribution, chosen, atol=1e-5)
        assert found.answer == ("yes", "no")[int(chosen.argmax())]
        assert (found.tokens_read, found.tokens_written, found.attempts) == (place, 0, 0)


class OnlyProbabilities:
    """A family of a server that cannot write."""

    is_remote = True
    writes_text = False


def test_a_teacher_that_cannot_write_is_refused_before_it_is_asked(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(recipe, tmp_path)
    monkeypatch.setattr(role_models, "remote", lambda run, role: OnlyProbabilities())
    with pytest.raises(UserError) as caught:
        annotated(run, order(), "annotating")
    assert str(caught.value) == (
        "annotator 'answer': the teacher must write text, but a teacher of the family 'scratch' "
        "only returns probabilities; use the annotator 'answer' for questions with candidates, or "
        "a different teacher"
    )
