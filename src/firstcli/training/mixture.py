"""Sampling weights of domains that follow the gap between student and teacher (DDK).

"DDK: Distilling Domain Knowledge for Efficient Large Language Models" (arXiv 2407.16154). With N
domains, let l_S(i) and l_T(i) be the perplexities of student and teacher on held-out samples of
domain i. Before the first step, and again every n steps, the domain discrepancy factor r becomes

    psi(i) = r(i) exp(l_S(i) / l_T(i)),    r(i) <- a psi(i) / sum_j psi(j) + (1 - a) / N

where all r(i) are 1 / N at first, and a is 0.5 in the paper. Samples are drawn with replacement: a
domain with probability r(i), then one of its samples, each with the same probability.
docs/mixture.md says what is simplified.

A period is the steps between two updates. The draws of a period are a pure function of the weights,
the seed and the number of the period, so neither processes nor micro-batches change them. The
weights of all periods are in every checkpoint, so a resumed training draws the same samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from firstcli.api import FloatArray
from firstcli.data.encoded import IntArray, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.data.sequences import Selected
from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.training.batches import SoftTargetSource, TrainingBatches

STATE = "mixture.json"
"""In a checkpoint: the updates so far."""
HELD_OUT_BATCH = 8
"""Samples per forward pass without gradients. It does not follow the micro-batch, so that this
changes no weight."""


def next_weights(weights: FloatArray, ratios: FloatArray, smoothing: float) -> FloatArray:
    """Return the factors r after an update, (N,), which sum to 1.

    Args:
        weights: the factors before it, (N,).
        ratios: the student's perplexity over the teacher's, (N,).
        smoothing: a, the weight of the gaps; the rest is shared evenly.
    """
    with np.errstate(divide="ignore"):  # a weight may be 0 without smoothing
        exponents = np.log(weights) + ratios
    # An untrained student's ratio may exceed 10,000, whose exponential is not finite.
    shares = np.exp(exponents - exponents.max())
    return np.asarray(smoothing * shares / shares.sum() + (1 - smoothing) / len(weights))


@dataclass(frozen=True, slots=True)
class DomainUpdate:
    """The weights of one period, and what they follow from."""

    student: tuple[float, ...]
    """The student's mean loss per position on each domain's held-out samples, in nats."""
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MixturePlan:
    """The domains of a training, and how often their weights are updated."""

    names: tuple[str, ...]
    """The N domains."""
    domain_of: IntArray  # (R,) the domain of each training sample
    held_out: Sequence[Sequence[EncodedSample]]
    """Samples of each domain on which no model is trained, at least one."""
    targets: SoftTargetSource
    """Returns, for held-out samples, all probability on the outcome that is true."""
    teacher: tuple[float, ...]
    """The teacher's mean loss per position on each domain's held-out samples, in nats."""
    every: int
    """Steps per period."""
    smoothing: float

    @property
    def samples(self) -> int:
        return len(self.domain_of)

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the steps that draw as many samples as there are."""
        return -(-self.samples // batch_size)


@dataclass
class DomainDraws:
    """Draws the samples of each period; it counts as an epoch of `batches.MicroBatches`."""

    plan: MixturePlan
    batch_size: int
    seed: int
    measure: Callable[[], FloatArray]
    """Returns the student's current mean loss on each domain's held-out samples, (N,)."""
    updates: list[DomainUpdate] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of draws in a period."""
        return self.plan.every * self.batch_size

    @property
    def samples(self) -> int:
        """The number of samples from which is drawn."""
        return self.plan.samples

    def of_epoch(self, epoch: int) -> IntArray:
        """Return the samples of a period, whose weights are computed once, when it begins."""
        if epoch == len(self.updates):
            self.updates.append(self._update())
        weights = np.array(self.updates[epoch].weights)
        return drawn(weights, self.plan.domain_of, len(self), (self.seed, epoch))

    def _update(self) -> DomainUpdate:
        losses = self.measure()
        wrong = np.flatnonzero(~np.isfinite(losses))
        if len(wrong):
            raise UserError(
                f"train.mixture: the student's loss on held-out samples of "
                f"'{self.plan.names[wrong[0]]}' became {losses[wrong[0]]}; the last good "
                "checkpoint is kept, lower the learning rate"
            )
        ratios = np.exp(losses - np.array(self.plan.teacher))
        count = len(self.plan.names)
        before = self.updates[-1].weights if self.updates else (1 / count,) * count
        weights = next_weights(np.array(before), ratios, self.plan.smoothing)
        return DomainUpdate(tuple(losses.tolist()), tuple(weights.tolist()))

    @property
    def current(self) -> dict[str, float]:
        """The weight of each domain, by its name."""
        return dict(zip(self.plan.names, self.updates[-1].weights, strict=True))

    @property
    def history(self) -> list[dict[str, object]]:
        """What each period's weights follow from, with the step after which it begins."""
        names, teacher = self.plan.names, self.plan.teacher
        return [
            {
                "step": number * self.plan.every,
                **{
                    name: {"student": student, "teacher": known, "weight": weight}
                    for name, student, known, weight in zip(
                        names, update.student, teacher, update.weights, strict=True
                    )
                },
            }
            for number, update in enumerate(self.updates)
        ]

    def save(self, checkpoint: Path) -> None:
        """Write the updates so far into a checkpoint."""
        state = [{"student": each.student, "weights": each.weights} for each in self.updates]
        (checkpoint / STATE).write_text(json.dumps(state), "utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Continue with the weights of a checkpoint."""
        state: list[Mapping[str, list[float]]]
        state = json.loads((checkpoint / STATE).read_text("utf-8"))
        self.updates = [
            DomainUpdate(tuple(each["student"]), tuple(each["weights"])) for each in state
        ]


def drawn(weights: FloatArray, domain_of: IntArray, count: int, seed: tuple[int, int]) -> IntArray:
    """Draw samples with replacement: a domain by its weight, then one of its samples.

    Args:
        weights: of each domain, (N,); they sum to 1.
        domain_of: the domain of each sample, (R,); every domain has one.
        count: the number of draws.
        seed: the seed of the training and the number of the period.
    """
    draws = np.random.default_rng(seed).random((2, count))
    ends = np.cumsum(weights)
    domains = np.minimum(np.searchsorted(ends, draws[0] * ends[-1], "right"), len(weights) - 1)
    order = np.argsort(domain_of, kind="stable")  # the samples of each domain together
    sizes = np.bincount(domain_of, minlength=len(weights))
    starts = np.cumsum(sizes) - sizes
    return np.asarray(order[starts[domains] + (draws[1] * sizes[domains]).astype(np.int64)])


def draws_of(
    plan: MixturePlan,
    model: PreTrainedModel,
    forward: Callable[..., Mapping[str, torch.Tensor]],
    args: TrainingArguments,
) -> DomainDraws:
    """Return the draws of a training, and let the Trainer count their periods as epochs.

    The number of steps, and of those between two checkpoints, stays the same.

    Args:
        plan: the domains.
        model: the student, as it is while it trains.
        forward: its forward pass with the objective `topk-tail`.
        args: settings of the training, in place.
    """
    micro, processes = args.per_device_train_batch_size, args.world_size
    batch_size = micro * args.gradient_accumulation_steps * processes
    steps = plan.steps_per_pass(batch_size)
    if args.max_steps <= 0:
        args.max_steps = math.ceil(steps * args.num_train_epochs)
    if args.save_strategy == SaveStrategy.EPOCH:
        args.save_strategy, args.save_steps = SaveStrategy.STEPS, steps
    if args.logging_strategy == IntervalStrategy.EPOCH:
        args.logging_strategy, args.logging_steps = IntervalStrategy.STEPS, steps

    def losses() -> FloatArray:
        was_training = model.training
        model.eval()
        with (
            torch.no_grad(),
            torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16),
        ):
            found = held_out_losses(forward, plan, args.device)
        model.train(was_training)
        return found

    # One process's rounding decides for all.
    return DomainDraws(plan, batch_size, args.seed, lambda: distributed.by_first(losses))


def held_out_losses(
    forward: Callable[..., Mapping[str, torch.Tensor]],
    plan: MixturePlan,
    device: torch.device,
) -> FloatArray:
    """Return a student's mean loss per position on each domain's held-out samples, (N,), in nats.

    Args:
        forward: the student with the objective `topk-tail`, which on certain targets is the
            negative log-probability of the true outcome.
        plan: the domains.
        device: where the student is.
    """
    means = []
    for samples in plan.held_out:
        order = np.argsort(-lengths_of(samples), kind="stable")
        batches = TrainingBatches(Selected(samples, order), plan.targets)
        total, count = 0.0, 0
        for first in range(0, len(samples), HELD_OUT_BATCH):
            batch = batches[list(range(len(samples)))[first : first + HELD_OUT_BATCH]]
            del batch["samples"]
            output = forward(**{name: part.to(device) for name, part in batch.items()})
            total += float(output["loss"])
            count += int(output["positions"])
        means.append(total / count)
    return np.array(means)
