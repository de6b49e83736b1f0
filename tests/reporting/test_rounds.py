"""The page of the rounds: means over seeds, what is needed, and what was picked."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from firstcli.metrics.learning_curves import MeanOverSeeds, NotReached
from firstcli.reporting.rounds import (
    PickedQuestion,
    PickedRound,
    RoundsData,
    costless,
    in_text,
    last_rows,
    needed_csv,
    needed_in_text,
    rounds_table,
    to_csv,
)
from firstcli.reporting.rounds_page import write_rounds

POOL = 100


def facts(arm: str, seed: int, number: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A round of 50 annotations with 10 tokens each."""
    metrics = {"accuracy": accuracy, "ece": 0.2, "trust": accuracy - 0.2}
    return {
        "arm": arm,
        "seed": seed,
        "round": number,
        "pool": POOL,
        "asked": 50 * number,
        "annotations": 50 * number,
        "tokens_read": 400 * number,
        "tokens_written": 100 * number,
        "failures": 0,
        "contradictions": None,
        "retried": 0,
        "flawed": 3 * number,
        "right_for_wrong_reasons": None,
        "evaluations": {"test": {arm: metrics, f"{arm} + T": {**metrics, "ece": 0.1}}},
        **changes,
    }


def rounds(arm: str, accuracies: dict[int, tuple[float, ...]]) -> dict[int, list[dict[str, Any]]]:
    return {
        seed: [facts(arm, seed, number, value) for number, value in enumerate(values)]
        for seed, values in accuracies.items()
    }


DATA = RoundsData(
    "tiny",
    {
        "random": rounds("random", {1: (0.2, 0.4, 0.8), 2: (0.2, 0.6, 1.0)}),
        "entropy": rounds("entropy", {1: (0.2, 0.76, 0.8), 2: (0.2, 0.95, 1.0)}),
    },
    ["test"],
    [
        PickedRound(
            "entropy",
            1,
            [
                PickedQuestion(
                    prompt="2 + <b>2</b>?",
                    score=0.5,
                    said=["two", "<i>two"],
                    answered="five",
                    unsure=1,
                    taught=["two", "more"],
                    right="four",
                    flaw=1,
                )
            ],
        )
    ],
)


def test_rows_and_places() -> None:
    assert DATA.rows == ["random", "random + T", "entropy", "entropy + T"]
    assert DATA.places == ["annotations", "tokens"]
    curve = DATA.curves("test", "random + T", "ece", "tokens")[2]
    assert curve.places.tolist() == [0.0, 500.0, 1000.0]
    assert curve.values.tolist() == [0.1] * 3


def test_everything_was_annotated_by_the_last_round() -> None:
    assert DATA.whole("test") == pytest.approx({1: 0.8, 2: 1.0})
    levels, text = DATA.levels("test")
    assert levels == pytest.approx({1: 0.76, 2: 0.95})
    assert text == "95 % of the accuracy of annotating everything"


@pytest.mark.parametrize("failing", [(1,), (1, 2)])
def test_failures_are_part_of_annotating_everything(failing: tuple[int, ...]) -> None:
    some = rounds("all", {1: (0.2, 0.4, 0.8), 2: (0.2, 0.6, 1.0)})
    for seed in failing:
        some[seed][-1]["annotations"] -= 1
        some[seed][-1]["failures"] = 1
    data = RoundsData("tiny", {"all": some}, ["test"])
    assert data.whole("test") == pytest.approx({1: 0.8, 2: 1.0})
    assert data.levels("test")[1] == "95 % of the accuracy of annotating everything"


def test_the_level_says_how_many_seeds_it_is_about() -> None:
    some = rounds("all", {1: (0.2, 0.4, 0.8), 2: (0.2, 0.6)})
    data = RoundsData("tiny", {"all": some}, ["test"])
    levels, text = data.levels("test")
    assert levels == pytest.approx({1: 0.76})
    assert text == "95 % of the accuracy of annotating everything (1 of 2 seeds)"


def test_needed_annotations_are_paired_by_seed() -> None:
    random, entropy = DATA.needed("test", "annotations")
    assert isinstance(entropy.needed, MeanOverSeeds) and isinstance(random.needed, MeanOverSeeds)
    assert entropy.needed.value == pytest.approx(50.0)
    each = [50 + 50 * (0.76 - 0.4) / 0.4, 50 + 50 * (0.95 - 0.6) / 0.4]
    assert random.needed.value == pytest.approx(sum(each) / 2)
    versus = random.versus["entropy"]
    assert isinstance(versus, MeanOverSeeds)
    assert versus.value == pytest.approx(sum(each) / 2 - 50)
    other = entropy.versus["random"]
    assert isinstance(other, MeanOverSeeds) and other.value == pytest.approx(-versus.value)


