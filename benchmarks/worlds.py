"""Run the study of `docs/study-protocol.md`: many known worlds, every arm in each of them.

    python benchmarks/worlds.py run --worlds 301-324 --jobs 2 --results worlds.jsonl
    python benchmarks/worlds.py tables --results worlds.jsonl

A world has its own laws, questions, teachers and students. All teachers of a world are trained at
once, then all students (`stacked.py`). Data, tokenizer, validation part, order of samples,
knowledge and its rounding, recalibrators, objective and metrics are firstcli's own. A finished
world is appended to the results, one JSON line per model and evaluation. What they hold is not run
again, so arms can be added later.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

import stacked
import study_world
import world_tables
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.metrics.records import EvalRecords
from firstcli.plugins import recalibrators
from firstcli.recalibration.agreement import fit_temperature
from firstcli.recalibration.builtin import LogitTemperature, TemperatureOptions
from firstcli.recalibration.candidates import recalibrated
from firstcli.recipe.references import PosthocRef
from firstcli.training.averaging import WeightAverage
from firstcli.training.soft_targets import Recalibration
from study_world import EVERY, Known, World

TEACHERS = {"teacher": ((), 0), "teacher-2": ((), 1), "teacher-copies": (EVERY, 0)}
"""Each teacher's copies, on which it is fine-tuned with their labels, and what its seed adds.

They are always trained together, because rounding depends on the size of a stack."""
THIRD = {"teacher-3": ((), 2)}
"""A further teacher, trained by itself where an arm needs it."""
SNAPSHOTS = "snapshots"
"""The mean of `teacher` at the ends of its epochs from the third on; it is only extracted."""
FIRST_SNAPSHOT = 3
AT_ONCE = 8  # students in a stack, whose batch then fits into a cache
DECAY = 0.99  # of moving averages: over about the last 100 of 840 steps


@dataclass(frozen=True)
class StudyArm:
    """A student: an arm of the recipe, and what the recipe does not say."""

    like: str
    """The arm of the recipe, which determines recalibrator, objective and post-hoc temperature."""
    copies: Sequence[str] = ()
    """The copies of each prompt from which it also learns."""
    teachers: Sequence[str] = ("teacher",)
    """Whose probabilities it learns, if several their mean."""
    separately: bool = False
    """Whether each teacher is recalibrated by itself, before the mean is taken."""
    clean_targets: bool = False
    """Whether the target of a copy is that of the prompt itself."""
    gated: bool = False
    """Whether the objective is `hard-gate`."""
    epochs: int = 1
    """How many times the epochs of the recipe."""
    draws: int | None = None
    """How many tokens are drawn per position from the teacher's whole distribution."""
    average_of: str | None = None
    """The arm whose moving average of the weights it is; it is not trained itself."""


PLUS = StudyArm("first-logit", EVERY)
BOTH = ("teacher", "teacher-2")
THREE = (*BOTH, "teacher-3")
ARMS = {
    "fine-tune": StudyArm("fine-tune"),
    "fine-tune-copies": StudyArm("fine-tune", EVERY),
    "distill": StudyArm("distill"),
    "distill-copies": StudyArm("distill", EVERY),
    "first": StudyArm("first"),
    "first-logit": StudyArm("first-logit"),
    "first-plus": PLUS,
    "one-copy": StudyArm("first-logit", ("copy3",)),
    "two-copies": StudyArm("first-logit", ("copy1", "copy3")),
    "clean-targets": replace(PLUS, clean_targets=True),
    "teacher-copies-distill": StudyArm("distill", teachers=("teacher-copies",)),
    "teacher-copies-plus": replace(PLUS, teachers=("teacher-copies",)),
    "mean-logit": StudyArm("first-logit", teachers=BOTH),
    "mean-plus": replace(PLUS, teachers=BOTH),
    "separate-plus": replace(PLUS, teachers=BOTH, separately=True),
    "mean-one-copy": StudyArm("first-logit", ("copy3",), BOTH),
    "three-logit": StudyArm("first-logit", teachers=THREE),
    "three-plus": replace(PLUS, teachers=THREE),
    "hard-gate": StudyArm("first-logit", gated=True),
    "first-logit-ema": StudyArm("first-logit", average_of="first-logit"),
    "first-plus-ema": replace(PLUS, average_of="first-plus"),
    "longer-distill": StudyArm("distill", epochs=2),
    "longer-logit": StudyArm("first-logit", epochs=2),
    "longer-plus": replace(PLUS, epochs=2),
    "draws-distill": StudyArm("distill", draws=50),
    "draws-copies": StudyArm("distill", EVERY, draws=50),
    "snapshots-logit": StudyArm("first-logit", teachers=(SNAPSHOTS,)),
    "snapshots-plus": replace(PLUS, teachers=(SNAPSHOTS,)),
}
AGREEING = ("distill", "first-logit", "first-plus")
"""Students that also get a temperature by agreement with `teacher + T` on the very questions."""
Line = dict[str, Any]


