"""From a recipe's training section to `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import torch
from accelerate import PartialState
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from firstcli.errors import UserError, did_you_mean
from firstcli.models import inference
from firstcli.recipe.sections import Training
from firstcli.runtime import distributed
from firstcli.training.trainer_fields import OWNED

MAX_MICRO_BATCH = 32  # samples, unless the recipe says otherwise


def arguments(
    folder: Path, training: Training, trainer: dict[str, Any], seed: int, device: torch.device
) -> TrainingArguments:
    """Translate a recipe into TrainingArguments; the defaults are the paper's (Appendix A.1).

    Args:
        folder: where checkpoints go.
        training: the recipe's training section.
        trainer: the recipe's `trainer:` section.
        seed: seed of weights and sample order.
        device: where the model trains.

    Raises:
        UserError: `trainer:` has an unknown field, a field that firstcli sets, or a value that
            TrainingArguments rejects.
    """
    trainer = _checked_trainer_fields(trainer)
    processes = distributed.count()
    micro = micro_batch(training, processes)
    if training.batch_size % (micro * processes):
        raise UserError(
            f"training.batch_size: {training.batch_size} is not a multiple of micro_batch_size "
            f"{micro} times {processes} processes"
        )
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
        "bf16": inference.has_bfloat16(device) and training.dtype == "float32",
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,
    }
    owned = {
        "output_dir": str(folder),
        "seed": seed,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * processes),
        "remove_unused_columns": False,
        "label_names": [],
        "use_cpu": device.type == "cpu",
    }
    given = trainer.get("fsdp_config") or {}
    if trainer.get("fsdp") and isinstance(given, dict):
        plain = {name.removeprefix("fsdp_"): value for name, value in given.items()}
        # One process loads the weights, instead of all of them; see `sharding`.
        loading = {"cpu_ram_efficient_loading": str(plain.get("version", 2)) == "2"}
        trainer = {**trainer, "fsdp_config": loading | plain}
    try:
        args = TrainingArguments(**{**defaults, **trainer, **owned})
    except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    if args.n_gpu > 1:
        args._n_gpu = 1  # DataParallel would cut the flattened batch; several GPUs need a launcher
    if processes == 1 and device.type == "cuda":
        _train_on(args, device)
    return args


def _train_on(args: TrainingArguments, device: torch.device) -> None:
    """Use the recipe's GPU: the Trainer gives a single process `cuda:0` in any case."""
    inference.make_current(device)
    vars(args)["_setup_devices"] = device  # the cached property behind `args.device`
    PartialState().device = device  # where Accelerate puts models and batches


def micro_batch(training: Training, processes: int) -> int:
    """Return how many samples a device processes at a time.

    By default this is the largest divisor of a device's share of a batch up to `MAX_MICRO_BATCH`.
    """
    if training.micro_batch_size:
        return training.micro_batch_size
    share = training.batch_size // processes
    sizes = range(min(share, MAX_MICRO_BATCH), 0, -1)
    return next((size for size in sizes if share % size == 0), 1)


def _checked_trainer_fields(trainer: dict[str, Any]) -> dict[str, Any]:
    """Convert each value to the type that TrainingArguments declares for its field."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    types = get_type_hints(TrainingArguments)
    any_type = ConfigDict(arbitrary_types_allowed=True)
    checked = {}
    problems = []
    for name, value in trainer.items():
        if name in OWNED:
            problems.append(f"trainer.{name}: firstcli sets it itself; {OWNED[name]}")
        elif name not in names:
            problems.append(
                f"trainer.{name}: not a field of transformers.TrainingArguments"
                f"{did_you_mean(name, names)}"
            )
        else:
            try:
                checked[name] = TypeAdapter(types[name], config=any_type).validate_python(value)
            except ValidationError as error:
                reasons = dict.fromkeys(problem["msg"].lower() for problem in error.errors())
                problems.append(f"trainer.{name}: found {value!r}, but {' or '.join(reasons)}")
    if problems:
        raise UserError(*problems)
    return checked
