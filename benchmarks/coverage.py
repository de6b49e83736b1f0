"""How often 95 % intervals contain the value for infinitely many questions.

    python benchmarks/coverage.py --simulations 200

Simulated models answer questions with known probabilities of a correct answer; difficulty is
correlated between models. Prints the tables of `docs/metrics.md`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import ece
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import differences, intervals

CANDIDATES = 4
SIZES = (300, 1000, 3000)
METRICS = ("accuracy", "ece", "trust")


@dataclass(frozen=True)
class Model:
    """Confidence and probability of a correct answer as logistic functions of easiness."""

    skill: float
    sharpness: float  # ratio of the logits of confidence and correctness

    def answer(self, ease: FloatArray, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the confidence in each answer and the probability that it is correct."""
        right = logistic(self.skill + 1.2 * ease + 0.5 * own)
        sharp = logistic(self.sharpness * np.log(right / (1 - right)))
        floor = 1.0 / CANDIDATES  # the confidence of a guess
        return floor + (1 - floor) * sharp, floor + (1 - floor) * right


def logistic(values: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-values)))


MODELS = {
    "calibrated": Model(0.5, 1.0),
    "calibrated, more skilled": Model(1.5, 1.0),
    "slightly over-confident": Model(0.5, 1.4),
    "over-confident": Model(0.5, 2.5),
}
PAIRS = (
    ("calibrated", "calibrated, more skilled"),
    ("slightly over-confident", "calibrated"),
    ("over-confident", "calibrated"),
    ("over-confident", "slightly over-confident"),
)


def simulate(n: int, random: np.random.Generator) -> dict[str, EvalRecords]:
    """Let all models answer the same questions."""
    ease, luck = random.normal(size=(2, n))
    results = {}
    for name, model in MODELS.items():
        confidence, p_right = model.answer(ease, random.normal(size=n))
        shared = (luck + random.normal(size=n)) / np.sqrt(2)  # models fail on the same questions
        results[name] = records(confidence, normal_cdf(shared) < p_right)
    return results


def normal_cdf(values: FloatArray) -> FloatArray:
    from scipy.special import ndtr

    return np.asarray(ndtr(values))


def records(confidence: FloatArray, right: BoolArray) -> EvalRecords:
    """Build records with answer 0; the other candidates share the remaining probability."""
    predicted = np.where(right, 0, 1)
    rest = (1 - confidence) / (CANDIDATES - 1)
    rows = np.repeat(rest[:, None], CANDIDATES, axis=1)
    rows[np.arange(len(rows)), predicted] = confidence
    ids = [str(i) for i in range(len(rows))]
    return EvalRecords.from_log_probs(ids, [0] * len(rows), list(np.log(rows)))


def population(model: Model, n: int = 2_000_000) -> dict[str, float]:
    """Approximate the metrics for infinitely many questions."""
    ease, own = np.random.default_rng(0).normal(size=(2, n))
    confidence, p_right = model.answer(ease, own)
    error, accuracy = ece(confidence, p_right), float(np.mean(p_right))
    return {"accuracy": accuracy, "ece": error, "trust": accuracy - error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    simulations = parser.parse_args().simulations
    truth = {name: population(model) for name, model in MODELS.items()}
    covered: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    rejected: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    for n in SIZES:
        for seed in range(simulations):
            simulated = simulate(n, np.random.default_rng([n, seed]))
            for name in MODELS:
                for metric, estimate in intervals([simulated[name]], "candidates").items():
                    low, high = estimate.interval
                    covered[name, n, metric].append(low <= truth[name][metric] <= high)
            for ours, theirs in PAIRS:
                pair = f"{ours} - {theirs}"
                gaps = differences([simulated[ours]], [simulated[theirs]], "candidates")
                for metric, gap in gaps.items():
                    value = truth[ours][metric] - truth[theirs][metric]
                    covered[pair, n, metric].append(gap.interval.low <= value <= gap.interval.high)
                    rejected[pair, n, metric].append(gap.distinguishable)
    show("interval contains the value", covered, lambda name, metric: of(truth, name)[metric])
    show("distinguishable from zero", rejected, lambda name, metric: of(truth, name)[metric])


def of(truth: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """Return the metrics of a model, or the differences of a pair."""
    if name in truth:
        return truth[name]
    ours, theirs = (truth[model] for model in name.split(" - "))
    return {metric: ours[metric] - theirs[metric] for metric in METRICS}


def show(
    title: str,
    outcomes: dict[tuple[str, int, str], list[bool]],
    value: Callable[[str, str], float],
) -> None:
    print(f"\n{title}, in percent of simulations\n")
    heads = [f"{metric}, n = {n}" for metric in METRICS for n in SIZES]
    print(f"| model | {' | '.join(heads)} |\n|:--|{'--:|' * len(heads)}")
    for name in dict.fromkeys(name for name, _, _ in outcomes):
        cells = [f"{100 * np.mean(outcomes[name, n, m]):.0f}" for m in METRICS for n in SIZES]
        exact = ", ".join(f"{100 * value(name, metric):.1f}" for metric in METRICS)
        print(f"| {name} ({exact}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