@dataclass
class Evaluator:
    """Evaluates the models of a world."""

    world: World
    done: Collection[str]
    """Names of models whose results exist."""
    reference: Mapping[str, EvalRecords] | None = None
    """By evaluation, the answers with which others are brought to agree."""

    def lines(
        self, name: str, model: LlamaForCausalLM, like: str, posthoc: PosthocRef
    ) -> list[Line]:
        """Evaluate a model as it is and with its own temperature.

        Args:
            name: the model's name in the results.
            model: the model.
            like: an arm of the recipe.
            posthoc: the temperature.
        """
        world, recipe = self.world, self.world.run.recipe
        task, bins = recipe.train.task.name, recipe.metrics.bins
        held_out = Known.extracted(world.run, model, world.validation)
        own = study_world.fitted(posthoc, recipe.arms[like], world, held_out)
        fitted, lines, tempered = own.diagnostics().facts["temperature"], [], {}
        for each in recipe.evaluate:
            plain = study_world.answered(world.run, model, each.name)
            tempered[each.name] = recalibrated(plain, own, task)
            shown: dict[str, tuple[EvalRecords, Line]] = {
                name: (plain, {}),
                f"{name} + T": (tempered[each.name], {"temperature": fitted}),
            }
            if name in AGREEING and self.reference is not None:
                reference = self.reference[each.name].probabilities
                t = fit_temperature(plain.probabilities, reference)["temperature"]
                fixed = recalibrators.recalibrator(
                    LogitTemperature.name, TemperatureOptions(temperature=t)
                )
                shown[f"{name} + agreement"] = recalibrated(plain, fixed, task), {"temperature": t}
            for title, (records, facts) in shown.items():
                line = {"world": recipe.seed, "arm": title, "split": each.name, **facts}
                lines.append(line | study_world.measured(records, bins))
        if name == "teacher":
            self.reference = tempered
        return [] if name in self.done else lines


