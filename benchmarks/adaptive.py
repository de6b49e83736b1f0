"""Compare one temperature per position with a single temperature, on a teacher's knowledge.

    pip install ./plugins/firstcli-adaptive
    python benchmarks/adaptive.py recipes/quickstart.yaml
    python benchmarks/adaptive.py --invented

Each recalibrator is fitted on four fifths of the validation part, and the soft targets for the
remaining fifth are scored, in five-fold cross-validation. If the truth is known, as in
`known-world`, true probabilities replace the outcomes, which removes the noise of the answers.
Intervals come from resampling the scored questions, identically for all recalibrators.

`equal sharpness` gives each position a temperature proportional to the lead of its first token, as
CIST (arXiv 2605.20357) does with the largest logit, so that all become about equally confident.

`--invented` measures the potential gain and loss: for teachers whose confident predictions need a
different temperature from the others, and for teachers whose predictions all need the same one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray
from firstcli.data.encoding import Encoding, encode_questions
from firstcli.pipeline.execute import execute
from firstcli.pipeline.plan import Request, open_run
from firstcli.plugins import load
from firstcli.recalibration.builtin import normalized, softmax
from firstcli.stages import inputs, role_models, teacher_knowledge
from firstcli.stages.extract import EXTRACT
from firstcli.training import soft_targets
from firstcli.training.soft_targets import Positions
from firstcli.workspace.run import Run


def equal_sharpness(topk: FloatArray) -> FloatArray:
    """Divide the log-odds of each position by their mean, (N, k)."""
    log_odds = np.log(np.maximum(topk / topk[:, :1], 1e-12))
    return normalized(np.exp(log_odds / np.maximum(-log_odds.mean(axis=1, keepdims=True), 1e-12)))


def unchanged(topk: FloatArray) -> FloatArray:
    """Return the teacher's probabilities unchanged."""
    return topk


Prepare = Callable[[FloatArray], FloatArray]
CONTENDERS: dict[str, tuple[str, dict[str, str], Prepare]] = {
    "none": ("none", {}, unchanged),
    "temperature-scaling, ece": ("temperature-scaling", {}, unchanged),
    "temperature-scaling, nll": ("temperature-scaling", {"criterion": "nll"}, unchanged),
    "logit-temperature, nll": ("logit-temperature", {"criterion": "nll"}, unchanged),
    "equal sharpness": ("logit-temperature", {"criterion": "nll"}, equal_sharpness),
    "adaptive": ("adaptive", {}, unchanged),
}
OURS = "adaptive"
FOLDS = 5
DRAWS = 2000


@dataclass(frozen=True)
class Answers:
    """Answer positions of the validation part, and the true probability of each of their tokens."""

    positions: Positions
    outcome: FloatArray  # (N, k)
    truth_known: bool


def validation_answers(run: Run) -> Answers:
    """Return the answer positions, for the recipe's first arm that learns from knowledge."""
    arm = next(arm for arm in run.recipe.arms.values() if arm.learn == "knowledge")
    rows = inputs.training_rows(run, "teacher", "validation")
    knowledge = teacher_knowledge.stored_knowledge(run, "validation")
    positions = Positions.joined(list(soft_targets.recalibrated_chunks(arm, rows, knowledge)))
    samples = run.training.validation
    if any(sample.truth is None for sample in samples):
        return Answers(positions, positions.is_label.astype(np.float64), False)
    tokenizer = role_models.tokenizer(run, "teacher")
    outcome = np.zeros(positions.topk.shape)
    for i, question in enumerate(encode_questions(samples, Encoding(tokenizer, "validation"))):
        for token, share in zip(question.candidate_ids, question.truth or (), strict=True):
            outcome[i] += share * (positions.token_ids[i] == token)
    return Answers(positions, outcome, True)


def soft_targets_by(name: str, answers: Answers, fold: npt.NDArray[np.int64]) -> FloatArray:
    """Return the soft targets of every position, fitted on the other folds, (N, k)."""
    plugin, options, prepare = CONTENDERS[name]
    cls = load("recalibrators", plugin)
    mass, is_label = answers.positions.mass, answers.positions.is_label
    topk = prepare(answers.positions.topk)
    probabilities = np.empty(topk.shape)
    for number in range(FOLDS):
        held_out = fold == number
        recalibrator = cls(cls.Options.model_validate(options))
        recalibrator.fit(topk[~held_out], is_label[~held_out], mass[~held_out], "teacher")
        probabilities[held_out] = mass[held_out, None] * recalibrator.transform(topk[held_out])
    return probabilities


