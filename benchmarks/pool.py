"""Reading a pool for `explanation-uncertainty` against only generating its explanations.

    python benchmarks/pool.py [--repeats 5]

The explanations are given: every model writes the same ones, of four steps, token by token.
Memory is measured while pools of two sizes, read part by part, are scored.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

import measure
import shapes
from firstcli.api import ExplanationForm, ModelRef, Sample
from firstcli.data.encoding import Encoding
from firstcli.families.scratch import Scratch, ScratchOptions
from firstcli.models.generation import GreedyLogProbs, continuations
from firstcli.plugins import load, selectors
from firstcli.stages import pool_view
from firstcli.stages.pool_view import PoolReader, ReadingSettings, scored
from measure import Comparison, Report

QUESTIONS = 64
STEPS = 4
SIZES = {"entropy": (1024, 200_000), "explanation-uncertainty": (1024, 8192)}
"""Sizes of pools whose memory is compared. The second selector reads explanations, which takes
long, of `SHORT` tokens."""
SHORT = 8
FORM = ExplanationForm()
ALLOCATOR = 16.0
"""Megabytes below which memory is not told from what the allocator keeps."""
NAMES = ("Belbo", "Dorda", "Ranto", "Milva", "Sural")


def questions(count: int) -> Iterator[tuple[Sample, str]]:
    """Yield questions, and what a student says of each."""
    random = Random(0)
    for number in range(count):
        start, add = random.choice(NAMES), random.randrange(10)
        prompt = (
            f"Start with {start}. Take its friend. Take its neighbour. Take its age. Add {add}. "
            f"What is the result of question {number}?\nExplanation:"
        )
        steps = [f"The friend of {random.choice(NAMES)} is {random.choice(NAMES)}."] * STEPS
        candidates = tuple(FORM.opening + FORM.sentence(str(digit)) for digit in range(10))
        response = FORM.prefix(steps) + FORM.sentence(str(random.randrange(10)))
        yield Sample(prompt, "", f"q{number}", candidates), response


class Scripted(GreedyLogProbs):
    """Lets a model say given texts; its log-probabilities are still noted."""

    def __init__(self, script: dict[tuple[int, ...], list[int]]) -> None:
        """Take what follows each prompt."""
        super().__init__()
        self._script, self._rows = script, list[list[int]]()
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that leave only the given tokens."""
        super().__call__(input_ids, scores)
        if not self._rows:
            self._rows = [self._after(row) for row in input_ids.tolist()]
        chosen = [row[min(self._step, len(row) - 1)] for row in self._rows]
        self._step += 1
        index = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(-1, index, 0.0)

    def _after(self, row: Sequence[int]) -> list[int]:
        """Return what follows a prompt, whose padding on the left is unknown."""
        found = (self._script.get(tuple(row[start:])) for start in range(len(row)))
        return next(text for text in found if text is not None)


def tokenizer_of(texts: Sequence[tuple[Sample, str]]) -> PreTrainedTokenizerBase:
    lines = [sample.prompt + response for sample, response in texts]
    return Scratch(ScratchOptions(vocabulary=600)).tokenizer(ModelRef(None), lines)


def compare(shape: shapes.Model, repeats: int) -> Comparison:
    """Measure one model."""
    texts = list(questions(QUESTIONS))
    tokenizer: Any = tokenizer_of(texts)
    model = shape.make()
    script = {
        tuple(tokenizer(sample.prompt)["input_ids"]): [
            *tokenizer(response)["input_ids"],
            tokenizer.eos_token_id,
        ]
        for sample, response in texts
    }
    longest = max(map(len, script.values()))
    settings = ReadingSettings(max_new_tokens=longest)
    notes = cast(Any, pool_view)
    notes.GreedyLogProbs = lambda _: Scripted(script)
    reader = PoolReader(model, Encoding(tokenizer, "the pool"), FORM, settings, notify=sys.exit)
    pool = [sample for sample, _ in texts]
    selector = selectors.selector(
        "explanation-uncertainty", load("selectors", "explanation-uncertainty").Options()
    )
    prompts = sorted(script, key=lambda ids: -len(ids))

    @torch.inference_mode()
    def generate() -> None:
        for start in range(0, len(prompts), settings.batch_size):
            batch = [list(ids) for ids in prompts[start : start + settings.batch_size]]
            chain = LogitsProcessorList([Scripted(script)])
            continuations(model, batch, longest, [tokenizer.eos_token_id], chain)

    def read() -> None:
        for part, scores in scored(reader, selector, pool, 0):
            assert len(scores) == len(part.thoughts or ())
            assert all(len(thought.steps) == STEPS for thought in part.thoughts or ())

    times = measure.in_turns(
        {"read": measure.clocked(read), "generate": measure.clocked(generate)}, repeats
    )
    each = [f"{1e3 * statistics.median(runs) / QUESTIONS:.3g}" for runs in times.values()]
    return Comparison(
        f"scoring a pool by its explanations, {shape.name}",
        "generating them",
        measure.ratios(times["read"], times["generate"]),
        1.2,
        figures=" and ".join(each) + " ms per question",
    )


def peak(name: str, count: int) -> float:
    """Return the memory in MB that scoring a pool takes at most.

    Args:
        name: the selector.
        count: number of questions.
    """
    tokenizer = tokenizer_of(list(questions(64)))
    model = shapes.Model("tiny", 600, 64, layers=1).make()
    form = None if name == "entropy" else FORM
    settings = ReadingSettings(max_new_tokens=SHORT)
    reader = PoolReader(model, Encoding(tokenizer, "the pool"), form, settings)
    selector = selectors.selector(name, load("selectors", name).Options())

    def read(number: int) -> None:
        pool = (sample for sample, _ in questions(number))
        total = sum(len(scores) for _, scores in scored(reader, selector, pool, 0))
        assert total == number

    read(pool_view.PART)
    return measure.peak_of(lambda: read(count))


def memory(name: str) -> Comparison:
    """Compare the memory that a selector needs for pools of two sizes."""
    sizes = SIZES[name]
    small, large = [measure.in_child(peak, name, size) for size in sizes]
    return Comparison(
        f"memory for scoring {sizes[1]:,} questions, {name}",
        f"{sizes[0]:,} questions",
        measure.ratios([max(large, ALLOCATOR)], [max(small, ALLOCATOR)]),
        1.2,
        figures=f"{large:.0f} and {small:.0f} MB more than before",
    )


def report(repeats: int) -> Report:
    """Measure a model, and memory."""
    return Report([compare(shapes.SMALL, repeats), *map(memory, SIZES)])


if __name__ == "__main__":
    measure.main(report, __doc__)
