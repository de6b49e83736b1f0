"""Build optimizer, schedule and trackers as training does, without training.

`first plan` tries them on a model of two parameters, so that a missing package or argument is
reported before hours are spent; `first plan --probe` measures them on the real model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from firstcli.errors import UserError

EXTRAS = ("tensorboard", "wandb", "mlflow", "trackio", "bitsandbytes")
"""Extras of firstcli that install what `report_to` or `optim` need."""
STEPS = 100  # of the schedule that is tried


def check(args: TrainingArguments) -> None:
    """Try the settings that `TrainingArguments` accepts without looking at them.

    Raises:
        UserError: one message for each setting with which training would fail.
    """
    problems: list[str] = []
    if args.save_strategy == SaveStrategy.BEST:
        problems.append(
            "trainer.save_strategy: 'best' needs an evaluation during training, which firstcli "
            "does not do; use epoch, steps or no"
        )
    checkpointing = args.activation_checkpointing_kwargs
    offloads = isinstance(checkpointing, dict) and checkpointing.get("offload")
    if args.activation_checkpointing and offloads and args.use_cpu:
        problems.append(
            "trainer.activation_checkpointing_kwargs.offload: moves activations from a GPU to the "
            "host's memory, but training runs on the CPU; leave it out"
        )
    _try(problems, "report_to", args.report_to, lambda: _build_trackers(args))
    optimizer = _try(
        problems, "optim", OptimizerNames(args.optim).value, lambda: build_optimizer(args, None)
    )
    if optimizer is not None:
        name = SchedulerType(args.lr_scheduler_type).value
        _try(problems, "lr_scheduler_type", name, lambda: _build_schedule(args, optimizer))
    if problems:
        raise UserError(*problems)


def _try(problems: list[str], key: str, value: object, build: Callable[[], Any]) -> Any:
    """Return what `build` makes; whatever a library raises about a setting is a problem."""
    try:
        return build()
    except Exception as error:  # any library, each with exceptions of its choice
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        extra = _missing_extra(value)
        advice = f"; pip install 'firstcli[{extra}]'" if extra else ""
        problems.append(f"trainer.{key}: {value!r} cannot be used: {reason}{advice}")
        return None


def _missing_extra(value: object) -> str | None:
    """Return the extra of firstcli that a tracker or an optimizer needs and that is missing."""
    for name in value if isinstance(value, list) else [value]:
        extra = "bitsandbytes" if _of_bitsandbytes(str(name)) else str(name)
        if extra in EXTRAS and find_spec(extra) is None:
            return extra
    return None


def _of_bitsandbytes(name: str) -> bool:
    return name.endswith(("_8bit", "_bnb")) or name.startswith(("paged_", "lion_", "rmsprop_bnb"))


def _build_trackers(args: TrainingArguments) -> None:
    for callback in get_reporting_integration_callbacks(args.report_to):
        callback()


def enable_checkpointing(model: PreTrainedModel, options: Mapping[str, Any] | None) -> None:
    """Enable activation checkpointing as the Trainer does.

    Args:
        model: the model, in place.
        options: `trainer.activation_checkpointing_kwargs`; None leaves the model as it is.
    """
    if options is None:
        return
    rest = dict(options)
    every, offload = rest.pop("every_n_layers", 1), rest.pop("offload", False)
    model.activation_checkpointing_enable(rest or None, every_n_layers=every, offload=offload)


def checkpointing_options(args: TrainingArguments) -> dict[str, Any] | None:
    """Return what `enable_checkpointing` takes; None without activation checkpointing."""
    if not args.activation_checkpointing:
        return None
    stated = args.activation_checkpointing_kwargs
    return dict(stated) if isinstance(stated, dict) else {}


def build_optimizer(args: TrainingArguments, trained: nn.Module | None) -> torch.optim.Optimizer:
    """Build the optimizer that the Trainer builds.

    Args:
        args: settings of the training.
        trained: the model, of which weights that require a gradient are trained; None takes a
            model of two parameters, to try the settings.
    """
    model: Any = nn.Linear(2, 2) if trained is None else trained
    args = copy.copy(args)
    if trained is None and args.optim_target_modules is not None:
        args.optim_target_modules = "all-linear"  # the names belong to the real model
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer: torch.optim.Optimizer
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        parameters: Any = [value for value in model.parameters() if value.requires_grad]
        for name in ("params", "model", "optimizer_dict"):
            parameters = options.pop(name, parameters)
        optimizer = kind(parameters, **options)
    else:  # a factory, which needs the model
        optimizer = kind()(model, **options)
    if callable(train := getattr(optimizer, "train", None)):
        train()  # as those without a schedule need it before a step
    return optimizer


def _build_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    options: Any = args.lr_scheduler_kwargs
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(STEPS),
        num_training_steps=STEPS,
        scheduler_specific_kwargs=options,
    )