def losses(probabilities: FloatArray, answers: Answers) -> FloatArray:
    """Return the expected NLL of each position over k + 1 outcomes, (N,)."""
    tail = np.exp(answers.positions.log_tail)
    inside = -(answers.outcome * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    outside = -(1 - answers.outcome.sum(axis=1)) * np.log(np.maximum(tail, 1e-12))
    return np.asarray(inside + outside)


class Scorer:
    """NLL and ECE of soft targets, over all positions and over resamples of them."""

    def __init__(self, answers: Answers, bins: int = 10) -> None:
        self.answers, self.bins = answers, bins
        count = len(answers.outcome)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
        self.times = np.vstack([np.ones(count), drawn])  # (1 + draws, N), the data first

    def nll(self, probabilities: FloatArray) -> FloatArray:
        """Return the mean loss, (1 + draws,)."""
        return np.asarray(self.times @ losses(probabilities, self.answers) / len(probabilities))

    def ece(self, probabilities: FloatArray) -> FloatArray:
        """Return the calibration error of the first token, (1 + draws,)."""
        edges = np.linspace(0, 1, self.bins + 1)[1:-1]
        bin_of = np.searchsorted(edges, probabilities[:, 0])
        gaps = (probabilities[:, 0] - self.answers.outcome[:, 0])[:, None] * (
            bin_of[:, None] == np.arange(self.bins)
        )  # (N, bins)
        return np.asarray(np.abs(self.times @ gaps).sum(axis=1) / len(probabilities))


def difference(
    ours: FloatArray, theirs: FloatArray, factor: float, digits: int, *, mark: bool
) -> str:
    """Format a difference with its 95 % interval; with `mark`, bold if that excludes zero."""
    gap = factor * (ours - theirs)
    low, high = np.round(np.quantile(gap[1:], [0.025, 0.975]), digits).tolist()
    text = f"{gap[0]:+z.{digits}f} ({low:+z.{digits}f} to {high:+z.{digits}f})"
    return f"**{text}**" if mark and (low > 0 or high < 0) else text


def invented(count: int, factors: tuple[float, float], seed: int) -> tuple[FloatArray, BoolArray]:
    """Return top k and outcomes of a teacher with different over-confidence in two groups.

    The logits of confident predictions are too large by the first factor, all others by the second.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=generator.choice([1.0, 4.0], (count, 1)), size=(count, 5))
    confident = softmax(logits, 1.0).max(axis=1, keepdims=True) > 0.8
    honest = softmax(logits / np.where(confident, *factors), 1.0)
    answer = (generator.random((count, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    order = np.argsort(-logits, axis=1)
    is_label = order == np.minimum(answer, 4)[:, None]
    return np.take_along_axis(softmax(logits, 1.0), order, axis=1), is_label


def gain(count: int, factors: tuple[float, float], seed: int) -> float:
    """Return how much lower the NLL on 20,000 other positions is than with one temperature."""
    topk, is_label = invented(20_000, factors, seed=10_000)
    fitted_on = invented(count, factors, seed)
    nlls = []
    for name in ("logit-temperature, nll", OURS):
        plugin, options, _ = CONTENDERS[name]
        cls = load("recalibrators", plugin)
        recalibrator = cls(cls.Options.model_validate(options))
        recalibrator.fit(*fitted_on, fitted_on[0].sum(axis=1), "teacher")
        nlls.append(-np.log((recalibrator.transform(topk) * is_label).sum(axis=1)).mean())
    return float(nlls[0] - nlls[1])


def show_invented() -> None:
    """Print a Markdown table of the mean gain and its standard error, by number of positions."""
    pairs = [(2.0, 2.0), (2.2, 1.8), (2.5, 1.5), (3.0, 1.0)]
    print("| validation positions | " + " | ".join(f"T {a:g} and {b:g}" for a, b in pairs) + " |")
    print("|---:|" + "---:|" * len(pairs))
    for count in (100, 200, 500, 2000):
        gains = [[gain(count, pair, seed) for seed in range(20)] for pair in pairs]
        cells = [f"{np.mean(g):+z.4f} ± {np.std(g) / 20**0.5:.4f}" for g in gains]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a Markdown table with one line per recalibrator, or the table of `--invented`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("--invented", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--run-dir", type=Path)
    chosen = parser.parse_args()
    if chosen.invented:
        return show_invented()
    if chosen.recipe is None:
        parser.error("give a recipe, or --invented")
    request = Request(chosen.recipe, tuple(chosen.overrides), run_dir=chosen.run_dir, quiet=True)
    execute(request, EXTRACT)
    answers = validation_answers(open_run(request))
    fold = np.random.default_rng(0).permutation(len(answers.outcome)) % FOLDS
    scorer = Scorer(answers)
    targets = {name: soft_targets_by(name, answers, fold) for name in CONTENDERS}
    nll = {name: scorer.nll(probabilities) for name, probabilities in targets.items()}
    ece = {name: scorer.ece(probabilities) for name, probabilities in targets.items()}
    which = "true probabilities" if answers.truth_known else "answers"
    print(f"{len(fold)} positions, scored by {which}; ECE in percent\n")
    print(f"| recalibrator | NLL | ECE | {OURS} minus it: NLL | ECE |")
    print("|---|" + "---:|" * 4)
    for name in CONTENDERS:
        cells = [name, f"{nll[name][0]:.4f}", f"{100 * ece[name][0]:.1f}"]
        if name != OURS:
            cells += [difference(nll[OURS], nll[name], 1, 4, mark=True)]
            cells += [difference(ece[OURS], ece[name], 100, 1, mark=False)]
        print(f"| {' | '.join(cells)} |" if name != OURS else f"| {' | '.join(cells)} | | |")


if __name__ == "__main__":
    main()