def test_without_an_arm_that_annotates_everything_the_best_one_counts() -> None:
    part = {seed: every[:2] for seed, every in DATA.rounds["entropy"].items()}
    data = RoundsData(
        "tiny",
        {"random": rounds("random", {1: (0.1, 0.3), 2: (0.1, 0.3)}), "entropy": part},
        ["test"],
    )
    levels, text = data.levels("test")
    assert levels == pytest.approx({1: 0.95 * 0.76, 2: 0.95 * 0.95})
    assert text == "95 % of the last accuracy of entropy, the best arm"
    random, _ = data.needed("test", "annotations")
    assert random.needed == NotReached(2, 2)
    assert in_text(random.needed) == "not reached in 2 of 2 seeds"


def test_no_seed_disappears_without_a_word() -> None:
    """One arm lacks a seed, one does not reach the level in a seed, one has no rounds at all."""
    data = RoundsData(
        "tiny",
        {
            "all": rounds("all", {1: (0.2, 0.4, 0.8), 2: (0.2, 0.6, 1.0), 3: (0.2, 0.6, 1.0)}),
            "late": rounds("late", {1: (0.2, 0.4), 2: (0.2, 0.96), 3: (0.2, 0.96)}),
            "new": rounds("new", {1: (0.2, 0.8), 2: (0.2, 1.0)}),
            "none": {},
        },
        ["test"],
    )
    whole, late, new, none = data.needed("test", "annotations")
    assert in_text(late.needed, 3) == "not reached in 1 of 3 seeds"
    assert late.versus["all"] == NotReached(1, 3)
    assert in_text(new.needed, 3).endswith(" (2 of 3 seeds)")
    assert not in_text(whole.needed, 3).endswith("seeds)")
    assert none.needed is None and in_text(none.versus["all"], 3) == "–"
    assert {row[0]: row[1] for row in last_rows(data, "test")} == {
        **{"all": "3", "all + T": "3", "late": "3", "late + T": "3"},
        **{"new": "2", "new + T": "2"},
    }
    lines = list(csv.DictReader(io.StringIO(needed_csv(data))))
    found = {
        (row["arm"], row["more_than"]): (row["seeds"], row["not_reached"])
        for row in lines
        if row["by"] == "annotations"
    }
    assert len(found) == 4 * 4
    assert found["late", ""] == ("3", "1")
    assert found["new", "all"] == ("2", "0")
    assert found["none", ""] == ("0", "")


def test_the_table_of_rounds_has_what_was_measured() -> None:
    some = {
        1: [facts("all", 1, 1, 0.5, annotations=1200, contradictions=2), facts("all", 1, 2, 0.6)]
    }
    headings, rows = rounds_table(RoundsData("tiny", {"all": some}, ["test"]))
    assert headings == [
        *("arm", "seed", "round", "annotations", "failed", "contradict the label"),
        "flaws found in the student's steps",
    ]
    assert rows == [
        ["all", "1", "1", "1,200", "0", "2", "3"],
        ["all", "1", "2", "100", "0", "–", "6"],
    ]


def test_what_costs_nothing_and_what_is_reached_at_the_start_say_so() -> None:
    free = {1: [facts("free", 1, n, 0.9, tokens_read=0, tokens_written=0) for n in (0, 1)]}
    data = RoundsData("tiny", {"free": free, **DATA.rounds}, ["test"])
    assert costless(data) == {"annotations": [], "tokens": ["free"]}
    needed = data.needed("test", "annotations")[0].needed
    assert needed_in_text(needed, 2) == "0 (1 of 2 seeds): reached at the start"
    assert next(last_rows(data, "test"))[:4] == ("free", "1", "50", "0")


def test_the_csv_has_every_round() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(DATA))))
    assert len(lines) == 2 * 2 * 3 * 2  # arms, seeds, rounds, rows
    last = lines[-1]
    assert (last["arm"], last["seed"], last["round"], last["model"]) == (
        *("entropy", "2", "2"),
        "entropy + T",
    )
    assert float(last["accuracy"]) == 1.0
    assert (last["flawed"], last["right_for_wrong_reasons"]) == ("6", "")


def test_the_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_rounds(tmp_path / name, DATA)
    page = (tmp_path / "one" / "index.html").read_text("utf-8")
    assert "<td>100</td><td>0</td><td>6</td></tr>" in page
    assert "contradict the label" not in page  # nowhere measured
    assert (
        "<li>two</li>" in page and "<p>Answer: five</p>" in page and "<p>Answer: four</p>" in page
    )
    assert page == (tmp_path / "two" / "index.html").read_text("utf-8")
    assert "Annotations needed for 95 % of the accuracy of annotating everything" in page
    assert "2 + &lt;b&gt;2&lt;/b&gt;?" in page
    assert "<mark>&lt;i&gt;two</mark> <small>(first flaw)</small>" in page
    assert page.count('<div class="texts">') == 1
    assert page.count("<div>") == 2  # both texts, beside each other
    assert page.count("<img ") == 6  # three metrics, by annotations and by tokens
    figures = {path.name for path in (tmp_path / "one" / "figures").iterdir()}
    assert figures == {f"{place}+test.{kind}" for place in DATA.places for kind in ("svg", "png")}
