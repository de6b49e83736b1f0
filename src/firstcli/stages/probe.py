"""`first plan --probe`: time and memory of each stage, estimated from a few real batches.

The batches of every stage are known in advance, so only their cost has to be measured: a few, from
the shortest to the longest, are run with the real model, and the time of the others is
interpolated. Each of N processes is assumed to have a device like the one that is probed.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from firstcli.api import FloatArray
from firstcli.checkpoints import placement
from firstcli.data.encoded import IntArray, lengths_of
from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.errors import UserError
from firstcli.models import answers, inference, readout
from firstcli.models.batching import Item, free_memory, is_out_of_memory
from firstcli.stages import inputs, role_models, scoring, shared_tokens, whole_candidates
from firstcli.training import arguments, lora, objective_forward, trial
from firstcli.training.batches import MicroBatches, TrainingBatches
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

PROBED_BATCHES = 6
"""Batches of different sizes that are measured."""
REPEATS = 2


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The estimated cost of a unit."""

    seconds: float
    """NaN if the unit does not fit on the device."""
    memory: int = 0
    """Peak bytes of each process: of GPU memory, or without a GPU of the whole process so far."""
    sharded: int | None = None
    """The same if processes share weights, gradients and moments; None outside training."""


class Probe:
    """Cost estimates for one recipe; what two units have in common is measured once."""

    def __init__(self, run: Run, processes: int) -> None:
        self.run = run
        self._processes = processes
        self._measured: dict[tuple[str, ...], CostEstimate] = {}

    def estimate(self, measure: Callable[[], CostEstimate | None]) -> CostEstimate | None:
        """Measure a unit's cost; its seconds are NaN if it does not fit into memory."""
        try:
            return measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        return CostEstimate(math.nan)

    def training(self, unit: Unit) -> CostEstimate | None:
        """Estimate the training of a model; None if the teacher has yet to write its samples."""
        if not len(inputs.rows_of(self.run, unit)):
            return None
        settings = self.run.training_settings(unit)
        samples = str(len(inputs.rows_of(self.run, unit)))  # not all arms learn unlabelled ones
        key = ("training", unit.role, settings.model_dump_json(), str(unit.fold), samples)
        if key not in self._measured:
            device = inference.device_of(role_models.family(self.run, unit.role))
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # dropout draws numbers
                self._measured[key] = self._measure_training(unit, device)
        return self._measured[key]

    def _measure_training(self, unit: Unit, device: torch.device) -> CostEstimate:
        run, role, settings = self.run, unit.role, self.run.training_settings(unit)
        rows = inputs.rows_of(run, unit)
        micro = arguments.micro_batch(settings, self._processes)
        if settings.batch_size % (micro * self._processes):
            raise UserError(
                f"--processes {self._processes}: they cannot share the {role}'s batch_size "
                f"{settings.batch_size} in parts of {micro}; choose a divisor"
            )
        lengths = lengths_of(rows)
        share = MicroBatches(
            lengths, settings.batch_size, micro, self._processes, 0, run.recipe.seed
        )
        parts = [part for part in share if part[0] >= 0]
        seed = run.seed_of(unit)
        args = arguments.arguments(run.folder, settings, run.recipe.trainer, seed, device)
        inference.make_current(device)  # before weights are loaded, as in training
        model = role_models.starting_model(run, role, settings.dtype, seed)
        if settings.lora:
            lora.with_adapters(model, settings.lora, seed, args)  # in place
        placement.move(model, device)
        model.train()
        trial.enable_checkpointing(model, trial.checkpointing_options(args))
        objective_forward.install_objective(model, "labels")
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = trial.build_optimizer(args, model)
        batches = TrainingBatches(rows, None, settings.batching)

        def forward_and_backward(index: int) -> None:
            batch = {name: value.to(device) for name, value in batches[parts[index]].items()}
            del batch["samples"]
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                loss = model(**batch)["loss"]
            loss.backward()

        def step() -> None:
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
            optimizer.step()

        _reset_peak(device)
        forward_and_backward(0)  # the longest batch
        update = _seconds(step, device)  # which creates the optimizer's state
        packed = settings.batching == "packed"
        tokens = np.array(
            [lengths[part].sum() if packed else lengths[part].max() * len(part) for part in parts]
        )
        seconds = _interpolated(tokens, forward_and_backward, device).sum()
        steps = -(-len(rows) // settings.batch_size)
        memory = _peak(device)
        states = sum(value.nbytes for value in (*model.parameters(), *_gradients(trained)))
        states += sum(value.nbytes for value in _tensors(optimizer))
        del model.forward  # otherwise the model would stay in memory
        return CostEstimate(
            float(settings.epochs * (seconds + steps * update)),
            memory,
            int(memory - states * (1 - 1 / self._processes)),
        )

    def extraction(self, unit: Unit) -> CostEstimate:
        """Estimate the extraction of a part."""
        section, limit = self.run.recipe.knowledge, shared_tokens.shared_vocabulary(self.run)
        if section.over_candidates:
            return self._candidates(unit, inputs.candidate_questions(self.run, unit.part))
        ranks: list[int] = []
        batches: list[Sequence[EncodedSample]] = []
        for index, shard in enumerate(scoring.shards_of(self.run, unit)):
            for batch in _batches(shard.rows, scoring.EXTRACTION_TOKENS):
                ranks.append(index % self._processes)
                batches.append(batch)
        if section.draws is not None:
            settings = scoring.drawing_of(self.run)
            score = partial(
                scoring.drawn_of, settings=settings, limit=limit, batching=section.batching
            )
        else:
            score = partial(
                scoring.top_k_of, top_k=section.top_k, limit=limit, batching=section.batching
            )
        return self._scoring(unit, batches, ranks, score)

    def evaluation(self, unit: Unit) -> CostEstimate:
        """Estimate the evaluation of a model."""
        key = ("evaluation", unit.role, unit.evaluation)
        if key not in self._measured:
            questions = inputs.questions(self.run, unit.role, unit.evaluation)
            sequences = whole_candidates.sequences(self.run, unit.role, unit.evaluation)
            self._measured[key] = self._answers(unit, questions, sequences)
        return self._measured[key]

    def _candidates(self, unit: Unit, questions: Sequence[EncodedQuestion]) -> CostEstimate:
        sequences = whole_candidates.CandidateSequences(questions)
        return self._answers(unit, questions, sequences)

    def _answers(
        self,
        unit: Unit,
        questions: Sequence[EncodedQuestion],
        sequences: Sequence[EncodedSample] | None,
    ) -> CostEstimate:
        """Estimate the cost of the candidates' first tokens, and of their sequences."""
        cost = self._answering(unit, questions, answers.candidate_log_probs)
        if not sequences:
            return cost
        whole = self._answering(unit, sequences, whole_candidates.response_log_probs)
        return CostEstimate(cost.seconds + whole.seconds, max(cost.memory, whole.memory))

    def _answering(
        self,
        unit: Unit,
        items: Sequence[Item],
        score: Callable[[readout.Reader, Sequence[Item]], object],
    ) -> CostEstimate:
        batches = _batches(items, answers.EVALUATION_TOKENS)
        ranks = [index % self._processes for index in range(len(batches))]
        return self._scoring(unit, batches, ranks, score)

    def _scoring(
        self,
        unit: Unit,
        batches: Sequence[Sequence[Item]],
        ranks: Sequence[int],
        score: Callable[[readout.Reader, Sequence[Item]], object],
    ) -> CostEstimate:
        """Measure batches without gradients, each of which the process with its rank scores."""
        # The model before training is as large and as fast as the trained one.
        model = role_models.for_inference(self.run, unit.role, None)
        reader = readout.Reader(model, self.run.console.say)
        device = placement.input_device(model)
        sizes = np.array([sum(len(item.input_ids) for item in batch) for batch in batches])
        _reset_peak(device)
        with torch.inference_mode():
            seconds = _interpolated(sizes, lambda index: score(reader, batches[index]), device)
        slowest = np.bincount(ranks, weights=seconds).max()
        return CostEstimate(float(slowest), _peak(device))


def _gradients(trained: Sequence[Tensor]) -> list[Tensor]:
    return [value.grad for value in trained if value.grad is not None]


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the state that an optimizer keeps for the weights."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _batches(items: Sequence[Item], tokens: int) -> list[Sequence[Item]]:
    lengths = [len(item.input_ids) for item in items]
    return [[items[i] for i in batch] for batch in inference.batches(lengths, tokens)]


def _interpolated(
    sizes: IntArray, work: Callable[[int], object], device: torch.device
) -> FloatArray:
    """Measure some batches, from the smallest to the largest; interpolate all batches' seconds.

    Args:
        sizes: tokens of each batch, (N,).
        work: runs the batch with an index.
        device: where it runs.
    """
    order = np.argsort(sizes, kind="stable")
    probed = order[np.unique(np.linspace(0, len(order) - 1, PROBED_BATCHES).round().astype(int))]
    work(int(probed[-1]))  # warm up: the first run allocates memory
    seconds = [
        np.mean([_seconds(lambda i=int(index): work(i), device) for _ in range(REPEATS)])  # type: ignore[misc]
        for index in probed
    ]
    interpolated: FloatArray = np.interp(sizes, sizes[probed], seconds)
    return interpolated


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
