"""The tables of the studies on real sets (`docs/study-protocol.md`), as Markdown.

    python benchmarks/plus_tables.py runs/plus-trec runs/plus-sst2

The first evaluation of a run is in domain, the others are out of it. Differences are paired, as
those of `compare.py`: the interval over questions comes first, that over seeds second.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import yaml

from compare import records_of
from firstcli import metrics
from firstcli.metrics import uncertainty
from firstcli.metrics.uncertainty import Difference, Interval

ARMS = ("fine-tune", "fine-tune-copies", "distill", "first", "first-logit", "first-plus")
STUDENTS = tuple(f"{arm}{end}" for arm in ARMS for end in ("", " + T"))
MODELS = ("teacher", "teacher + T", *STUDENTS)
WINNER = "first-plus + T"
BASELINES = ("first", "distill + T", "first-logit + T", "fine-tune + T", "fine-tune-copies + T")
UNANSWERED = "noanswer"
BINS = 10
GOAL = -2.0  # points of Trust that the winner may lose against the best student

Results = Mapping[str, Sequence[metrics.EvalMetrics]]
"""model -> its metrics, one entry per seed"""


def evaluations(run: Path) -> list[str]:
    """Return the names of a run's evaluations, in the order of its recipe."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    return [section.get("name") or section["task"]["name"] for section in recipe["evaluate"]]


def results(folder: Path) -> Results:
    """Return the metrics of all models of a run on one evaluation; a run may lack arms."""
    return {
        model: [
            metrics.summarize(records, "candidates", BINS)
            for records in records_of(folder, model).values()
        ]
        for model in MODELS
        if _ran(folder, model.removesuffix(" + T"))
    }


def paired(folder: Path, theirs: str, metric: str) -> tuple[Difference, Difference | None]:
    """Return the winner minus another student, over questions and, if there are several, seeds."""
    ours, others = records_of(folder, WINNER), records_of(folder, theirs)
    pairs = [(ours[seed], others[seed]) for seed in ours]
    left, right = ([pair[side] for pair in pairs] for side in (0, 1))
    over = uncertainty.differences(left, right, "candidates", BINS)[metric]
    if len(pairs) == 1:
        return over, None
    each = [
        [getattr(metrics.summarize(records, "candidates", BINS), metric) for records in side]
        for side in (left, right)
    ]
    return over, uncertainty.over_seeds(*each)


def in_domain(found: Results) -> Iterator[str]:
    """Yield the table of all models on the test questions."""
    yield "| model | Acc ↑ | ECE ↓ | Trust ↑ | NLL ↓ |"
    yield "|:--|--:|--:|--:|--:|"
    for model, each in found.items():
        cells = [_cell([getattr(m, name) for m in each]) for name in ("accuracy", "ece", "trust")]
        yield _line(model, *cells, _cell([m.nll for m in each], 1, 3))


def out_of_domain(found: Mapping[str, Results]) -> Iterator[str]:
    """Yield the table of all models on shifted questions; accuracy, ECE and Trust in one cell."""
    if not found:
        return
    yield _line("model", *(_heading(name) for name in found))
    yield "|:--|" + "--:|" * len(found)
    for model in next(iter(found.values())):
        cells = []
        for name, models in found.items():
            values = ["confidence"] if name == UNANSWERED else ["accuracy", "ece", "trust"]
            means = [mean(_known([getattr(m, key) for m in models[model]])) for key in values]
            cells.append(" / ".join(f"{100 * value:.1f}" for value in means))
        yield _line(model, *cells)


def compared(run: Path, names: Sequence[str], models: Collection[str]) -> Iterator[str]:
    """Yield the table of differences in Trust between the winner and each baseline."""
    yield _line(f"{WINNER} minus", *names)
    yield "|:--|" + "--:|" * len(names)
    for theirs in (model for model in BASELINES if model in models):
        yield _line(
            theirs, *(_difference(*paired(run / "eval" / n, theirs, "trust")) for n in names)
        )


def goal(run: Path, name: str, found: Results) -> str:
    """Return how far the winner is from the student with the highest mean Trust."""
    trust = {
        model: mean(_known([m.trust for m in found[model]])) for model in STUDENTS if model in found
    }
    best = max(trust, key=lambda model: trust[model])
    if best == WINNER:
        return f"Goal: {WINNER} is the best student."
    lost = 100 * (trust[WINNER] - trust[best])
    verdict = "met" if lost >= GOAL else "missed"
    gap = _difference(*paired(run / "eval" / name, best, "trust"))
    return f"Goal: {verdict}; {WINNER} minus the best student, {best}: {gap}."


def _ran(folder: Path, arm: str) -> bool:
    return any(next(folder.glob(f"{arm}{seed}.parquet"), None) for seed in ("", "@*"))


def _heading(name: str) -> str:
    return f"{name}: conf." if name == UNANSWERED else f"{name}: Acc / ECE / Trust"


def _difference(questions: Difference, seeds: Difference | None) -> str:
    both = [questions] if seeds is None else [questions, seeds]
    text = f"{100 * questions.value:+.1f}"
    if all(one.distinguishable for one in both):
        text = f"**{text}**"
    return f"{text} {'; '.join(_range(one.interval) for one in both)}"


def _range(interval: Interval) -> str:
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _cell(values: Sequence[float | None], factor: float = 100, digits: int = 1) -> str:
    scaled = [factor * value for value in _known(values)]
    spread = f" ± {stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{mean(scaled):.{digits}f}{spread}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables of each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    for run in parser.parse_args().runs:
        names = evaluations(run)
        found = {name: results(run / "eval" / name) for name in names}
        blocks = [
            [f"### {run.name}"],
            in_domain(found[names[0]]),
            out_of_domain({name: found[name] for name in names[1:]}),
            compared(run, [n for n in names if n != UNANSWERED], found[names[0]]),
            [goal(run, names[0], found[names[0]])],
        ]
        print("\n\n".join("\n".join(block) for block in blocks), end="\n\n")


if __name__ == "__main__":
    main()
