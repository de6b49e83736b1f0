"""The same experiment as a recipe's, in a bare PyTorch loop: what a pipeline is measured against.

    python benchmarks/bare_loop.py recipes/quickstart.yaml

It trains on the same token batches (firstcli's encoding, firstcli's order) and does only what
the arithmetic needs: no artifacts, no checkpoints, no manifests, no checks. It takes the family
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
from torch.utils.data import DataLoader

from firstcli import metrics
from firstcli.data.encoded import lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference
from firstcli.pipeline.execute import Request, open_run
from firstcli.recipe.schema import Arm, Training, recalibrator_of, training_of
from firstcli.stages import inputs
from firstcli.training import objectives, sampling, soft_targets
from firstcli.training.collate import Collate, Rows, Teacher
from firstcli.training.soft_targets import SoftTargets
from firstcli.workspace.run import Run


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Trunk, then head at the wanted positions: (N, V)."""
    hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    logits: Tensor = model.lm_head(hidden[batch["rows"], batch["columns"]])
    return logits


def fit(
    model: Any,
    rows: Sequence[EncodedSample],
    probabilities: Teacher | None,
    settings: Training,
    seed: int,
) -> None:
    """Train in place: AdamW, cosine with 3 % warm-up, gradients clipped at 1 like the Trainer."""
    torch.manual_seed(seed)
    size = settings.batch_size
    batches = sampling.MicroBatches(lengths_of(rows), size, size, processes=1, rank=0, seed=seed)
    loader = DataLoader(
        Rows(len(rows)), batch_sampler=batches, collate_fn=Collate(rows, probabilities)
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
            if probabilities is None:
                loss = objectives.labels(logits, batch["targets"]).mean()
            else:
                loss = objectives.topk_tail(
                    logits, batch["token_ids"], batch["probabilities"], batch["tail"]
                ).mean()
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
def know(model: Any, rows: Sequence[EncodedSample], top_k: int) -> soft_targets.Positions:
    """Top k of every supervised position."""
    found: dict[int, TopK] = {}
    collate = Collate(rows, None)
    for chosen in inference.batches([len(row.input_ids) for row in rows], 4096):
        log_probs = torch.log_softmax(logits_of(model, collate(chosen)), -1)
        values, ids = log_probs.topk(top_k)
        tail = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
        ends = np.cumsum([len(rows[i].targets) for i in chosen])
        for i, end in zip(chosen, ends, strict=True):
            at = slice(end - len(rows[i].targets), end)
            found[i] = TopK(ids[at].int().numpy(), values[at].numpy(), tail[at].numpy())
    ordered = [found[i] for i in range(len(rows))]
    return soft_targets.Positions(
        np.exp(np.concatenate([one.log_probs for one in ordered]).astype(np.float64)),
        np.concatenate([one.log_tail for one in ordered]).astype(np.float64),
        np.concatenate([one.token_ids for one in ordered]),
        np.concatenate([row.targets for row in rows]),
        np.concatenate(
            [
                np.arange(row.start, len(row.input_ids)) == (row.answer_position or -1)
                for row in rows
            ]
        ),
    )


def lessons(
    arm: Arm,
    rows: Sequence[EncodedSample],
    train: soft_targets.Positions,
    validation: soft_targets.Positions,
) -> Teacher:
    """Fit the recalibrator on the validation part, apply it to the training part."""
    recalibrator = recalibrator_of(arm)
    if recalibrator.needs_fit:
        assert arm.mass
        chosen = validation.where(validation.decisive)
        mass = soft_targets.taught_mass(arm, chosen)
        recalibrator.fit(chosen.topk, chosen.is_label, mass, arm.mass)
    target = soft_targets.targets(arm, recalibrator, train)
    mass = soft_targets.taught_mass(arm, train)
    tail = np.exp(train.log_tail) if arm.mass == "teacher" else np.zeros_like(mass)
    p = (mass[:, None] * target).astype(np.float32)
    small, whole = tail.astype(np.float32), train.mass.astype(np.float32)
    counts = [len(row.targets) for row in rows]
    ends = np.cumsum(counts)
    places = {
        row.id: np.arange(end - n, end) for row, end, n in zip(rows, ends, counts, strict=True)
    }

    def probabilities(batch: Sequence[EncodedSample], /) -> SoftTargets:
        at = np.concatenate([places[row.id] for row in batch])
        return SoftTargets(train.token_ids[at], p[at], small[at], whole[at])

    return probabilities


@torch.inference_mode()
def judge(run: Run, model: Any) -> dict[str, dict[str, float]]:
    """Accuracy and ECE on every evaluation."""
    result = {}
    for evaluation in run.recipe.evaluate:
        asked = inputs.questions(run, "student", evaluation.name)
        confidence, correct = np.zeros(len(asked)), np.zeros(len(asked), bool)
        for chosen in inference.batches([len(one.input_ids) for one in asked], 8192):
            padded = inference.pad([asked[i].input_ids for i in chosen])
            batch = {
                "input_ids": padded.input_ids,
                "attention_mask": padded.attention_mask,
                "rows": torch.arange(len(chosen)),
                "columns": torch.tensor([len(asked[i].input_ids) - 1 for i in chosen]),
            }
            for i, row in zip(chosen, logits_of(model, batch).double(), strict=True):
                p = torch.softmax(row[list(asked[i].candidate_ids)], -1)
                confidence[i] = float(p.max())
                correct[i] = int(p.argmax()) == asked[i].answer
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
    teacher = inputs.starting_model(run, "teacher", "float32", recipe.seed)
    fit(teacher, train, None, recipe.teacher.finetune, recipe.seed)
    known = know(teacher, train, recipe.knowledge.top_k)
    held_out = know(teacher, validation, recipe.knowledge.top_k)
    results = {"teacher": judge(run, teacher)}
    for name, arm in recipe.arms.items():
        probabilities = None if arm.learn == "labels" else lessons(arm, train, known, held_out)
        student = inputs.starting_model(run, "student", "float32", recipe.seed)
        fit(student, train, probabilities, training_of(recipe.student, arm), recipe.seed)
        results[name] = judge(run, student)
    print(json.dumps({"seconds": time.perf_counter() - began, "results": results}, indent=1))


if __name__ == "__main__":
    main()
