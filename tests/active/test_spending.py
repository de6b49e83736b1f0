"""The budget: what a round may spend, in samples, tokens and money."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.active.planning import asked_besides
from firstcli.active.spending import Spent, affordable
from firstcli.active.stopping import has_stopped
from firstcli.recipe.active import Active, Stop


def active(budget: dict[str, Any], rounds: int = 4) -> Active:
    return Active.model_validate(
        {
            "seed_samples": 1,
            "budget": budget,
            "rounds": rounds,
            "prices": {"read": 2.0, "written": 10.0},
        }
    )


ONE = Spent(1, 30, 20)


def test_a_budget_of_samples_is_spread_evenly() -> None:
    spent, counts = Spent(), []
    for number in range(1, 5):
        counts.append(affordable(active({"samples": 10}), spent, ONE, number, 100))
        spent += Spent(counts[-1])
    assert counts == [2, 3, 2, 3]


def test_the_first_limit_that_is_reached_counts() -> None:
    section = active({"samples": 100, "tokens": 400}, rounds=1)
    assert affordable(section, Spent(), ONE, 1, 1000) == 8
    assert affordable(section, Spent(6, 180, 120), ONE, 1, 1000) == 2
    assert affordable(section, Spent(8, 240, 160), ONE, 1, 1000) == 0
    assert affordable(section, Spent(), ONE, 1, 3) == 3


def test_money() -> None:
    section = active({"cost": 0.0026}, rounds=1)  # one costs (30 * 2 + 20 * 10) / 1e6
    assert affordable(section, Spent(), ONE, 1, 1000) == 10
    assert affordable(active({"cost": 0.0026}, rounds=2), Spent(), ONE, 1, 1000) == 5


def test_what_costs_nothing_is_limited_by_the_questions() -> None:
    assert affordable(active({"tokens": 10}), Spent(), Spent(1, 0, 0), 1, 7) == 7


@given(st.integers(1, 500), st.integers(1, 12), st.integers(1, 600))
def test_all_rounds_together_spend_the_budget(samples: int, rounds: int, pool: int) -> None:
    section, spent = active({"samples": samples}, rounds), Spent()
    for number in range(1, rounds + 1):
        count = affordable(section, spent, ONE, number, pool - spent.samples)
        spent += Spent(count)
        assert spent.samples <= samples * number / rounds
    assert spent.samples == min(samples, pool)


def test_spent_adds_up() -> None:
    assert Spent(1, 3, 4) + Spent(1, 1, 0) == Spent(2, 4, 4)
    assert Spent(2, 4, 5).tokens == 9


def test_the_mean_of_several_annotations_decides() -> None:
    section = active({"tokens": 1000}, rounds=2)
    assert affordable(section, Spent(3, 100, 50), Spent(3, 100, 50), 1, 100) == 7


@pytest.mark.parametrize(
    ("is_remote", "learn", "expected"),
    [(True, "knowledge", 5 + (3 + 10) * 2), (True, "labels", 0), (False, "knowledge", 0)],
)
def test_what_a_server_is_asked_besides(is_remote: bool, learn: str, expected: int) -> None:
    model = SimpleNamespace(plugin=SimpleNamespace(is_remote=is_remote))
    arms = {"one": SimpleNamespace(learn=learn), "other": SimpleNamespace(learn="labels")}
    run: Any = SimpleNamespace(
        recipe=SimpleNamespace(teacher=SimpleNamespace(model=model), arms=arms)
    )
    plans: Any = [
        SimpleNamespace(arm=arm, seed_samples=3, annotations=10, held_out=5)
        for arm in ("one", "one", "other")
    ]
    assert asked_besides(run, plans) == expected


def rounds(*values: float) -> list[dict[str, Any]]:
    return [
        {"arm": "first", "evaluations": {"active-held-out": {"first": {"ece": v, "accuracy": v}}}}
        for v in values
    ]


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ((0.5,), False),
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.5), True),
        ((0.5, 0.4, 0.51), False),
        ((0.5, 0.6, 0.6), False),
        ((0.5, 0.6, 0.6, 0.55), True),
    ],
)
def test_patience(values: tuple[float, ...], stops: bool) -> None:
    assert has_stopped(Stop(patience=2, metric="accuracy"), rounds(*values)) == stops


def test_lower_errors_are_better() -> None:
    stop = Stop(patience=1, metric="ece")
    assert not has_stopped(stop, rounds(0.3, 0.2))
    assert has_stopped(stop, rounds(0.2, 0.3))
    assert not has_stopped(None, rounds(0.2, 0.3))
