"""`benchmarks/stacked.py` and `worlds.py`, with tiny models: equal to `first`, and resumable."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from firstcli.recipe.sections import Training
from support.paths import ROOT

TINY = (
    *("train.task.options.train=120", "train.validation=0.3"),
    *("teacher.model.options.hidden_size=16", "teacher.model.options.heads=2"),
    *("teacher.finetune.epochs=1", "student.model.options.hidden_size=16"),
    *("student.model.options.heads=2", "student.training.epochs=1.5"),
    *(f"evaluate.{i}.task.options.{split}=40" for i, split in enumerate(("test", "shifted"))),
    "evaluate.2.task.options.unanswerable=40",
)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def module(name: str) -> Any:
    return importlib.import_module(name)


def tiny_model(world: Any, seed: int) -> LlamaForCausalLM:
    model: LlamaForCausalLM = module("study_world").start(world.run, "student", seed)
    return model


def test_the_forward_pass_is_that_of_transformers() -> None:
    stacked, world = module("stacked"), module("study_world").World.of(7, TINY)
    models = [module("stacked_check").exact(tiny_model(world, seed)) for seed in range(3)]
    random = torch.Generator().manual_seed(0)
    for model in models:  # norms have weights other than 1
        for value in model.parameters():
            value.data += 0.1 * torch.randn(value.shape, generator=random, dtype=value.dtype)
    token_ids = torch.randint(0, 300, (3, 4, 9), generator=random)
    columns = torch.randint(0, 9, (3, 4, 2), generator=random)
    stack = stacked.Stack(models)
    logits = stack(token_ids, columns)
    for i, model in enumerate(models):
        at = columns[i, :, :, None].expand(-1, -1, logits.shape[-1])
        torch.testing.assert_close(logits[i], model(token_ids[i]).logits.gather(1, at))
        for name, value in stack.model(i).named_parameters():
            assert torch.equal(value, model.get_parameter(name))


def test_a_stack_is_trained_as_first_trains() -> None:
    """Every arm, with and without copies: each loss, and the final answers."""
    check, world = module("stacked_check"), module("study_world").World.of(7, TINY)
    assert world.samples % world.run.recipe.student.training.batch_size > 1  # incomplete batches
    lessons = check.lessons_of(world, dict(world.run.recipe.arms))
    for stack, alone in check.compared(world, lessons, wide=True).values():
        loss, answers = stack.distance(alone)
        assert len(stack.curve) > 3 and loss < 1e-6 and answers < 1e-6


def test_models_of_a_stack_do_not_influence_each_other() -> None:
    stacked, world = module("stacked"), module("study_world").World.of(7, TINY)
    settings = world.run.recipe.student.training
    choices = [None, world.choice(("copy1", "copy4")), world.choice(())]
    lessons = [stacked.Lesson.of(world.rows, world.samples, None, choice) for choice in choices]
    together = stacked.Stack([tiny_model(world, i).double() for i in range(3)])
    stacked.train(together, lessons, settings, 7)
    for i, lesson in enumerate(lessons):
        alone = stacked.Stack([tiny_model(world, i).double()])
        stacked.train(alone, [lesson], settings, 7)
        for name, value in together.model(i).named_parameters():
            torch.testing.assert_close(value, alone.model(0).get_parameter(name))


def test_rows_with_other_numbers_of_positions_are_refused() -> None:
    stacked, world = module("stacked"), module("study_world").World.of(7, TINY)
    longer = replace(world.rows[0], start=world.rows[0].start - 1)
    lesson = stacked.Lesson.of([*world.rows[1:], longer], world.samples, None)
    with pytest.raises(ValueError, match="equally many"):
        stacked.train(stacked.Stack([tiny_model(world, 0)]), [lesson], Training(), 7)


def test_an_epoch_takes_only_the_copies_of_the_arm() -> None:
    world = module("study_world").World.of(7, TINY)
    ids = np.array([row.id for row in world.rows])
    chosen = world.choice(("copy2", "copy3"))
    kinds = {ids[row].rpartition("/")[0] for epoch in range(9) for row in chosen.of_epoch(epoch)}
    assert kinds == {"", "copy2", "copy3"}
    for epoch in range(3):
        own = [ids[row].rpartition("/")[2] for row in chosen.of_epoch(epoch)]
        assert own == [row.id for row in world.rows[: world.samples]]


def test_a_world_has_a_line_per_model_and_evaluation() -> None:
    worlds, tables = module("worlds"), module("world_tables")
    arms = ["distill", "first-plus-ema", "clean-targets", "mean-plus", "hard-gate", "draws-copies"]
    text = worlds.run_world(7, arms, (), TINY, 1)
    lines = [json.loads(line) for line in text.splitlines()]
    shown = [(line["arm"], line["split"]) for line in lines if line["split"] in tables.EVALUATIONS]
    models = [name + end for name in (*arms, *worlds.TEACHERS) for end in ("", " + T")]
    assert sorted(shown) == sorted(
        (name, split) for name in [*models, "distill + agreement"] for split in tables.EVALUATIONS
    )
    by_key = {(line.get("arm"), line["split"]): line for line in lines}
    for split in ("test", "shifted"):
        line, plain = by_key["distill + T", split], by_key["distill", split]
        assert line["trust"] == pytest.approx(line["accuracy"] - line["ece"])
        assert line["accuracy"] == plain["accuracy"] and line["nll"] != plain["nll"]
    costs = {name: by_key[name, "cost"] for name in ("distill", "clean-targets", "mean-plus")}
    asked, trained = ({n: costs[n][key] for n in costs} for key in ("extracted", "trained"))
    assert (
        asked["distill"] == asked["clean-targets"]
        and trained["mean-plus"] == trained["clean-targets"]
    )
    assert 7 < asked["mean-plus"] / asked["distill"] < 13  # two teachers, five prompts each
    assert 0.8 < trained["mean-plus"] / trained["distill"] < 1.2
    assert set(by_key["distill", "unanswerable"]) == {"world", "arm", "split", "confidence"}

    more = worlds.run_world(7, ["fine-tune"], {name for name, _ in shown}, TINY, 1)
    added = {line.get("arm") for line in map(json.loads, more.splitlines())}
    assert added == {"fine-tune", "fine-tune + T", None}  # the teachers are there already


def test_longer_training_and_snapshots_cost_more() -> None:
    worlds = module("worlds")
    epochs = ("teacher.finetune.epochs=4", "student.training.epochs=1")
    text = worlds.run_world(
        7,
        ["distill", "longer-distill", "snapshots-logit", "separate-plus"],
        (),
        (*TINY, *epochs),
        1,
    )
    lines = list(map(json.loads, text.splitlines()))
    costs = {line["arm"]: line for line in lines if line["split"] == "cost"}
    base, longer, snapshots = (
        costs[name] for name in ("distill", "longer-distill", "snapshots-logit")
    )
    assert longer["trained"] == 2 * base["trained"] and longer["extracted"] == base["extracted"]
    assert snapshots["trained"] == base["trained"]
    assert snapshots["extracted"] == 2 * base["extracted"]  # after the third and fourth epoch


def test_a_gated_position_learns_its_label() -> None:
    """Where the student is less sure than the teacher; elsewhere the loss is that of topk-tail."""
    stacked = module("stacked")
    logits = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    logits[0, 0, 1, 2] = 9.0  # surer than the teacher
    fields = {
        "targets": torch.tensor([[[2, 2]]]),
        "token_ids": torch.tensor([[[[2, 1], [2, 1]]]]),
        "probabilities": torch.tensor([[[[0.6, 0.3], [0.6, 0.3]]]]),
        "tail": torch.tensor([[[0.1, 0.1]]]),
    }
    log_q = torch.log_softmax(logits[0, 0], -1)
    p, tail = torch.tensor([0.6, 0.3]), torch.tensor(0.1)
    rest = log_q[1, [0, 3]].logsumexp(0)
    kl = (p * (p.log() - log_q[1, [2, 1]])).sum() + tail * (tail.log() - rest)
    lesson = stacked.Lesson(None, 1, objective="hard-gate")
    loss = stacked.losses(logits, fields, [lesson])
    torch.testing.assert_close(loss[0], (kl - log_q[0, 2]) / 2, rtol=1e-6, atol=1e-6)


def results(path: Path) -> Path:
    """Write results in which `first-plus + T` gains 4 points of Trust on average."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for world in range(301, 309):
            for arm, gain in (("first", 0.0), ("distill + T", 0.02), ("first-plus + T", 0.04)):
                for split in ("test", "shifted", "unanswerable"):
                    line: dict[str, Any] = {"world": world, "arm": arm, "split": split}
                    line["confidence"] = 0.5
                    if split != "unanswerable":
                        noise = random.normal(0, 0.01)
                        line |= dict.fromkeys(("accuracy", "ece", "ece_true", "nll"), 0.5)
                        line["trust"] = 0.5 + gain + noise
                    file.write(json.dumps(line) + "\n")
            cost = {"arm": "distill", "split": "cost", "extracted": 10, "trained": 20}
            more = {"arm": "first-plus", "split": "cost", "extracted": 50, "trained": 21}
            for line in (cost, more, {"split": "seconds", "students": 3.0}):
                file.write(json.dumps({"world": world, **line}) + "\n")
    return path


