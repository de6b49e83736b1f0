"""The memory of a unit's training: how much it needs, and which recipe keys would make it fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel, TrainingArguments

from firstcli import __version__
from firstcli.checkpoints.quantization import LOADED_BYTES
from firstcli.data.encoded import counts_of, lengths_of
from firstcli.models import inference, memory
from firstcli.recipe.lora import Lora
from firstcli.recipe.sections import training_section
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import inputs, role_models
from firstcli.training import memory_estimate, trainer, trial
from firstcli.training.batches import MicroBatches
from firstcli.training.memory_estimate import MemoryEstimate
from firstcli.training.memory_settings import BatchShape, MemorySettings
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

LORA_RANK = 16
"""Rank of the adapters that the advice proposes."""
MOST_GPUS = 64
"""GPUs up to which the advice proposes to share the weights."""


_ESTIMATED: dict[tuple[str, ...], list[Any]] = {}
"""The estimates of this process by what they depend on; several runs may train the same model."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """A unit's training, as far as its memory depends on it."""

    run: Run
    unit: Unit
    settings: MemorySettings
    batch_size: int
    """Samples per step of one process."""
    micro: int

    @property
    def empty(self) -> PreTrainedModel:
        return role_models.empty_model(self.run, self.unit.role)

    def key(self, name: str) -> str:
        """Return the path of a key of the training settings, in the section that states it."""
        return f"{training_section(self.run.recipe.arms, self.unit.arm, name)}.{name}"

    def need(self, settings: MemorySettings, micro: int) -> MemoryEstimate:
        """Estimate the training with other settings; remembered in the run folder."""
        settings = replace(settings, accumulates=micro < self.batch_size)
        shape = self._shape(micro)

        def make() -> list[Any]:
            if (known := _ESTIMATED.get(tuple(content.values()))) is not None:
                return known
            found = memory_estimate.estimate(self.empty, shape, settings)
            sizes = (found.weights, found.gradients, found.optimizer, found.activations)
            _ESTIMATED[tuple(content.values())] = [*sizes, found.complete]
            return _ESTIMATED[tuple(content.values())]

        content = {
            "model": self.empty.config.to_json_string(),
            "batch": repr(shape),
            "settings": repr(settings),
            "firstcli": __version__,
            **{name: version(name) for name in ("transformers", "torch")},
        }
        return MemoryEstimate(*self.run.memory.recall("training memory", content, make))

    def states(self, settings: MemorySettings) -> int:
        """Return the bytes of weights, gradients and optimizer with other settings."""
        return memory_estimate.states(self.empty, settings).states

    def _shape(self, micro: int) -> BatchShape:
        """Return the shape of the largest micro-batch of the first epoch."""
        rows, _ = inputs.with_copies(self.run, self.unit)  # any copy may stand for its sample
        lengths, counts = lengths_of(rows), counts_of(rows)
        seed = self.run.recipe.seed
        parts = [
            part
            for part in MicroBatches(lengths, self.batch_size, micro, 1, 0, seed)
            if part[0] >= 0
        ]
        if not parts:  # the teacher has not yet written the samples
            return BatchShape(0, 0, 0)
        positions = max(int(counts[part].sum()) for part in parts)
        top_k = self.run.recipe.knowledge.width if self.unit.arm else 0
        if self.run.training_settings(self.unit).batching == "packed":
            largest = max(parts, key=lambda part: int(lengths[part].sum()))
            tokens = int(lengths[largest].sum())
            return BatchShape(len(largest), tokens, positions, top_k, packed=True)
        largest = max(parts, key=lambda part: int(lengths[part].max()) * len(part))
        return BatchShape(len(largest), int(lengths[largest].max()), positions, top_k)


def of(run: Run, unit: Unit, args: TrainingArguments) -> TrainingMemory:
    """Collect what the memory of a unit's training depends on."""
    training = run.training_settings(unit)
    device = inference.device_of(role_models.family(run, unit.role))
    options = trial.checkpointing_options(args)
    chosen = run.model_section(unit.role).effective
    quantization, attention = chosen.get("quantization"), chosen.get("attn_implementation")
    load_in = quantization.get("load_in") if isinstance(quantization, dict) else None
    settings = MemorySettings(
        device,
        getattr(torch, training.dtype),
        autocast=bool(args.bf16),
        optim=str(getattr(args.optim, "value", args.optim)),
        optim_args=args.optim_args or "",
        checkpointing=None if options is None else tuple(sorted(options.items())),
        lora=training.lora,
        quantization=load_in if load_in in LOADED_BYTES else None,
        attention=attention if isinstance(attention, str) else None,
        processes=distributed.count(),
        sharded=trainer.is_sharded(args),
        copies=(training.ema is not None)
        + (training.interpolate is not None and device.type == "cpu"),
    )
    micro = args.per_device_train_batch_size
    return TrainingMemory(run, unit, settings, micro * args.gradient_accumulation_steps, micro)


