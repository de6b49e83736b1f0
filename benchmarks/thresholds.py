"""How often thresholds and prediction sets break their promise, and how much stays answered.

python benchmarks/thresholds.py --simulations 2000
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.thresholds import threshold_for

Random = np.random.Generator
TARGET = 0.9
SIZES = (50, 100, 300, 1000, 3000)
POPULATION = 200_000


class Simulated(NamedTuple):
    """How a model's confidences are distributed, and how often it is right at each of them."""

    draw: Callable[[Random, int], FloatArray]
    right: Callable[[FloatArray], FloatArray]


def _levels(random: Random, n: int) -> FloatArray:
    return np.asarray(random.integers(1, 6, n) / 5)


MODELS = {
    "accuracy 89.99 % at any confidence": Simulated(
        lambda r, n: r.random(n), lambda c: np.full_like(c, 0.8999)
    ),
    "the same, five confidences": Simulated(_levels, lambda c: np.full_like(c, 0.8999)),
    "accuracy 93 % at any confidence": Simulated(
        lambda r, n: r.random(n), lambda c: np.full_like(c, 0.93)
    ),
    "well calibrated": Simulated(lambda r, n: 0.5 + 0.5 * r.random(n) ** 0.6, lambda c: c),
    "over-confident": Simulated(
        lambda r, n: 0.5 + 0.5 * r.beta(2, 0.7, n), lambda c: 0.5 + 0.92 * (c - 0.5)
    ),
    "five confidences": Simulated(_levels, lambda c: 0.8 + 0.15 * c),
    "accuracy in waves": Simulated(
        lambda r, n: r.random(n), lambda c: 0.899 + 0.08 * np.cos(9 * np.pi * c)
    ),
    "worse where it is certain": Simulated(
        lambda r, n: r.random(n), lambda c: np.where(c > 0.97, 0.8, 0.95 - 0.2 * (0.8 - c).clip(0))
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    print("| model |", " | ".join(f"n = {n}" for n in SIZES), "|")
    print("|:--|" + "--:|" * len(SIZES))
    for name, model in MODELS.items():
        cells = [" / ".join(f"{100 * x:.1f}" for x in cell) for cell in _row(model, simulations)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    cells = [" / ".join(f"{100 * x:.1f}" for x in cell) for cell in _tempered(simulations)]
    print(f"| four candidates, T fitted on the same questions | {' | '.join(cells)} |")


def _row(model: Simulated, simulations: int) -> Iterator[tuple[float, float]]:
    """Yield the shares of broken promises and of answered questions, for every size."""
    population = -np.sort(-model.draw(np.random.default_rng(9), POPULATION))
    accuracy = np.cumsum(model.right(population)) / np.arange(1, POPULATION + 1)

    def outcome(confidence: FloatArray, correct: BoolArray) -> tuple[bool, float]:
        chosen = threshold_for(confidence, correct, TARGET)
        if chosen is None:
            return False, 0.0
        answered = int(np.searchsorted(-population, -chosen.threshold, side="right"))
        broken = answered > 0 and accuracy[answered - 1] < TARGET - 5e-5
        return broken, answered / POPULATION

    for n in SIZES:
        random = np.random.default_rng(n)
        outcomes = []
        for _ in range(simulations):
            confidence = model.draw(random, n)
            outcomes.append(outcome(confidence, random.random(n) < model.right(confidence)))
        broken, answered = np.mean(outcomes, axis=0)
        yield float(broken), float(answered)


def _tempered(simulations: int) -> Iterator[tuple[float, float]]:
    """Yield the same for over-confident answers with a temperature fitted to the same questions."""
    temperatures = np.geomspace(0.5, 6, 40)
    logits = np.random.default_rng(9).normal(0, 6, (20_000, 4))
    truth = np.exp((logits - logits.max(axis=1, keepdims=True)) / 2)  # the true T is 2
    truth /= truth.sum(axis=1, keepdims=True)
    top, cumulated = logits.argmax(axis=1), truth.cumsum(axis=1)
    p_right = truth[np.arange(len(truth)), top]
    shown = np.exp((logits - logits.max(axis=1, keepdims=True))[..., None] / temperatures)
    shown /= shown.sum(axis=1, keepdims=True)  # (N, 4, temperatures)
    for n in SIZES:
        random, outcomes = np.random.default_rng(n), []
        for _ in range(simulations // 2):
            rows = random.integers(0, len(logits), n)
            answer = (random.random(n)[:, None] > cumulated[rows]).sum(axis=1).clip(max=3)
            nll = -np.log(np.maximum(shown[rows, answer], 1e-12)).sum(axis=0)
            confidence = shown[:, :, int(nll.argmin())].max(axis=1)
            chosen = threshold_for(confidence[rows], answer == top[rows], TARGET)
            answered = confidence >= (chosen.threshold if chosen else np.inf)
            broken = bool(answered.any()) and float(p_right[answered].mean()) < TARGET
            outcomes.append((broken, answered.mean()))
        yield tuple(np.mean(outcomes, axis=0).tolist())


if __name__ == "__main__":
    main()