def test_the_tables_hold_the_primary_family(tmp_path: Path) -> None:
    from scipy.stats import ttest_rel

    tables = module("world_tables")
    path = results(tmp_path / "worlds.jsonl")
    values = tables.values_of(tables.read(path))
    p_values = []
    for test in tables.family("first-plus + T"):
        ours, theirs = (
            list(values[arm, test.split, "trust"].values()) for arm in (test.ours, test.theirs)
        )
        gap, above, count = tables.difference(values, test)
        reference = ttest_rel(ours, theirs)
        interval = reference.confidence_interval(0.95)
        assert gap.value == pytest.approx(np.mean(ours) - np.mean(theirs))
        assert gap.p_value == pytest.approx(reference.pvalue)
        assert (gap.interval.low, gap.interval.high) == pytest.approx(tuple(interval))
        assert above == sum(a > b for a, b in zip(ours, theirs, strict=True)) and count == 8
        p_values.append(reference.pvalue)
    smallest = f"| {4 * min(p_values):.2g} |"
    report = tables.report(path)
    assert "| first-plus | 5.00 | 1.05 |" in report
    assert smallest in report and "students 3 s" in report and "8 worlds: 301, 302" in report


def test_worlds_in_the_results_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = module("worlds")
    path = results(tmp_path / "worlds.jsonl")
    before = path.read_text()
    command = ["worlds.py", "run", "--worlds", "301-308", "--arms", "first"]
    monkeypatch.setattr("sys.argv", [*command, "--results", str(path)])
    worlds.main()
    assert path.read_text() == before


def test_numbers_of_worlds() -> None:
    assert module("worlds").numbers("301-303,7") == [301, 302, 303, 7]