def in_words(need: MemoryEstimate) -> str:
    """Describe an estimate in a phrase."""
    parts = [f"weights {size(need.weights)}", f"gradients {size(need.gradients)}"]
    if need.optimizer or need.complete:
        parts.append(f"optimizer {size(need.optimizer)}")
    if need.activations:
        parts.append(f"activations {size(need.activations)}")
    least = "" if need.complete else "at least "
    return f"{least}{size(need.total)} of memory ({', '.join(parts)})"


def available(device: torch.device) -> int | None:
    """Return the bytes that a training may use: all of a GPU, or what is free on the CPU."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return memory.capacity(device)


def advice(training: TrainingMemory, room: int) -> str:
    """Say which recipe keys would make a training fit into some bytes, and what it needs then."""
    found = list(_alternatives(training, room))
    if not found:
        return "no key of the recipe makes it fit; choose a smaller model or a larger device"
    return f"what would fit: {'; '.join(found)}"


def _alternatives(training: TrainingMemory, room: int) -> Iterator[str]:
    """Yield the changes with which a training fits, those that change no result first."""
    now = training.settings
    checkpointing = replace(now, checkpointing=())
    micro = training.key("micro_batch_size")
    if training.states(now) <= room:
        if (largest := _largest_micro(training, now, room)) is not None:
            yield f"{micro}: {largest[0]} needs {size(largest[1])}"
        if now.checkpointing is None:
            name = "trainer.activation_checkpointing: true"
            total = training.need(checkpointing, training.micro).total
            if total <= room:
                yield f"{name} needs {size(total)}"
            elif not largest and (both := _largest_micro(training, checkpointing, room)):
                yield f"{name} with {micro}: {both[0]} needs {size(both[1])}"
    for name, changed in _other_states(training):
        if training.states(changed) > room:
            continue
        total = training.need(changed, training.micro).total
        if total <= room:
            yield f"{name} needs {size(total)}"
        elif smaller := _largest_micro(training, changed, room):
            yield f"{name} with {micro}: {smaller[0]} needs {size(smaller[1])}"
    yield from _shared(training, room)


def _other_states(training: TrainingMemory) -> Iterator[tuple[str, MemorySettings]]:
    """Yield keys that shrink weights, gradients or the optimizer's state."""
    now, role = training.settings, training.unit.role
    on_gpu = now.device.type == "cuda"
    for optim in (*(["adamw_bnb_8bit"] if on_gpu else []), "adafactor"):
        if now.optim != optim:
            yield f"trainer.optim: {optim}", replace(now, optim=optim)
    if now.lora is None:
        lora = replace(now, lora=Lora(rank=LORA_RANK))
        adapters = f"{training.key('lora')}: {{rank: {LORA_RANK}}}"
        yield adapters, lora
        if on_gpu and now.quantization is None:
            quantised = f"{role}.model.options.quantization: {{load_in: nf4}}"
            yield f"{adapters} with {quantised}", replace(lora, quantization="nf4")
    if now.dtype == torch.float32:
        narrow = replace(now, dtype=torch.bfloat16, autocast=False)
        yield f"{training.key('dtype')}: bfloat16 (loses small updates)", narrow


def _largest_micro(
    training: TrainingMemory, settings: MemorySettings, room: int
) -> tuple[int, int] | None:
    """Return the largest smaller micro-batch that fits and its bytes, or None."""
    sizes = [n for n in range(1, training.micro) if training.batch_size % n == 0]

    def total(micro: int) -> int:
        return training.need(settings, micro).total

    fitting: Sequence[int] = sizes[: bisect_right(sizes, room, key=total)]
    return (fitting[-1], total(fitting[-1])) if fitting else None


def _shared(training: TrainingMemory, room: int) -> Iterator[str]:
    """Yield the smallest number of GPUs that can share the training with FSDP."""
    now = training.settings
    if now.sharded or now.device.type != "cuda":
        return
    processes = max(2, now.processes)
    while processes <= MOST_GPUS:
        changed = replace(now, processes=processes, sharded=True)
        if training.states(changed) <= room:
            total = training.need(changed, 1).total
            if total <= room:
                how = f"FSDP over {processes} GPUs with {training.key('micro_batch_size')}: 1"
                yield f"{how} needs {size(total)} each"
                return
        processes *= 2
