"""Make what the study of `docs/active.md` starts from: lessons for a teacher, and a student.

    cd benchmarks/active
    python ../active_models.py lessons lessons.jsonl
    first distill teacher.yaml
    python ../active_models.py untrained runs/steps-teacher/students/fine-tune untrained
    first distill student.yaml

A small teacher does not follow instructions, so it learns both jobs from examples: to explain a
question of `known-steps`, and to revise an explanation with mistakes. The questions are those of
the split `train`, so it has never seen the pool. Teacher and student share the tokenizer.

    python ../active_models.py trec FOLDER known pool

divides TREC for `trec.yaml`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from firstcli.api import Sample, render
from firstcli.tasks.known_steps import FORM, NUMBERS, RELATIONS, KnownSteps, KnownStepsOptions

WORLD = 1234
REVISION = "{question}\n{steps}\nRevision:"
"""The template of `revise` in `study.yaml`; the lessons end the same way."""
FLAW = "Wrong: {number}"
FLAWLESS = 0.2
"""The share of the explanations to revise that have no mistake."""
KNOWN = 1400
"""Questions of TREC that are labelled from the start; the others are the pool."""
FURTHER = 0.3
"""The probability of a mistake in each step that follows the first one."""


def lessons(questions: Sequence[Sample], task: KnownSteps, seed: int) -> Iterator[dict[str, str]]:
    """Yield, for every question, a lesson in explaining and one in revising."""
    random = Random(seed)
    for sample in questions:
        true, answer = task.true_steps(sample), task.true_answer(sample)
        yield {"prompt": sample.prompt, "response": render(true, answer, FORM)}
        first = len(true) if random.random() < FLAWLESS else random.randrange(len(true))
        steps = [
            _mistaken(step, task, random)
            if place == first or (place > first and random.random() < FURTHER)
            else step
            for place, step in enumerate(true)
        ]
        number = str(first + 1) if first < len(true) else "none"
        lines = [FLAW.format(number=number), *true[first:]]
        prompt = REVISION.format(question=sample.prompt, steps="\n".join(steps))
        yield {"prompt": prompt, "response": render(lines, answer, FORM)}


def _mistaken(step: str, task: KnownSteps, random: Random) -> str:
    """Return a step with another result, and sometimes another relation or another start."""
    while True:
        words = step.removesuffix(".").split()
        names = task.world.creatures
        for place, word in enumerate(words):
            others: Sequence[str] = ()
            if word in names:
                others = names
            elif word.isdigit():
                others = [str(number) for number in range(NUMBERS)]
            elif word in RELATIONS:
                others = RELATIONS
            share = 0.9 if place == len(words) - 1 else 0.15
            if others and random.random() < share:
                words[place] = random.choice(others)
        if (found := " ".join(words) + ".") != step:
            return found


def write_lessons(path: Path, count: int) -> None:
    task = KnownSteps(KnownStepsOptions(train=count, seed=WORLD))
    questions = list(task.load("train").samples)
    rows = lessons(questions, task, WORLD)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_untrained(teacher: Path, path: Path, hidden_size: int, seed: int) -> None:
    from transformers import AutoTokenizer

    from firstcli.api import ModelRef
    from firstcli.families.scratch import Scratch, ScratchOptions

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    options = ScratchOptions(hidden_size=hidden_size, layers=2, heads=4, context=256)
    model = Scratch(options).model(ModelRef(None), tokenizer, "float32", seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def write_trec(source: Path, known: Path, pool: Path) -> None:
    """Divide TREC into what is labelled from the start and a pool without the test questions."""
    lines = (source / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    test = (source / "test.jsonl").read_text("utf-8")
    asked = {json.loads(line)["question"] for line in test.splitlines()}
    new = [line for line in lines if json.loads(line)["question"] not in asked]
    parts = {
        known: {"train": "".join(new[:KNOWN]), "test": test},
        pool: {"train": "".join(new[KNOWN:])},
    }
    for folder, files in parts.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in files.items():
            (folder / f"{name}.jsonl").write_text("".join(texts), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("lessons")
    command.add_argument("path", type=Path)
    command.add_argument("--count", type=int, default=2000)
    command = commands.add_parser("untrained")
    command.add_argument("teacher", type=Path)
    command.add_argument("path", type=Path)
    command.add_argument("--hidden-size", type=int, default=64)
    command.add_argument("--seed", type=int, default=WORLD)
    command = commands.add_parser("trec")
    for name in ("source", "known", "pool"):
        command.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.command == "lessons":
        write_lessons(given.path, given.count)
    elif given.command == "trec":
        write_trec(given.source, given.known, given.pool)
    else:
        write_untrained(given.teacher, given.path, given.hidden_size, given.seed)


if __name__ == "__main__":
    main()
