"""How often 95 % intervals hold the value that infinitely many questions would give.

    python benchmarks/coverage.py --simulations 200

Models answer invented questions whose probabilities of being right are known; what is hard for one
is hard for the others. Prints the tables of `docs/metrics.md`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstcli.metrics.calibration import ece_true
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import differences, intervals

Floats = npt.NDArray[np.float64]

CANDIDATES = 4
SIZES = (300, 1000, 3000)
METRICS = ("accuracy", "ece", "trust")


@dataclass(frozen=True)
class Model:
    """Confidences as a logistic function of ease, and how often they are right."""

    sureness: float
    sharpness: float  # logits of confidence are these times those of being right

    def ask(self, ease: Floats, own: Floats) -> tuple[Floats, Floats]:
        """Return the confidence in each answer and the probability that it is right."""
        right = logistic(self.sureness + 1.2 * ease + 0.5 * own)
        sharp = logistic(self.sharpness * np.log(right / (1 - right)))
        floor = 1.0 / CANDIDATES  # nothing is less sure than a guess
        return floor + (1 - floor) * sharp, floor + (1 - floor) * right


def logistic(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)))


MODELS = {
    "calibrated": Model(0.5, 1.0),
    "calibrated, surer": Model(1.5, 1.0),
    "slightly over-confident": Model(0.5, 1.4),
    "over-confident": Model(0.5, 2.5),
}
PAIRS = (
    ("calibrated", "calibrated, surer"),
    ("slightly over-confident", "calibrated"),
    ("over-confident", "calibrated"),
    ("over-confident", "slightly over-confident"),
)


def simulate(n: int, random: np.random.Generator) -> dict[str, EvalRecords]:
    """Ask all models the same questions."""
    ease, luck = random.normal(size=(2, n))
    found = {}
    for name, model in MODELS.items():
        confidence, p_right = model.ask(ease, random.normal(size=n))
        shared = (luck + random.normal(size=n)) / np.sqrt(2)  # models fail on the same questions
        found[name] = records(confidence, normal_cdf(shared) < p_right)
    return found


def normal_cdf(values: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(values))


def records(confidence: Floats, right: npt.NDArray[np.bool_]) -> EvalRecords:
    """Build records in which candidate 0 is the answer and the rest share what is left."""
    predicted = np.where(right, 0, 1)
    rest = (1 - confidence) / (CANDIDATES - 1)
    rows = np.repeat(rest[:, None], CANDIDATES, axis=1)
    rows[np.arange(len(rows)), predicted] = confidence
    ids = [str(i) for i in range(len(rows))]
    return EvalRecords.from_log_probs(ids, [0] * len(rows), list(np.log(rows)))


def population(model: Model, n: int = 2_000_000) -> dict[str, float]:
    """Return the metrics of infinitely many questions, nearly."""
    ease, own = np.random.default_rng(0).normal(size=(2, n))
    confidence, p_right = model.ask(ease, own)
    error, accuracy = ece_true(confidence, p_right), float(np.mean(p_right))
    return {"accuracy": accuracy, "ece": error, "trust": accuracy - error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    simulations = parser.parse_args().simulations
    truth = {name: population(model) for name, model in MODELS.items()}
    held: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    told: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    for n in SIZES:
        for seed in range(simulations):
            asked = simulate(n, np.random.default_rng([n, seed]))
            for name in MODELS:
                for metric, one in intervals([asked[name]], "candidates").items():
                    low, high = one.interval
                    held[name, n, metric].append(low <= truth[name][metric] <= high)
            for ours, theirs in PAIRS:
                pair = f"{ours} - {theirs}"
                gaps = differences([asked[ours]], [asked[theirs]], "candidates")
                for metric, gap in gaps.items():
                    value = truth[ours][metric] - truth[theirs][metric]
                    held[pair, n, metric].append(gap.interval.low <= value <= gap.interval.high)
                    told[pair, n, metric].append(gap.distinguishable)
    show("holds the value", held, lambda name, metric: of(truth, name)[metric])
    show("told from zero", told, lambda name, metric: of(truth, name)[metric])


def of(truth: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """Return the metrics of a model or the differences of a pair."""
    if name in truth:
        return truth[name]
    ours, theirs = (truth[model] for model in name.split(" - "))
    return {metric: ours[metric] - theirs[metric] for metric in METRICS}


def show(
    title: str,
    found: dict[tuple[str, int, str], list[bool]],
    value: Callable[[str, str], float],
) -> None:
    print(f"\n{title}, in percent of simulations\n")
    heads = [f"{metric}, n = {n}" for metric in METRICS for n in SIZES]
    print(f"| model | {' | '.join(heads)} |\n|:--|{'--:|' * len(heads)}")
    for name in dict.fromkeys(name for name, _, _ in found):
        cells = [f"{100 * np.mean(found[name, n, m]):.0f}" for m in METRICS for n in SIZES]
        exact = ", ".join(f"{100 * value(name, metric):.1f}" for metric in METRICS)
        print(f"| {name} ({exact}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
