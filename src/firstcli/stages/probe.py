"""`first plan --probe`: time and memory of each stage, estimated from a few real batches.

The batches of every stage are known beforehand, so only their cost is measured: some of them, from
the shortest to the longest, are run with the real model, and the others' time is read off between
these. Each of N processes is taken to have a device like the one that was probed.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firstcli.errors import UserError
from firstcli.knowledge import store
from firstcli.models import inference, readout
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.recipe.schema import Training, training_of
from firstcli.stages import evaluate, extract, inputs
from firstcli.training import arguments, collate, sampling, trainer
from firstcli.workspace.run import Role, Run
from firstcli.workspace.units import Unit

PROBED = 6  # batches of different size
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a unit will take."""

    seconds: float
    memory: int = 0
    """Bytes at the peak, of each process: of the GPU's memory, or, where there is none, of all that
    the process has held until then."""
    sharded: int = 0
    """The same where weights, gradients and moments are shared out among the processes."""


class Probe:
    """Estimates for one recipe; what two units have in common is measured once."""

    def __init__(self, run: Run, processes: int) -> None:
        self._run = run
        self._processes = processes
        self._measured: dict[Any, Estimate] = {}

    def estimate(self, unit: Unit) -> Estimate | None:
        """Measure what a unit will take; None for stages that take seconds.

        Its seconds are NaN where it does not fit the device.
        """
        try:
            return self._measured_or_new(unit)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        return Estimate(math.nan)

    def _measured_or_new(self, unit: Unit) -> Estimate | None:
        run = self._run
        match unit.stage:
            case "finetune":
                assert run.recipe.teacher and run.recipe.teacher.finetune
                return self._training("teacher", run.recipe.teacher.finetune, unit.fold)
            case "distill":
                return self._training(
                    "student", training_of(run.recipe.student, run.recipe.arms[unit.arm])
                )
            case "extract":
                return self._extraction(unit)
            case "eval" if unit.evaluation and unit.model and not unit.model.posthoc:
                return self._evaluation(unit)
        return None

    def _training(self, role: Role, settings: Training, fold: int | None = None) -> Estimate:
        key = (role, settings.model_dump_json(), str(fold))
        if key not in self._measured:
            self._measured[key] = self._measure_training(role, settings, fold)
        return self._measured[key]

    def _measure_training(self, role: Role, settings: Training, fold: int | None) -> Estimate:
        run = self._run
        if fold is None:
            rows = inputs.training_rows(run, role, "train")
        else:
            rows = inputs.rows_of_fold(run, fold, seen=True)
        device = inference.device_of(inputs.family(run, role))
        micro = arguments.micro_batch(settings, self._processes)
        if settings.batch_size % (micro * self._processes):
            raise UserError(
                f"--processes {self._processes}: they cannot share the {role}'s batch_size "
                f"{settings.batch_size} in parts of {micro}; choose a divisor"
            )
        lengths = np.array([len(row.input_ids) for row in rows])
        share = sampling.MicroBatches(
            lengths, settings.batch_size, micro, self._processes, 0, run.recipe.seed
        )
        parts = [part for part in share if part[0] >= 0]
        model = inputs.starting_model(run, role, settings.dtype, run.recipe.seed)
        model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
        model.train()
        trainer.install_objective(model, "labels")
        optimizer = torch.optim.AdamW(model.parameters(), 1e-9)
        make_batch = collate.Collate(rows, None)
        autocast = device.type == "cuda" and settings.dtype == "float32"

        def forward_and_backward(part: Sequence[int]) -> None:
            batch = {name: value.to(device) for name, value in make_batch(part).items()}
            del batch["samples"]
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = model(**batch)["loss"]
            loss.backward()

        _reset_peak(device)
        forward_and_backward(parts[0])  # the longest; then the moments are there, too
        update = _seconds(optimizer.step, device)
        tokens = np.array([lengths[part].max() * len(part) for part in parts])
        seconds = _interpolated(
            tokens, lambda index: forward_and_backward(parts[index]), device
        ).sum()
        steps = -(-len(rows) // settings.batch_size)
        memory = _peak(device)
        # Four numbers a weight: itself, its gradient and Adam's two moments.
        states = 4 * sum(value.numel() * value.element_size() for value in model.parameters())
        del model.forward  # or the model would stay while others are measured
        return Estimate(
            float(settings.epochs * (seconds + steps * update)),
            memory,
            int(memory - states * (1 - 1 / self._processes)),
        )

    def _extraction(self, unit: Unit) -> Estimate:
        run = self._run
        top_k, limit = run.recipe.knowledge.top_k, inputs.shared_vocabulary(run)
        model, device = self._for_inference("teacher")
        reader = readout.Reader(model, run.console.say)
        owner, asked = [], []
        for index, shard in enumerate(extract.shards_of(run, unit)):
            lengths = [len(row.input_ids) for row in shard.rows]
            for batch in inference.batches(lengths, extract.BATCH_TOKENS):
                owner.append(index % self._processes)
                asked.append([shard.rows[i] for i in batch])
        _reset_peak(device)
        with torch.inference_mode():
            seconds = _interpolated(
                np.array([sum(len(row.input_ids) for row in some) for some in asked]),
                lambda index: extract.top_k_of(reader, asked[index], top_k, limit),
                device,
            )
        slowest = np.bincount(owner, weights=seconds).max()
        return Estimate(float(slowest), _peak(device), _peak(device))

    def _evaluation(self, unit: Unit) -> Estimate:
        key = (unit.role, unit.evaluation)
        if key in self._measured:
            return self._measured[key]
        asked = inputs.questions(self._run, unit.role, unit.evaluation)
        model, device = self._for_inference(unit.role)
        reader = readout.Reader(model, self._run.console.say)
        found = inference.batches([len(one.input_ids) for one in asked], evaluate.BATCH_TOKENS)
        parts = [[asked[i] for i in batch] for batch in found]
        _reset_peak(device)
        with torch.inference_mode():
            seconds = _interpolated(
                np.array([sum(len(one.input_ids) for one in part) for part in parts]),
                lambda index: evaluate.candidate_log_probs(reader, parts[index]),
                device,
            )
        slowest = max(seconds[rank :: self._processes].sum() for rank in range(self._processes))
        self._measured[key] = Estimate(float(slowest), _peak(device), _peak(device))
        return self._measured[key]

    def _for_inference(self, role: Role) -> tuple[Any, torch.device]:
        """Load the model with which a role starts: as large and as fast as the trained one."""
        chosen = inputs.family(self._run, role)
        device = inference.device_of(chosen)
        dtype = inference.inference_dtype(chosen, device)
        model = inputs.starting_model(self._run, role, dtype, self._run.recipe.seed)
        model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
        return model.eval(), device


def _interpolated(
    sizes: npt.NDArray[np.int64], work: Callable[[int], object], device: torch.device
) -> npt.NDArray[np.float64]:
    """Return every batch's seconds from those of some, between the smallest and the largest."""
    order = np.argsort(sizes, kind="stable")
    probed = order[np.unique(np.linspace(0, len(order) - 1, PROBED).round().astype(int))]
    for index in probed[-1:]:
        work(int(index))  # warm: the first run of all allocates
    taken = [
        np.mean([_seconds(lambda i=int(index): work(i), device) for _ in range(REPEATS)])  # type: ignore[misc]
        for index in probed
    ]
    found: npt.NDArray[np.float64] = np.interp(sizes, sizes[probed], taken)
    return found


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def disk(run: Run, unit: Unit) -> int:
    """Return the bytes that a unit's result takes on disk."""
    if unit.stage == "extract":
        count = inputs.positions(inputs.training_rows(run, "teacher", unit.part))
        kept = run.recipe.knowledge
        return int(count * store.bytes_per_position(kept.top_k, kept.precision))
    if unit.stage in ("finetune", "distill"):
        return 4 * inputs.weights(run, "teacher" if unit.stage == "finetune" else "student")
    return 0
