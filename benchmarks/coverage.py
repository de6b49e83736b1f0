"""How often 95 % intervals contain the value for infinitely many questions.

    python benchmarks/coverage.py --simulations 400 --group sharp

Simulated models answer questions with known probabilities of a correct answer; difficulty is
correlated between models. Each model has a twin of the same quality, from which it should not be
distinguished. Prints the tables of `docs/metrics.md`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import ece
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import differences, intervals

SIZES = (50, 100, 300, 400, 800, 1500, 2000)
METRICS = ("ece", "trust")
TABLES = {
    "covered": "interval contains the value",
    "twin": "distinguished from a twin of the same quality",
}


class Model(NamedTuple):
    """A model; `answer` takes two standard normals for each question, its ease and the model's own.

    It returns the confidence in each answer and the probability that the answer is right.
    """

    candidates: int
    answer: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]


def ordinary(skill: float, sharpness: float) -> Model:
    """Return a model of four candidates whose confidences fill the bins.

    Args:
        skill: logit of the mean probability of a correct answer.
        sharpness: ratio of the logits of confidence and correctness.
    """

    def answer(ease: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        logit = skill + 1.2 * ease + 0.5 * own
        return 0.25 + 0.75 * logistic(sharpness * logit), 0.25 + 0.75 * logistic(logit)

    return Model(4, answer)


def sharp(confidence: float, accuracy: float) -> Model:
    """Return a model that errs rarely and whose doubts are exponentially distributed."""

    def answer(ease: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        doubt = -np.log(np.maximum(ndtr(0.8 * ease + 0.6 * own), 1e-3))
        return 1 - np.minimum((1 - confidence) * doubt, 0.7), 1 - (1 - accuracy) * doubt

    return Model(4, answer)


def constant(confidence: float, accuracy: float) -> Model:
    """Return a model that is always equally confident."""
    return Model(4, lambda ease, own: (0 * ease + confidence, 0 * ease + accuracy))


def near_chance(candidates: int, gap: float) -> Model:
    """Return a model that hardly prefers one candidate; `gap` is confidence minus accuracy."""

    def answer(ease: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        confidence = 1 / candidates + 0.04 * np.abs(0.6 * ease + 0.8 * own)
        return confidence, confidence - gap

    return Model(candidates, answer)


def single_bin(accuracy: float) -> Model:
    """Return a model whose confidences lie between 0.73 and 0.77."""

    def answer(ease: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        shift = 0.02 * np.tanh(0.6 * ease + 0.8 * own)
        return 0.75 + shift, accuracy + shift

    return Model(4, answer)


def logistic(values: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-values)))


GROUPS: dict[str, dict[str, Model]] = {
    "ordinary": {
        "calibrated": ordinary(0.5, 1.0),
        "calibrated, more skilled": ordinary(1.5, 1.0),
        "slightly over-confident": ordinary(0.5, 1.4),
        "over-confident": ordinary(0.5, 2.5),
        "under-confident": ordinary(0.5, 0.6),
    },
    "sharp": {
        f"confidence {c}, accuracy {a}": sharp(c, a)
        for c, a in (
            *((0.985, 0.985), (0.995, 0.995), (0.999, 0.999), (0.99, 0.995), (0.985, 0.999)),
            *((0.995, 0.985), (0.999, 0.99), (0.999, 0.985)),
        )
    }
    | {"confidence always 0.99, accuracy 0.995": constant(0.99, 0.995)},
    "near chance": {
        f"{n} candidates, gap {gap:+.2f}": near_chance(n, gap)
        for n in (2, 4, 8)
        for gap in (-0.02, 0.0, 0.02)
    },
    "single bin": {
        f"confidence 0.75, accuracy {a}": single_bin(a) for a in (0.65, 0.72, 0.75, 0.78, 0.85)
    },
}
PAIRS = (
    ("calibrated", "calibrated, more skilled"),
    ("slightly over-confident", "calibrated"),
    ("over-confident", "calibrated"),
    ("over-confident", "slightly over-confident"),
)
"""Models of different quality, for the power."""

Shares = Mapping[tuple[str, str, int, str], Sequence[bool]]
"""Outcomes of the simulations by table, model, number of questions and metric."""


def simulate(models: Sequence[Model], n: int, random: np.random.Generator) -> list[EvalRecords]:
    """Let all models answer the same questions."""
    ease, luck = random.normal(size=(2, n))
    results = []
    for model in models:
        confidence, p_right = model.answer(ease, random.normal(size=n))
        shared = (luck + random.normal(size=n)) / np.sqrt(2)  # models fail on the same questions
        results.append(records(confidence, ndtr(shared) < p_right, model.candidates))
    return results


def records(confidence: FloatArray, right: BoolArray, candidates: int) -> EvalRecords:
    """Build records with answer 0; the other candidates share the remaining probability."""
    rest = (1 - confidence) / (candidates - 1)
    rows = np.repeat(rest[:, None], candidates, axis=1)
    rows[np.arange(len(rows)), np.where(right, 0, 1)] = confidence
    ids = [str(i) for i in range(len(rows))]
    return EvalRecords.from_log_probs(ids, [0] * len(rows), list(np.log(rows)))


def population(model: Model, n: int = 2_000_000) -> dict[str, float]:
    """Approximate the metrics for infinitely many questions."""
    ease, own = np.random.default_rng(0).normal(size=(2, n))
    confidence, p_right = model.answer(ease, own)
    error, accuracy = ece(confidence, p_right), float(np.mean(p_right))
    return {"ece": error, "trust": accuracy - error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--group", choices=GROUPS, action="append", help="default: all")
    chosen = parser.parse_args()
    for group in chosen.group or GROUPS:
        truth = {name: population(model) for name, model in GROUPS[group].items()}
        outcomes = run(GROUPS[group], truth, chosen.simulations)
        for key, title in TABLES.items():
            show(f"{group}: {title}", key, outcomes, truth)
    if not chosen.group or "ordinary" in chosen.group:
        show_power(chosen.simulations)


def run(
    models: Mapping[str, Model], truth: Mapping[str, Mapping[str, float]], simulations: int
) -> Shares:
    """Return whether intervals contain the truth, and whether twins are distinguished."""
    outcomes = defaultdict[tuple[str, str, int, str], list[bool]](list)
    for n in SIZES:
        for seed in range(simulations):
            for name, model in models.items():
                ours, twin = simulate([model, model], n, np.random.default_rng([n, seed]))
                estimates = intervals([ours], "candidates")
                gaps = differences([ours], [twin], "candidates")
                for metric in METRICS:
                    (low, high), value = estimates[metric].interval, truth[name][metric]
                    outcomes["covered", name, n, metric].append(low - 1e-9 <= value <= high + 1e-9)
                    outcomes["twin", name, n, metric].append(gaps[metric].distinguishable)
    return outcomes


def show(
    title: str, table: str, outcomes: Shares, truth: Mapping[str, Mapping[str, float]]
) -> None:
    print(f"\n{title}, in percent of simulations\n")
    heads = [f"{metric}, n = {n}" for metric in METRICS for n in SIZES]
    print(f"| model (ECE, Trust) | {' | '.join(heads)} |\n|:--|{'--:|' * len(heads)}")
    for name, values in truth.items():
        cells = [
            f"{100 * np.mean(outcomes[table, name, n, m]):.0f}" for m in METRICS for n in SIZES
        ]
        exact = ", ".join(f"{100 * values[metric]:.1f}" for metric in METRICS)
        print(f"| {name} ({exact}) | {' | '.join(cells)} |", flush=True)


def show_power(simulations: int) -> None:
    """Print how often ordinary models of different quality are distinguished."""
    models = GROUPS["ordinary"]
    print("\nordinary: distinguished from a model of another quality, in percent of simulations\n")
    heads = [f"{metric}, n = {n}" for metric in METRICS for n in SIZES]
    print(f"| pair | {' | '.join(heads)} |\n|:--|{'--:|' * len(heads)}")
    for ours, theirs in PAIRS:
        found = defaultdict[tuple[str, int], list[bool]](list)
        for n in SIZES:
            for seed in range(simulations):
                pair = simulate([models[ours], models[theirs]], n, np.random.default_rng([n, seed]))
                for metric, gap in differences(pair[:1], pair[1:], "candidates").items():
                    found[metric, n].append(gap.distinguishable)
        cells = [f"{100 * np.mean(found[metric, n]):.0f}" for metric in METRICS for n in SIZES]
        print(f"| {ours} - {theirs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
