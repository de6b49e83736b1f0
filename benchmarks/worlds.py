"""Run the study of `docs/study-protocol.md`: many known worlds, every arm in each of them.

    python benchmarks/worlds.py run --worlds 301-320 --jobs 2 --results worlds.jsonl
    python benchmarks/worlds.py tables --results worlds.jsonl

A world has its own laws, questions, teachers and students. All teachers of a world are trained at
once, then all students (`stacked.py`). Data, tokenizer, validation part, order of samples,
knowledge and its rounding, recalibrators, objective and metrics are firstcli's own. A finished
world is appended to the results, one JSON line per model and evaluation, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import stacked
import torch
import world_tables
from transformers import LlamaForCausalLM

from firstcli import metrics
from firstcli.augmenters.perturb import Perturb
from firstcli.data import splits
from firstcli.data.copies import copies_of
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample, each_encoded
from firstcli.knowledge import codec
from firstcli.knowledge.mean import mean_of
from firstcli.knowledge.top_k import TopK
from firstcli.metrics.records import EvalRecords
from firstcli.models import inference, readout
from firstcli.models.answers import EVALUATION_TOKENS, candidate_log_probs
from firstcli.pipeline.plan import Request, open_run
from firstcli.plugins import calls
from firstcli.plugins.calls import CheckedRecalibrator
from firstcli.recalibration.candidates import recalibrated
from firstcli.recipe.sections import Arm
from firstcli.stages import chat, inputs, scoring
from firstcli.training import soft_targets
from firstcli.training.copies import CopyChoice
from firstcli.workspace.run import Run

RECIPE = Path(__file__).with_name("worlds.yaml")
SHARE = 0.5  # probability that a row is one of its copies in an epoch
EVERY = ("copy1", "copy2", "copy3", "copy4")
"""The copies of each prompt, of levels 0.15, 0.15, 0.3 and 0.3."""
TEACHERS = {"teacher": ((), 0), "teacher-2": ((), 1), "teacher-copies": (EVERY, 0)}
"""Each teacher's copies, on which it is fine-tuned with their labels, and what its seed adds."""


@dataclass(frozen=True)
class StudyArm:
    """A student: an arm of the recipe, and what the recipe does not say."""

    like: str
    """The arm of the recipe, which determines recalibrator, objective and post-hoc temperature."""
    copies: Sequence[str] = ()
    """The copies of each prompt from which it also learns."""
    teachers: Sequence[str] = ("teacher",)
    """Whose probabilities it learns, if several their mean."""
    clean_targets: bool = False
    """Whether the target of a copy is that of the prompt itself."""


ARMS = {
    "fine-tune": StudyArm("fine-tune"),
    "fine-tune-copies": StudyArm("fine-tune", EVERY),
    "distill": StudyArm("distill"),
    "distill-copies": StudyArm("distill", EVERY),
    "first": StudyArm("first"),
    "first-logit": StudyArm("first-logit"),
    "first-plus": StudyArm("first-logit", EVERY),
    "one-copy": StudyArm("first-logit", ("copy3",)),
    "two-copies": StudyArm("first-logit", ("copy1", "copy3")),
    "clean-targets": StudyArm("first-logit", EVERY, clean_targets=True),
    "teacher-copies-distill": StudyArm("distill", teachers=("teacher-copies",)),
    "teacher-copies-plus": StudyArm("first-logit", EVERY, ("teacher-copies",)),
    "mean-logit": StudyArm("first-logit", (), ("teacher", "teacher-2")),
    "mean-plus": StudyArm("first-logit", EVERY, ("teacher", "teacher-2")),
}


