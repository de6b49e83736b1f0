"""Does a temperature of each row's own beat one for all? On the knowledge of a recipe's teacher.

    pip install ./plugins/firstcli-adaptive
    python benchmarks/adaptive.py recipes/quickstart.yaml
    python benchmarks/adaptive.py --invented

Each recalibrator is fitted on four fifths of the validation part and judged on the last fifth, in
turns, by what would be taught there. Where the truth is known, as for `known-world`, outcomes are
replaced by their true probabilities, which takes the noise of the answers away. Intervals come from
resampling the judged questions, the same for all recalibrators.

`equal sharpness` gives each row a temperature in proportion to how far its first token is ahead,
as CIST (arXiv 2605.20357) does with the largest logit, so that all rows become about equally sure.

`--invented` asks what there is to win and to lose: of teachers whose sure rows need another
temperature than their unsure ones, and of teachers whose rows all need the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import encode_questions
from firstcli.pipeline import execute
from firstcli.pipeline.execute import Request, open_run
from firstcli.plugins import load
from firstcli.recalibration.builtin import normalized, softmax
from firstcli.stages import inputs
from firstcli.training import soft_targets
from firstcli.training.soft_targets import Positions
from firstcli.workspace.run import Run

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def equal_sharpness(topk: FloatArray) -> FloatArray:
    """Divide each row's log-odds by their mean, (N, k)."""
    log_odds = np.log(np.maximum(topk / topk[:, :1], 1e-12))
    return normalized(np.exp(log_odds / np.maximum(-log_odds.mean(axis=1, keepdims=True), 1e-12)))


def unchanged(topk: FloatArray) -> FloatArray:
    """Return the teacher's probabilities as they are."""
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
class Rows:
    """Decisive positions of the validation part, and how likely each of their tokens truly is."""

    positions: Positions
    outcome: FloatArray  # (N, k)
    truth_known: bool


def validation_rows(run: Run) -> Rows:
    """Return what recalibrators are fitted on, by the recipe's first arm that learns knowledge."""
    arm = next(arm for arm in run.recipe.arms.values() if arm.learn == "knowledge")
    rows = inputs.training_rows(run, "teacher", "validation")
    knowledge = inputs.stored_knowledge(run, "validation", rows)
    positions = Positions.joined(list(soft_targets.recalibrated_of(arm, rows, knowledge)))
    samples = run.training.validation
    if any(sample.truth is None for sample in samples):
        return Rows(positions, positions.is_label.astype(np.float64), False)
    tokenizer = inputs.tokenizer(run, "teacher")
    outcome = np.zeros(positions.topk.shape)
    for i, question in enumerate(encode_questions(samples, tokenizer, "validation")):
        for token, share in zip(question.candidate_ids, question.truth or (), strict=True):
            outcome[i] += share * (positions.token_ids[i] == token)
    return Rows(positions, outcome, True)


def taught_by(name: str, rows: Rows, fold: npt.NDArray[np.int64]) -> FloatArray:
    """Return mass times target of every row, fitted on the other folds, (N, k)."""
    plugin, options, prepare = CONTENDERS[name]
    cls = load("recalibrators", plugin)
    mass, is_label = rows.positions.mass, rows.positions.is_label
    topk = prepare(rows.positions.topk)
    probabilities = np.empty(topk.shape)
    for number in range(FOLDS):
        held_out = fold == number
        recalibrator = cls(cls.Options.model_validate(options))
        recalibrator.fit(topk[~held_out], is_label[~held_out], mass[~held_out], "teacher")
        probabilities[held_out] = mass[held_out, None] * recalibrator.transform(topk[held_out])
    return probabilities


