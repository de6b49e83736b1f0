"""A training of a few steps on invented samples, with any field of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, TrainingArguments

from firstcli.data.encoding import EncodedSample
from firstcli.recipe.sections import Training
from firstcli.runtime.console import Console
from firstcli.training import arguments, trainer
from firstcli.training.soft_targets import SoftTargets

V, K = 40, 5
CPU = torch.device("cpu")


def drawn(count: int = 24) -> list[EncodedSample]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 12, count)
    return [
        EncodedSample(f"s{i}", draw.integers(0, V, int(length), dtype=np.int32), 2, None)
        for i, length in enumerate(lengths)
    ]


def soft_targets(samples: Any) -> SoftTargets:
    """Targets that are a function of the token to be predicted, so that they can be learned."""
    targets = np.concatenate([sample.targets for sample in samples])
    ids = ((targets[:, None] + np.arange(K)) % V).astype(np.int32)
    shares = np.tile(np.array([0.5, 0.2, 0.1, 0.05, 0.05], np.float32), (len(ids), 1))
    mass = np.full(len(ids), 0.9, np.float32)
    return SoftTargets(ids, shares, 1 - mass, mass)


def training_arguments(folder: Path = Path("unused"), **fields: Any) -> TrainingArguments:
    training = Training(epochs=3, batch_size=8, micro_batch_size=4, learning_rate=5e-3)
    quick = {"logging_steps": 1, "save_strategy": "no"}
    return arguments.arguments(folder, training, quick | fields, 0, CPU)


def fit(
    model: LlamaForCausalLM, folder: Path, console: Console | None = None, **fields: Any
) -> trainer.Outcome:
    args = training_arguments(folder, **fields)
    console = console or Console(quiet=True)
    return trainer.train(model, drawn(), soft_targets, "topk-tail", args, console, "training")