@dataclass(frozen=True)
class Known:
    """Knowledge in memory, after the rounding of its store."""

    top_k: int
    known: Mapping[str, TopK]

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a sample."""
        return self.known[sample.id]

    @classmethod
    def extracted(cls, run: Run, model: LlamaForCausalLM, rows: Sequence[EncodedSample]) -> Known:
        """Ask a model, as `first extract` does."""
        top_k, reader, known = run.recipe.knowledge.top_k, readout.Reader(model), {}
        limit = inputs.vocabulary(run, "student")
        with torch.inference_mode():
            for part in inference.batches(lengths_of(rows).tolist(), scoring.EXTRACTION_TOKENS):
                known |= scoring.top_k_of(reader, [rows[i] for i in part], top_k, limit)
        return cls(top_k, known)

    def stored(self, precision: codec.Precision) -> Known:
        """Round like the store."""
        ids, whole = list(self.known), TopK.concatenated(list(self.known.values()))
        grid = codec.grid_of(precision, self.top_k)
        log_probs, log_tail = codec.decode(
            codec.encode(whole.log_probs, whole.log_tail, grid), grid
        )
        rounded, first = {}, 0
        for id in ids:
            at = slice(first, first + len(self.known[id].log_tail))
            rounded[id] = TopK(whole.token_ids[at], log_probs[at], log_tail[at])
            first = at.stop
        return Known(self.top_k, rounded)


@dataclass
class World:
    """The data of one world, as firstcli prepares it."""

    run: Run

    @classmethod
    def of(cls, seed: int, overrides: Sequence[str] = ()) -> World:
        """Open the recipe with a seed of weights, order, laws, questions, answers and copies."""
        chosen = [f"seed={seed}", f"train.task.options.seed={seed}"]
        chosen += [f"evaluate.{i}.task.options.seed={seed}" for i in range(3)]
        return cls(open_run(Request(RECIPE, (*chosen, *overrides), quiet=True)))

    @cached_property
    def rows(self) -> list[EncodedSample]:
        """The N training samples, then their copies; copies of held-out prompts are left out."""
        training, task = self.run.training, self.run.recipe.train.task.build()
        perturb = calls.augmenter("perturb", Perturb.Options())
        made = list(copies_of(training.train, task.usage(), [perturb], self.run.recipe.seed))
        held_out = splits.among(made, splits.prompt_digests(training.validation))
        kept = [copy for copy, is_seen in zip(made, held_out, strict=True) if not is_seen]
        encoding = chat.encoding(self.run, "student", "copies")
        return [*inputs.training_rows(self.run, "student", "train"), *each_encoded(kept, encoding)]

    @property
    def samples(self) -> int:
        """The number of training samples."""
        return len(self.run.training.train)

    @cached_property
    def validation(self) -> Sequence[EncodedSample]:
        """The validation part, of which nothing has copies."""
        return inputs.training_rows(self.run, "student", "validation")

    def choice(self, copies: Sequence[str]) -> CopyChoice | None:
        """Return which rows an epoch consists of, for a model that learns from these copies."""
        if not copies:
            return None
        ids = [row.id for row in self.rows]
        others = [id if id.partition("/")[0] in copies else "" for id in ids[self.samples :]]
        return CopyChoice.of(ids[: self.samples], others, SHARE, self.run.recipe.seed)

    def taught(self, teacher_rows: Known, recalibrator: CheckedRecalibrator, arm: Arm) -> Any:
        """Return the soft targets of all rows."""
        task = self.run.recipe.train.task.name
        return soft_targets.SoftTargetBuilder(arm, recalibrator, teacher_rows, self.rows, task)


def fitted(ref: Any, arm: Arm, world: World, known: Known) -> CheckedRecalibrator:
    """Fit a recalibrator at the answer positions of the validation part."""
    recalibrator: CheckedRecalibrator = ref.build()
    if recalibrator.needs_fit:
        parts = list(soft_targets.recalibrated_chunks(arm, world.validation, known))
        positions = soft_targets.Positions.joined(parts)
        rows = soft_targets.rows_of(arm, positions, world.run.recipe.train.task.name, {})
        recalibrator.fit(rows, positions.is_label)
    return recalibrator


@dataclass
class Teachers:
    """The knowledge of a world's teachers: of the validation part and of all rows."""

    validation: dict[str, Known]
    rows: dict[str, Known]

    def mean(self, names: Sequence[str]) -> tuple[Known, Known]:
        """Return the mean knowledge of some teachers, of the validation part and of all rows."""
        result = []
        for part in (self.validation, self.rows):
            each = [part[name] for name in names]
            mean = each[0]
            if len(each) > 1:
                ids = mean.known
                mean = Known(mean.top_k, {i: mean_of([one.known[i] for one in each]) for i in ids})
            result.append(mean)
        return result[0], result[1]


def answered(run: Run, model: LlamaForCausalLM, evaluation: str) -> EvalRecords:
    """Let a model answer the questions of an evaluation, as `first eval` does."""
    questions = inputs.questions(run, "student", evaluation)
    reader, log_probs = readout.Reader(model), {}
    with torch.inference_mode():
        lengths = [len(question.input_ids) for question in questions]
        for part in inference.batches(lengths, EVALUATION_TOKENS):
            log_probs |= candidate_log_probs(reader, [questions[i] for i in part])
    truth = [question.truth for question in questions if question.truth is not None]
    return EvalRecords.from_log_probs(
        ids=[question.id for question in questions],
        answers=[-1 if question.answer is None else question.answer for question in questions],
        log_probs=[log_probs[question.id] for question in questions],
        truth=truth if len(truth) == len(questions) else None,
    )


