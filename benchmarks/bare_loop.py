"""A recipe's experiment in a bare PyTorch loop, as the reference for the pipeline's overhead.

    python benchmarks/bare_loop.py recipes/quickstart.yaml

It trains on the same token batches (firstcli's encoding and order) and does only what the
arithmetic needs, without artifacts, checkpoints, manifests or checks. It supports the family
`scratch` and the arms of Table 1.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from firstcli import metrics
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference
from firstcli.pipeline.plan import Request, open_run
from firstcli.recipe.sections import Arm, Training, training_of
from firstcli.stages import inputs, role_models
from firstcli.training import objectives, soft_targets
from firstcli.training.batches import MicroBatches, SoftTargetSource, TrainingBatches
from firstcli.training.soft_targets import SoftTargets
from firstcli.workspace.run import Run


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Run the trunk, and the head at the supervised positions: (N, V)."""
    hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    logits: Tensor = model.lm_head(hidden[batch["rows"], batch["columns"]])
    return logits


def fit(
    model: Any,
    rows: Sequence[EncodedSample],
    soft_targets: SoftTargetSource | None,
    settings: Training,
    seed: int,
) -> None:
    """Train in place with AdamW, a cosine schedule, 3 % warm-up, and gradients clipped at 1."""
    torch.manual_seed(seed)
    size = settings.batch_size
    batches = MicroBatches(lengths_of(rows), size, size, processes=1, rank=0, seed=seed)
    loader: DataLoader[Any] = DataLoader(
        TrainingBatches(rows, soft_targets), batch_sampler=batches, collate_fn=default_convert
    )
    steps = math.ceil(len(loader) * settings.epochs)
    warm = math.ceil(0.03 * steps)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            step / max(warm, 1)
            if step < warm
            else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
        ),
    )
    model.train()
    done = 0
    while done < steps:
        batches.set_epoch(done // len(loader))
        for batch in loader:
            logits = logits_of(model, batch)
            if soft_targets is None:
                loss = objectives.labels(logits, batch["targets"]).mean()
            else:
                student = objectives.student_view(logits, batch["token_ids"])
                loss = objectives.topk_tail(student, batch["probabilities"], batch["tail"]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    model.eval()


@torch.inference_mode()
def extract(model: Any, rows: Sequence[EncodedSample], top_k: int) -> soft_targets.Positions:
    """Return the top k of every supervised position."""
    known: dict[int, TopK] = {}
    collated = TrainingBatches(rows, None)
    for chosen in inference.batches([len(row.input_ids) for row in rows], 4096):
        log_probs = torch.log_softmax(logits_of(model, collated[chosen]), -1)
        values, ids = log_probs.topk(top_k)
        tail = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
        ends = np.cumsum([len(rows[i].targets) for i in chosen])
        for i, end in zip(chosen, ends, strict=True):
            at = slice(end - len(rows[i].targets), end)
            known[i] = TopK(ids[at].int().numpy(), values[at].numpy(), tail[at].numpy())
    return soft_targets.Positions.of(rows, [known[i] for i in range(len(rows))])


def soft_target_source(
    arm: Arm,
    rows: Sequence[EncodedSample],
    train: soft_targets.Positions,
    validation: soft_targets.Positions,
) -> SoftTargetSource:
    """Fit the recalibrator on the validation part and apply it to the training part."""
    assert arm.recalibrator
    recalibrator = arm.recalibrator.build()
    if recalibrator.needs_fit:
        answers = validation.where(validation.is_answer)
        recalibrator.fit(soft_targets.rows_of(arm, answers, "", {}), answers.is_label)
    mode = soft_targets.positions_mode(arm, rows)
    result = soft_targets.recalibrated(arm, mode, recalibrator, train)
    soft = soft_targets.soft_targets_of(arm, train, result)
    counts = [len(row.targets) for row in rows]
    ends = np.cumsum(counts)
    places = {
        row.id: np.arange(end - n, end) for row, end, n in zip(rows, ends, counts, strict=True)
    }

    def of_batch(batch: Sequence[EncodedSample]) -> SoftTargets:
        at = np.concatenate([places[row.id] for row in batch])
        return SoftTargets(
            soft.token_ids[at], soft.probabilities[at], soft.tail[at], soft.teacher_mass[at]
        )

    return of_batch


@torch.inference_mode()
def evaluate(run: Run, model: Any) -> dict[str, dict[str, float]]:
    """Return accuracy and ECE on every evaluation."""
    result = {}
    for evaluation in run.recipe.evaluate:
        questions = inputs.questions(run, "student", evaluation.name)
        confidence, correct = np.zeros(len(questions)), np.zeros(len(questions), bool)
        for chosen in inference.batches([len(question.input_ids) for question in questions], 8192):
            padded = inference.pad([questions[i].input_ids for i in chosen])
            batch = {
                "input_ids": padded.input_ids,
                "attention_mask": padded.attention_mask,
                "rows": torch.arange(len(chosen)),
                "columns": torch.tensor([len(questions[i].input_ids) - 1 for i in chosen]),
            }
            for i, row in zip(chosen, logits_of(model, batch).double(), strict=True):
                p = torch.softmax(row[list(questions[i].candidate_ids)], -1)
                confidence[i] = float(p.max())
                correct[i] = int(p.argmax()) == questions[i].answer
        result[evaluation.name] = {
            "accuracy": float(correct.mean()),
            "ece": metrics.ece(confidence, correct),
        }
    return result


def main() -> None:
    """Run the experiment and print results and seconds as JSON."""
    began = time.perf_counter()
    run = open_run(Request(Path(sys.argv[1]), tuple(sys.argv[2:]), quiet=True))
    recipe = run.recipe
    assert recipe.teacher and recipe.teacher.finetune
    train = inputs.training_rows(run, "student", "train")
    validation = inputs.training_rows(run, "student", "validation")
    teacher = role_models.starting_model(run, "teacher", "float32", recipe.seed)
    fit(teacher, train, None, recipe.teacher.finetune, recipe.seed)
    known = extract(teacher, train, recipe.knowledge.top_k)
    held_out = extract(teacher, validation, recipe.knowledge.top_k)
    results = {"teacher": evaluate(run, teacher)}
    for name, arm in recipe.arms.items():
        labels = arm.learn == "labels"
        source = None if labels else soft_target_source(arm, train, known, held_out)
        student = role_models.starting_model(run, "student", "float32", recipe.seed)
        fit(student, train, source, training_of(recipe.student, arm), recipe.seed)
        results[name] = evaluate(run, student)
    print(json.dumps({"seconds": time.perf_counter() - began, "results": results}, indent=1))


if __name__ == "__main__":
    main()
