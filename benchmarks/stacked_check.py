"""Compare the stacked training of `stacked.py` with the training of `first`, on the same weights.

    python benchmarks/stacked_check.py recipes/quickstart.yaml

It trains a teacher and one student per arm of the recipe with `training.trainer.train`, as `first`
does, and the same students as one stack, and prints the largest differences of the loss at each
step and of the candidates' final log-probabilities. In float64 they are rounding. In float32,
training magnifies rounding: the third column shows how far `first` itself gets from its result when
it only takes half the micro-batch, which is the same arithmetic in a different order.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import stacked
import study_world
import world_tables
from firstcli.api import FloatArray
from firstcli.pipeline.plan import Request, open_run
from firstcli.recipe.sections import Arm, Training
from firstcli.runtime.console import Console
from firstcli.training import arguments, trainer
from firstcli.training.soft_targets import Recalibration
from firstcli.workspace.run import Run
from study_world import EVERY, Known, World

KINDS = ("float64", "float32", "`first`, halved")
"""Of the columns: the stack against `first` in two dtypes, and `first` against itself."""


@dataclass(frozen=True)
class Trained:
    """A trained model's loss at each step, (steps,), and its answers, (questions, candidates)."""

    curve: FloatArray
    answers: FloatArray

    def distance(self, other: Trained) -> tuple[float, float]:
        """Return the largest differences of losses and of answers."""
        return (
            float(np.abs(self.curve - other.curve).max()),
            float(np.abs(self.answers - other.answers).max()),
        )


def by_first(
    run: Run, model: LlamaForCausalLM, lesson: stacked.Lesson, settings: Training
) -> Trained:
    """Train a copy of a model as `first` does, with the loss of each step logged."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {"logging_steps": 1, "save_strategy": "no"}
        args = arguments.arguments(
            Path(folder), settings, fields, run.recipe.seed, torch.device("cpu")
        )
        batches = lesson.batches
        outcome = trainer.train(
            model,
            batches.samples if lesson.choice else batches.samples[: lesson.samples],
            batches.soft_targets,
            lesson.objective,
            args,
            Console(quiet=True),
            "check",
            choice=lesson.choice,
        )
    return Trained(np.array([entry["loss"] for entry in outcome.log]), answers(run, model.eval()))


def by_stack(
    run: Run,
    models: Sequence[LlamaForCausalLM],
    lessons: Sequence[stacked.Lesson],
    settings: Training,
) -> list[Trained]:
    """Train copies of models as a stack."""
    stack = stacked.Stack(models)
    curves: Tensor = stacked.train(stack, lessons, settings, run.recipe.seed)
    return [
        Trained(curves[:, i].double().numpy(), answers(run, stack.model(i)))
        for i in range(len(models))
    ]


def answers(run: Run, model: LlamaForCausalLM) -> FloatArray:
    """Return the candidates' log-probabilities in all evaluations."""
    every = [study_world.answered(run, model, each.name) for each in run.recipe.evaluate]
    return np.concatenate([records.log_probs for records in every])


def lessons_of(world: World, arms: dict[str, Arm]) -> dict[str, stacked.Lesson]:
    """Train a teacher as a stack of one; return what each arm learns, with and without copies."""
    recipe, rows = world.run.recipe, world.rows
    assert recipe.teacher and recipe.teacher.finetune
    stack = stacked.Stack([study_world.start(world.run, "teacher", recipe.seed)])
    plain = stacked.Lesson.of(rows, world.samples, None)
    stacked.train(stack, [plain], recipe.teacher.finetune, recipe.seed)
    parts = [
        Known.extracted(world.run, stack.model(0), part).stored(recipe.knowledge.precision)
        for part in (world.validation, rows)
    ]
    lessons = {}
    for name, arm in arms.items():
        source: Any = None
        if arm.learn == "knowledge":
            own = study_world.fitted(arm.recalibrator, arm, world, parts[0])
            source = world.taught([Recalibration(own, parts[1])], arm)
        for title, copies in ((name, ()), (f"{name}, copies", EVERY)):
            choice = world.choice(copies)
            lessons[title] = stacked.Lesson.of(rows, world.samples, source, choice)
    return lessons


def exact(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Turn a model to float64, also within its norms, for which transformers takes float32."""
    for name, module in list(model.named_modules()):
        epsilon = getattr(module, "variance_epsilon", None)
        if epsilon is not None:
            norm: Any = nn.RMSNorm(len(module.weight), epsilon)
            norm.weight, norm.variance_epsilon = module.weight, epsilon
            model.set_submodule(name, norm)
    return model.double()


def compared(
    world: World, lessons: dict[str, stacked.Lesson], *, wide: bool
) -> dict[str, tuple[Trained, Trained]]:
    """Return what `first` and the stack make of each lesson, in float64 if `wide`, else float32."""
    run, settings = world.run, world.run.recipe.student.training

    def model() -> LlamaForCausalLM:
        start = study_world.start(run, "student", run.recipe.seed)
        return exact(start) if wide else start

    stack = by_stack(run, [model() for _ in lessons], list(lessons.values()), settings)
    alone = [by_first(run, model(), lesson, settings) for lesson in lessons.values()]
    return dict(zip(lessons, zip(alone, stack, strict=True), strict=True))


def main() -> None:
    """Print the differences as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    chosen = parser.parse_args()
    world = World(open_run(Request(chosen.recipe, tuple(chosen.overrides), quiet=True)))
    lessons = lessons_of(world, dict(world.run.recipe.arms))
    settings = world.run.recipe.student.training
    halved = settings.model_copy(update={"micro_batch_size": settings.batch_size // 2})
    double = compared(world, lessons, wide=True)
    single = compared(world, lessons, wide=False)
    headings = [f"{kind}: {what}" for kind in KINDS for what in ("loss", "answers")]
    print(world_tables.row(["arm", *headings]))
    print(world_tables.row(["--", *["--:"] * 6]))
    for name, lesson in lessons.items():
        model = study_world.start(world.run, "student", world.run.recipe.seed)
        again = by_first(world.run, model, lesson, halved)
        cells = [one.distance(other) for one, other in (double[name], single[name])]
        cells.append(again.distance(single[name][0]))
        print(world_tables.row([name, *(f"{value:.1e}" for pair in cells for value in pair)]))


if __name__ == "__main__":
    main()