def row_losses(probabilities: FloatArray, rows: Rows) -> FloatArray:
    """Return each row's expected -log of what is taught, over k + 1 outcomes, (N,)."""
    tail = np.exp(rows.positions.log_tail)
    inside = -(rows.outcome * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    outside = -(1 - rows.outcome.sum(axis=1)) * np.log(np.maximum(tail, 1e-12))
    return np.asarray(inside + outside)


class Judge:
    """NLL and ECE of what is taught, over all rows and over resamples of them."""

    def __init__(self, rows: Rows, bins: int = 10) -> None:
        self.rows, self.bins = rows, bins
        count = len(rows.outcome)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
        self.times = np.vstack([np.ones(count), drawn])  # (1 + draws, N), the first is the data

    def nll(self, probabilities: FloatArray) -> FloatArray:
        """Return the mean loss, (1 + draws,)."""
        return np.asarray(self.times @ row_losses(probabilities, self.rows) / len(probabilities))

    def ece(self, probabilities: FloatArray) -> FloatArray:
        """Return the calibration error of the first token, (1 + draws,)."""
        edges = np.linspace(0, 1, self.bins + 1)[1:-1]
        bin_of = np.searchsorted(edges, probabilities[:, 0])
        gaps = (probabilities[:, 0] - self.rows.outcome[:, 0])[:, None] * (
            bin_of[:, None] == np.arange(self.bins)
        )  # (N, bins)
        return np.asarray(np.abs(self.times @ gaps).sum(axis=1) / len(probabilities))


def difference(
    ours: FloatArray, theirs: FloatArray, factor: float, digits: int, *, mark: bool
) -> str:
    """Write a difference with its 95 % interval; in bold, if asked, where that excludes zero."""
    gap = factor * (ours - theirs)
    low, high = np.round(np.quantile(gap[1:], [0.025, 0.975]), digits).tolist()
    text = f"{gap[0]:+z.{digits}f} ({low:+z.{digits}f} to {high:+z.{digits}f})"
    return f"**{text}**" if mark and (low > 0 or high < 0) else text


def invented(count: int, heats: tuple[float, float], seed: int) -> tuple[FloatArray, BoolArray]:
    """Return top k and outcomes of a teacher whose sure rows are too sure by the first factor."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=generator.choice([1.0, 4.0], (count, 1)), size=(count, 5))
    sure = softmax(logits, 1.0).max(axis=1, keepdims=True) > 0.8
    honest = softmax(logits / np.where(sure, *heats), 1.0)
    answer = (generator.random((count, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    order = np.argsort(-logits, axis=1)
    is_label = order == np.minimum(answer, 4)[:, None]
    return np.take_along_axis(softmax(logits, 1.0), order, axis=1), is_label


def gain(count: int, heats: tuple[float, float], seed: int) -> float:
    """Return how much lower NLL is on 20,000 other rows than with one temperature for all."""
    topk, is_label = invented(20_000, heats, seed=10_000)
    given = invented(count, heats, seed)
    losses = []
    for name in ("logit-temperature, nll", OURS):
        plugin, options, _ = CONTENDERS[name]
        cls = load("recalibrators", plugin)
        recalibrator = cls(cls.Options.model_validate(options))
        recalibrator.fit(*given, given[0].sum(axis=1), "teacher")
        losses.append(-np.log((recalibrator.transform(topk) * is_label).sum(axis=1)).mean())
    return float(losses[0] - losses[1])


def show_invented() -> None:
    """Print a Markdown table, a number of rows a row: mean gain and its standard error."""
    pairs = [(2.0, 2.0), (2.2, 1.8), (2.5, 1.5), (3.0, 1.0)]
    print("| validation rows | " + " | ".join(f"T {a:g} and {b:g}" for a, b in pairs) + " |")
    print("|---:|" + "---:|" * len(pairs))
    for count in (100, 200, 500, 2000):
        gains = [[gain(count, pair, seed) for seed in range(20)] for pair in pairs]
        cells = [f"{np.mean(some):+z.4f} ± {np.std(some) / 20**0.5:.4f}" for some in gains]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a Markdown table, a recalibrator a row, or what `--invented` says."""
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
    execute.execute(request, "extract")
    rows = validation_rows(open_run(request))
    fold = np.random.default_rng(0).permutation(len(rows.outcome)) % FOLDS
    judge = Judge(rows)
    found = {name: taught_by(name, rows, fold) for name in CONTENDERS}
    nll = {name: judge.nll(probabilities) for name, probabilities in found.items()}
    ece = {name: judge.ece(probabilities) for name, probabilities in found.items()}
    which = "true probabilities" if rows.truth_known else "answers"
    print(f"{len(fold)} rows, judged by {which}; ECE in percent\n")
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