def measured(records: EvalRecords, bins: int) -> dict[str, float]:
    """Return the measures of the protocol; without a right answer, only the confidence."""
    confidence = records.confidence
    values = {"confidence": metrics.mean_confidence(confidence)}
    if records.answerable:
        p_right = records.p_right
        assert p_right is not None
        values |= {
            "accuracy": metrics.accuracy(records.correct),
            "ece": metrics.ece(confidence, records.correct, bins),
            "trust": metrics.trust(confidence, records.correct, bins),
            "ece_true": metrics.ece(confidence, p_right, bins),
            "accuracy_true": float(p_right.mean()),
            "nll": metrics.nll(records.probabilities, records.answer).value,
        }
    return values


def lines_of(
    world: World, name: str, model: LlamaForCausalLM, arm: Arm, posthoc: Any
) -> list[dict[str, Any]]:
    """Evaluate a model with and without its own temperature."""
    recipe = world.run.recipe
    records = {each.name: answered(world.run, model, each.name) for each in recipe.evaluate}
    own = fitted(posthoc, arm, world, Known.extracted(world.run, model, world.validation))
    lines = []
    for evaluation, plain in records.items():
        both = {name: plain, f"{name} + T": recalibrated(plain, own, recipe.train.task.name)}
        for model_name, each in both.items():
            line = {"world": recipe.seed, "arm": model_name, "split": evaluation}
            if model_name != name:
                line["temperature"] = own.diagnostics().facts["temperature"]
            lines.append(line | measured(each, recipe.metrics.bins))
    return lines


def run_world(seed: int, names: Sequence[str], overrides: Sequence[str], threads: int) -> str:
    """Train and evaluate everything in one world; return its lines of results."""
    torch.set_num_threads(threads)
    world, clock = World.of(seed, overrides), Clock()
    run, rows, samples = world.run, world.rows, world.samples
    recipe = run.recipe
    assert recipe.teacher and recipe.teacher.finetune
    needed = dict.fromkeys(["teacher", *(t for name in names for t in ARMS[name].teachers)])
    clock.lap("data")

    starts = [start(run, "teacher", seed + TEACHERS[name][1]) for name in needed]
    stack = stacked.Stack(starts)
    lessons = [
        stacked.Lesson.of(rows, samples, None, world.choice(TEACHERS[name][0])) for name in needed
    ]
    stacked.train(stack, lessons, recipe.teacher.finetune, seed)
    models = {name: stack.model(i) for i, name in enumerate(needed)}
    clock.lap("teachers")

    precision, teachers = recipe.knowledge.precision, Teachers({}, {})
    for name, model in models.items():
        teachers.validation[name] = Known.extracted(run, model, world.validation).stored(precision)
        teachers.rows[name] = Known.extracted(run, model, rows).stored(precision)
    clock.lap("extraction")

    lessons, notes = [], []
    for name in names:
        study = ARMS[name]
        arm, source = recipe.arms[study.like], None
        if arm.learn == "knowledge":
            validation, known = teachers.mean(study.teachers)
            if study.clean_targets:
                known = Known(
                    known.top_k, {row.id: known.known[row.id.rpartition("/")[2]] for row in rows}
                )
            own = fitted(arm.recalibrator, arm, world, validation)
            source = world.taught(known, own, arm)
            facts = own.diagnostics().facts
            if "temperature" in facts:
                notes.append({"arm": name, "split": "fit", "temperature": facts["temperature"]})
        lessons.append(stacked.Lesson.of(rows, samples, source, world.choice(study.copies)))
    clock.lap("soft targets")

    stack = stacked.Stack([start(run, "student", seed)] * len(names))
    stacked.train(stack, lessons, recipe.student.training, seed)
    clock.lap("students")

    lines = [{"world": seed, **note} for note in notes]
    for i, name in enumerate(names):
        arm = recipe.arms[ARMS[name].like]
        lines += lines_of(world, name, stack.model(i), arm, arm.posthoc)
    for name, model in models.items():
        lines += lines_of(world, name, model, recipe.arms["distill"], recipe.teacher.posthoc)
    clock.lap("evaluation")
    lines.append({"world": seed, "split": "seconds", **clock.seconds})
    return "".join(json.dumps(line) + "\n" for line in lines)


def start(run: Run, role: Any, seed: int) -> LlamaForCausalLM:
    """Return new weights."""
    model = inputs.starting_model(run, role, "float32", seed)
    assert isinstance(model, LlamaForCausalLM)
    return model


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
    """Run the worlds that the results lack, several at a time; one that fails is reported."""
    done = {line["world"] for line in world_tables.read(chosen.results)}
    names = chosen.arms or list(ARMS)
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    failed = False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context) as pool:
        waiting = {
            pool.submit(run_world, seed, names, chosen.overrides, threads): seed
            for seed in chosen.worlds
            if seed not in done
        }
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
    tables.set_defaults(work=lambda chosen: print(world_tables.report(chosen.results)))
    for command in (run, tables):
        command.add_argument("--results", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.work(chosen)


if __name__ == "__main__":
    main()
