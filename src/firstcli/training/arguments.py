"""From a recipe's training section to `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.schema import Training
from firstcli.runtime import distributed

OWNED = {
    "output_dir": "--run-dir",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "training.learning_rate",
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.batch_size",
    "auto_find_batch_size": "training.micro_batch_size",
    "use_cpu": "model.options.device",
    "resume_from_checkpoint": "nothing: an interrupted run resumes by itself",
    "save_total_limit": "nothing: the last checkpoint is kept until training ends",
    "save_only_model": "nothing: a checkpoint that cannot be resumed from is of no use",
    "load_best_model_at_end": "nothing: the last checkpoint counts (paper, A.1)",
    "train_sampling_strategy": "nothing: batches hold samples of like length",
    "ignore_data_skip": "nothing: a resumed run must not learn the same samples again",
    "use_liger_kernel": "nothing: the objective has kernels of its own",
    "dataloader_drop_last": "nothing: every sample counts",
    "remove_unused_columns": "nothing: the batches are firstcli's own",
    "label_names": "nothing: the batches are firstcli's own",
    "label_smoothing_factor": "recalibrator: {name: label-smoothing}",
    "do_train": "nothing",
    "do_eval": "evaluate",
    "do_predict": "evaluate",
    "eval_strategy": "evaluate",
    "push_to_hub": "nothing: upload the finished folder yourself",
}
"""Fields of TrainingArguments that firstcli sets, and what to use instead."""


def arguments(
    folder: Path, training: Training, trainer: dict[str, Any], seed: int, device: torch.device
) -> TrainingArguments:
    """Translate a recipe into TrainingArguments; paper's defaults (Appendix A.1).

    Raises:
        UserError: `trainer:` has an unknown field, one that firstcli sets, or a value that
            TrainingArguments refuses.
    """
    trainer = _checked_trainer_fields(trainer)
    share = distributed.count()
    micro = micro_batch(training, share)
    if training.batch_size % (micro * share):
        raise UserError(
            f"training.batch_size: {training.batch_size} is no multiple of micro_batch_size "
            f"{micro} times {share} processes"
        )
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    defaults: dict[str, Any] = {
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-6,
        "weight_decay": 0.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1: a share of the steps
        "save_strategy": "epoch",
        "logging_steps": 0.02,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": has_bfloat16 and training.dtype == "float32",
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,
    }
    owned = {
        "output_dir": str(folder),
        "seed": seed,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * share),
        "remove_unused_columns": False,
        "label_names": [],
        "use_cpu": device.type == "cpu",
    }
    try:
        made = TrainingArguments(**{**defaults, **trainer, **owned})
    except (ValueError, TypeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    if made.n_gpu > 1:
        made._n_gpu = 1  # DataParallel would cut the flattened batch; several GPUs need a launcher
    return made


def micro_batch(training: Training, processes: int, most: int = 32) -> int:
    """Return how many samples a device takes at a time: what the recipe says, or what fits.

    That is the largest part of a device's share of a batch that is at most `most`.
    """
    if training.micro_batch_size:
        return training.micro_batch_size
    share = training.batch_size // processes
    return next((size for size in range(min(share, most), 0, -1) if share % size == 0), 1)


_ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)


def _checked_trainer_fields(trainer: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with values of the types that TrainingArguments declares."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    types = get_type_hints(TrainingArguments)
    checked = {}
    problems = []
    for name, value in trainer.items():
        if name in OWNED:
            problems.append(f"trainer.{name}: firstcli sets it itself; use {OWNED[name]}")
        elif name not in fields:
            problems.append(
                f"trainer.{name}: no field of transformers.TrainingArguments"
                f"{did_you_mean(name, fields)}"
            )
        else:
            try:
                checked[name] = TypeAdapter(types[name], config=_ANY_TYPE).validate_python(value)
            except ValidationError as error:
                reasons = dict.fromkeys(one["msg"].lower() for one in error.errors())
                problems.append(f"trainer.{name}: found {value!r}, but {' or '.join(reasons)}")
    if problems:
        raise UserError(*problems)
    return checked