def train_teachers(
    world: World, chosen: Mapping[str, tuple[Sequence[str], int]]
) -> tuple[dict[str, LlamaForCausalLM], list[LlamaForCausalLM]]:
    """Fine-tune teachers with labels, at once; also return the snapshots of the first one."""
    recipe = world.run.recipe
    assert recipe.teacher and recipe.teacher.finetune
    settings, starts, lessons = recipe.teacher.finetune, [], []
    for copies, further in chosen.values():
        starts.append(study_world.start(world.run, "teacher", recipe.seed + further))
        choice = world.choice(copies)
        lessons.append(stacked.Lesson.of(world.rows, world.samples, None, choice))
    stack, snapshots, steps = stacked.Stack(starts), [], itertools.count(1)
    per_epoch = -(-world.samples // settings.batch_size)

    def keep() -> None:
        epoch, rest = divmod(next(steps), per_epoch)
        if epoch >= FIRST_SNAPSHOT and not rest:
            snapshots.append(stack.model(0))

    stacked.train(stack, lessons, settings, recipe.seed, keep)
    return {name: stack.model(i) for i, name in enumerate(chosen)}, snapshots


@dataclass
class Lessons:
    """What students of a world learn."""

    world: World
    held_out: Mapping[str, Known]
    """Each teacher's knowledge of the validation part."""
    known: Mapping[str, Known]
    """Each teacher's knowledge of all rows."""
    readings: Mapping[str, int]
    """How many models read a prompt for each teacher's knowledge."""
    teacher: LlamaForCausalLM
    """The teacher called `teacher`."""

    def of(self, name: str) -> tuple[stacked.Lesson, list[Line]]:
        """Return an arm's lesson, and lines with its cost and the temperature of its targets."""
        world, study, lines = self.world, ARMS[name], []
        arm, source = world.run.recipe.arms[study.like], None
        if arm.learn == "knowledge":
            groups = [(t,) for t in study.teachers] if study.separately else [study.teachers]
            taught = [self._recalibration(study, group) for group in groups]
            source = world.taught(taught, arm, study.draws)
            own = taught[0].recalibrator
            lines.append({"split": "fit", **own.diagnostics().facts})
        choice = world.choice(study.copies)
        lesson = stacked.Lesson.of(world.rows, world.samples, source, choice)
        lines.append({"split": "cost", **self._cost(study, lesson)})
        seed, kept = world.run.recipe.seed, ("split", "temperature", "extracted", "trained")
        lines = [{key: line[key] for key in kept if key in line} for line in lines]
        lines = [{"world": seed, "arm": name, **line} for line in lines]
        return (replace(lesson, objective="hard-gate") if study.gated else lesson), lines

    def _recalibration(self, study: StudyArm, teachers: Sequence[str]) -> Recalibration:
        """Return the mean of teachers' knowledge and the recalibrator that is fitted to it."""
        world, arm = self.world, self.world.run.recipe.arms[study.like]
        held_out, known = (
            Known.mean([part[teacher] for teacher in teachers])
            for part in (self.held_out, self.known)
        )
        known = known.at_prompts(world.rows) if study.clean_targets else known
        own = study_world.fitted(arm.recalibrator, arm, world, held_out)
        if study.draws is not None:
            known = Known.drawn(world.run, self.teacher, world.rows, study.draws)
        return Recalibration(own, known)

    def _cost(self, study: StudyArm, lesson: stacked.Lesson) -> Line:
        """Return how many tokens the teachers read for an arm, and how many the student."""
        world, lengths = self.world, lengths_of(self.world.rows)
        is_asked = np.array(
            [
                not kind or (kind in study.copies and not study.clean_targets)
                for kind in (row.id.rpartition("/")[0] for row in world.rows)
            ]
        )
        epochs = range(math.ceil(study.epochs * world.run.recipe.student.training.epochs))
        own, choice = np.arange(world.samples), lesson.choice
        chosen = (own if choice is None else choice.of_epoch(epoch) for epoch in epochs)
        teachers = sum(self.readings[name] for name in study.teachers)
        teachers *= lesson.objective != "labels"
        return {
            "extracted": teachers * int(lengths[is_asked].sum()),
            "trained": sum(int(lengths[rows].sum()) for rows in chosen),
        }


def train_students(
    world: World, lessons: Mapping[str, stacked.Lesson]
) -> dict[str, LlamaForCausalLM]:
    """Train the students of a world and return them with the averages of their weights."""
    recipe = world.run.recipe
    models: dict[str, LlamaForCausalLM] = {}
    kinds = dict.fromkeys((ARMS[name].epochs, ARMS[name].draws) for name in lessons)
    for epochs, draws in kinds:
        names = [n for n in lessons if (ARMS[n].epochs, ARMS[n].draws) == (epochs, draws)]
        changes = {"epochs": epochs * recipe.student.training.epochs}
        settings = recipe.student.training.model_copy(update=changes)
        for first in range(0, len(names), AT_ONCE):
            part = names[first : first + AT_ONCE]
            starts = [study_world.start(world.run, "student", recipe.seed)] * len(part)
            stack = stacked.Stack(starts)
            average = WeightAverage(stack, DECAY)
            own = [lessons[name] for name in part]
            stacked.train(stack, own, settings, recipe.seed, average.update)
            models |= {name: stack.model(i) for i, name in enumerate(part)}
            average.apply()
            for name, study in ARMS.items():
                if study.average_of in part:
                    models[name] = stack.model(part.index(study.average_of))
    return models


def known_by(
    world: World, models: Sequence[LlamaForCausalLM], rows: Sequence[EncodedSample]
) -> Known:
    """Return the mean of what models know of rows, after the rounding of the store."""
    precision = world.run.recipe.knowledge.precision
    each = [Known.extracted(world.run, model, rows).stored(precision) for model in models]
    return Known.mean(each)


def run_world(
    seed: int, names: Sequence[str], done: Collection[str], overrides: Sequence[str], threads: int
) -> str:
    """Train and evaluate arms in one world; return their lines of results.

    Args:
        seed: the world.
        names: the arms.
        done: models whose results exist.
        overrides: changes to the recipe.
        threads: for the arithmetic.
    """
    torch.set_num_threads(threads)
    world, clock = World.of(seed, overrides), Clock()
    run, rows = world.run, world.rows
    recipe = run.recipe
    trained = list(dict.fromkeys(ARMS[name].average_of or name for name in names))
    clock.lap("data")
    teachers, snapshots = train_teachers(world, TEACHERS)
    if any(not TEACHERS.keys() >= {*ARMS[name].teachers} - {SNAPSHOTS} for name in trained):
        teachers |= train_teachers(world, THIRD)[0]
    clock.lap("teachers")
    held_out = {name: known_by(world, [each], world.validation) for name, each in teachers.items()}
    known = {name: known_by(world, [each], rows) for name, each in teachers.items()}
    if any(SNAPSHOTS in ARMS[name].teachers for name in trained):
        held_out[SNAPSHOTS] = known_by(world, snapshots, world.validation)
        known[SNAPSHOTS] = known_by(world, snapshots, rows)
    readings = dict.fromkeys(teachers, 1) | {SNAPSHOTS: len(snapshots)}
    clock.lap("extraction")
    lessons = Lessons(world, held_out, known, readings, teachers["teacher"])
    pairs = {name: lessons.of(name) for name in trained}
    clock.lap("soft targets")
    models = train_students(world, {name: lesson for name, (lesson, _) in pairs.items()})
    clock.lap("students")
    lines = [line for _, about in pairs.values() for line in about if line["arm"] in names]
    evaluator = Evaluator(world, done)
    assert recipe.teacher and recipe.teacher.posthoc
    for name, teacher in teachers.items():
        lines += evaluator.lines(name, teacher, "distill", recipe.teacher.posthoc)
    for name in names:
        posthoc = recipe.arms[ARMS[name].like].posthoc
        assert posthoc
        lines += evaluator.lines(name, models[name], ARMS[name].like, posthoc)
    clock.lap("evaluation")
    lines.append({"world": seed, "split": "seconds", **clock.seconds})
    return "".join(json.dumps(line) + "\n" for line in lines)


class Clock:
    """Seconds of processor time by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.process_time()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


def numbers(text: str) -> list[int]:
    """Read a list such as `301-310,315`."""
    result: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        result += range(int(first), int(last or first) + 1)
    return result


def run_worlds(chosen: argparse.Namespace) -> None:
    """Run what the results lack, several worlds at a time; one that fails is reported."""
    done: dict[int, set[str]] = {}
    for line in world_tables.read(chosen.results):
        done.setdefault(line["world"], set()).add(line.get("arm", ""))
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    failed, waiting = False, {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context) as pool:
        for seed in chosen.worlds:
            existing = done.get(seed, set())
            names = [name for name in chosen.arms or ARMS if name not in existing]
            if names:
                task = pool.submit(run_world, seed, names, existing, chosen.overrides, threads)
                waiting[task] = seed
        for future in as_completed(waiting):
            seed = waiting[future]
            if error := future.exception():
                failed = True
                print(f"world {seed} failed: {error!r}", file=sys.stderr, flush=True)
                continue
            with chosen.results.open("a") as file:
                file.write(future.result())
            print(f"world {seed} done", file=sys.stderr, flush=True)
    if failed:
        sys.exit(1)


def main() -> None:
    """Run worlds, or print the tables of the protocol."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run worlds")
    run.add_argument("--worlds", type=numbers, required=True, help="such as 301-310,315")
    run.add_argument("--jobs", type=int, default=1, help="worlds at a time")
    run.add_argument("--arms", nargs="+", choices=ARMS, help="default: all")
    run.add_argument("--set", action="append", default=[], dest="overrides")
    run.set_defaults(work=run_worlds)
    tables = commands.add_parser("tables", help="print the tables of the protocol")
    tables.add_argument("--winner", default=world_tables.WINNER, help="whose tests are primary")
    tables.set_defaults(
        work=lambda chosen: print(world_tables.report(chosen.results, chosen.winner))
    )
    for command in (run, tables):
        command.add_argument("--results", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.work(chosen)


if __name__ == "__main__":
    main()
