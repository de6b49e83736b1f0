"""Evaluation of multiple-choice questions against a bare forward pass of their prompts.

    python benchmarks/questions.py [--repeats 5]

The bare forward pass gets the same batches, already padded, and computes the logits of each
prompt's last token only.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import measure
import shapes
from firstcli.data.encoding import EncodedQuestion
from firstcli.models import answers, inference, readout
from measure import Comparison, Report

SAMPLES = 256
CANDIDATES = 5


@torch.inference_mode()
def evaluate_all(reader: readout.Reader, questions: Sequence[EncodedQuestion]) -> None:
    """Process the questions as `stages.evaluate` does."""
    lengths = [len(question.input_ids) for question in questions]
    for batch in inference.batches(lengths, answers.EVALUATION_TOKENS):
        answers.candidate_log_probs(reader, [questions[i] for i in batch])


@torch.inference_mode()
def forward(model: Any, batches: Sequence[tuple[inference.Padded, Tensor]]) -> None:
    """Run the trunk, and the output layer at the last tokens."""
    for padded, last in batches:
        hidden = model.model(padded.input_ids, attention_mask=padded.attention_mask)[0]
        model.lm_head(hidden[torch.arange(len(last)), last])


def compare(shape: shapes.Model, repeats: int) -> Comparison:
    """Measure one model."""
    model = shape.make()
    prompts = [
        row.input_ids[: row.start] for row in shapes.QUESTION.rows(SAMPLES, shape.vocabulary)
    ]
    candidates = tuple(range(0, CANDIDATES * 100, 100))
    single = tuple((token,) for token in candidates)
    questions = [
        EncodedQuestion(str(i), ids, candidates, len(ids), single, 0, None)
        for i, ids in enumerate(prompts)
    ]
    batches = []
    for batch in inference.batches([len(ids) for ids in prompts], answers.EVALUATION_TOKENS):
        chosen = [prompts[i] for i in batch]
        batches.append((inference.pad(chosen), torch.tensor([len(ids) - 1 for ids in chosen])))
    reader = readout.Reader(model)
    times = measure.in_turns(
        {
            "first": measure.clocked(lambda: evaluate_all(reader, questions)),
            "bare": measure.clocked(lambda: forward(model, batches)),
        },
        repeats,
    )
    each = [f"{1e3 * statistics.median(runs) / SAMPLES:.3g}" for runs in times.values()]
    return Comparison(
        f"eval of {CANDIDATES}-way questions, {shape.name}",
        "bare forward pass of the prompts",
        measure.ratios(times["first"], times["bare"]),
        1.1,
        figures=" and ".join(each) + " ms per question",
    )


def report(repeats: int) -> Report:
    """Measure both models."""
    return Report([compare(shape, repeats) for shape in shapes.MODELS])


if __name__ == "__main__":
    measure.main(report, __doc__)
