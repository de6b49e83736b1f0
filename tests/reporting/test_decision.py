"""The decision of a report: each verdict, and how often it names a winner where there is none.

`python tests/reporting/test_decision.py` prints the rates that docs/report.md states.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import Difference, Interval
from firstcli.recipe.sections import MetricsSettings
from firstcli.reporting.data import PLUS_T, ArmFacts, Compared, ComparisonTest, ReportData
from firstcli.reporting.decision import COARSE, Decision, decide, detectable, standing
from support.invented_report import answers, everything, report

FIRST = ArmFacts("temperature-scaling", None, 5, 0.99)
PLAIN = ArmFacts("none", None, 5, 0.99)
ARMS = {"distill": PLAIN, "first": FIRST}


def judged(right: Mapping[str, tuple[float, int]], n: int = 2000, **changes: Any) -> ReportData:
    """Return a report of rows with one confidence each and a number of right answers."""
    content: dict[str, Any] = {
        "members": {row: (row.replace(PLUS_T, "+T"),) for row in right},
        "evaluations": ["csqa"],
        "records": {
            ("csqa", row.replace(PLUS_T, "+T")): answers(confidence, count, n)
            for row, (confidence, count) in right.items()
        },
        "arms": {row: ARMS.get(row, FIRST) for row in right if not row.startswith("fine-tune")},
        "labels_only": frozenset({"fine-tune"}),
    }
    return report(**(content | changes))


def test_a_student_that_is_clearly_best_is_shipped() -> None:
    decision = decide(
        judged({"fine-tune": (0.9, 1400), "fine-tune + T": (0.7, 1400), "first": (0.8, 1600)})
    )
    assert decision.verdict == "ship"
    assert decision.headline == "Ship `first`: its Trust on csqa is clearly the highest."
    ship = decision.ship
    assert ship and (ship.row, ship.arm, ship.posthoc) == ("first", "first", False)
    assert ship.folder == "students/first" and decision.level == ("first",)
    assert "accuracy 80.0, ECE 0.0, Trust 80.0" in decision.reasons[0]
    assert decision.commands == (
        'first predict RUN --arm first "..."',
        "first export RUN --arm first DIR",
        'first export RUN --arm "fine-tune + T" DIR',
    )


def test_a_temperature_belongs_to_the_student_that_needs_it() -> None:
    rows = {"distill": (0.95, 1600), "distill + T": (0.8, 1600), "first": (0.8, 1400)}
    decision = decide(judged(rows))
    assert decision.verdict == "ship"
    assert decision.headline.startswith("Ship `distill + T`: its Trust")
    ship = decision.ship
    assert ship and (ship.arm, ship.posthoc, ship.folder) == ("distill", True, "students/distill")
    assert decision.commands[1] == 'first export RUN --arm "distill + T" DIR'


def test_a_student_that_needs_no_temperature_is_shipped_without_it() -> None:
    rows = {"fine-tune": (0.9, 1200), "first": (0.8, 1600), "first + T": (0.801, 1600)}
    decision = decide(judged(rows))
    assert decision.verdict == "ship" and decision.ship and decision.ship.row == "first"
    assert decision.headline.endswith("; its temperature makes no clear difference.")


def test_the_headline_claims_nothing_of_the_plain_student_that_holds_with_its_temperature() -> None:
    rows = {"fine-tune": (0.76, 1520), "first": (0.81, 1600), "first + T": (0.8, 1600)}
    decision = decide(data := judged(rows))
    assert decision.verdict == "ship" and decision.ship and decision.ship.row == "first"
    assert not data.compared("csqa", "first", "fine-tune")["trust"].distinguishable
    assert decision.headline == (
        "Ship `first`: level with `first + T`, whose Trust on csqa is clearly the highest, and "
        "simpler without a temperature."
    )


def test_a_plain_student_is_not_called_unbeaten_where_only_its_temperature_is() -> None:
    rows = {"fine-tune": (0.805, 6400), "fine-tune + T": (0.8, 6400), "first": (0.798, 6385)}
    decision = decide(judged(rows, n=8000))
    assert decision.verdict == "not-worth-it" and decision.ship and decision.ship.row == "fine-tune"
    assert decision.headline.endswith("`fine-tune` is level with the best, `fine-tune + T`.")


def test_a_student_that_is_shipped_plain_says_why_its_temperature_is_not() -> None:
    level = {"distill": (0.8, 1600), "distill + T": (0.801, 1600), "first": (0.8, 1602)}
    headline = decide(judged({**level, "fine-tune": (0.9, 1200)})).headline
    assert headline.startswith("Ship `first` or `distill`")
    worse = {"distill": (0.8, 1600), "distill + T": (0.95, 1600), "fine-tune": (0.9, 1200)}
    assert decide(judged(worse)).headline.endswith("highest; its temperature makes it worse.")
    rows = {"distill": (0.8, 1602), "distill + T": (0.801, 1602), "first": (0.8, 1600)}
    either = decide(judged({**rows, "fine-tune": (0.9, 1200)})).headline
    assert either.startswith("Ship `distill` or `first`: ")
    assert either.endswith("on csqa; its temperature makes no clear difference.")


def varied(right: int, n: int = 900) -> EvalRecords:
    """Return n questions with three equally frequent answers, the first `right` answered so."""
    answers = [i % 3 for i in range(n)]
    predictions = [a if i < right else (a + 1) % 3 for i, a in enumerate(answers)]
    log_probs = [np.log(np.roll([0.6, 0.2, 0.2], p)) for p in predictions]
    return EvalRecords.from_log_probs([f"q{i:04}" for i in range(n)], answers, log_probs)


def test_models_that_guess_are_named_with_what_to_do() -> None:
    def reasons(right: int) -> list[str]:
        models = {"fine-tune": right, "first": 700}
        records = {("csqa", name): varied(count) for name, count in models.items()}
        found = decide(judged(dict.fromkeys(models, (0.9, 1)), records=records)).reasons
        return [reason for reason in found if "guessing" in reason]

    (reason,) = reasons(310)
    assert reason.startswith(
        "`fine-tune` answers csqa not clearly better than guessing (a random candidate: 33"
    )
    assert "first plan --show 2" in reason
    assert reasons(400) == []


def test_of_two_level_students_the_simpler_is_named_first() -> None:
    rows = {"fine-tune": (0.9, 1200), "distill + T": (0.8, 1602), "first": (0.8, 1600)}
    decision = decide(judged(rows))
    assert decision.verdict == "either"
    assert decision.headline == (
        "Ship `first` or `distill + T`: no clear difference in Trust on csqa."
    )
    assert decision.level == ("distill + T", "first")
    assert "level with it: `distill + T` (80.0)" in decision.reasons[0].replace("80.1", "80.0")


@pytest.mark.parametrize(("arms", "method"), [(ARMS, "FIRST"), ({"a": PLAIN}, "distillation")])
def test_labels_that_are_level_make_the_teacher_unnecessary(arms: Any, method: str) -> None:
    rows = {"fine-tune": (0.95, 1600), "fine-tune + T": (0.8, 1600), "a": (0.8, 1604)}
    decision = decide(judged(rows, arms=arms))
    assert decision.verdict == "not-worth-it"
    assert decision.headline == (
        f"Do not bother with {method} here: `fine-tune + T` is level with the best, `a`."
    )
    assert decision.ship and decision.ship.row == "fine-tune + T"
    best = {"fine-tune": (0.95, 1600), "fine-tune + T": (0.8, 1606), "a": (0.8, 1600)}
    assert decide(judged(best)).headline.endswith("nothing is clearly better than `fine-tune + T`.")


def test_many_level_students_are_no_winner() -> None:
    rows = {"a": (0.9, 3200), "b": (0.9, 3201), "c": (0.9, 3202), "d": (0.9, 3201)}
    data = judged(rows, n=4000)
    decision = decide(data)
    assert decision.verdict == "no-winner" and decision.level == ()
    assert decision.headline == "No clear winner: `c`, `b`, `d` and 1 more are level on csqa."
    two = decide(judged({"a": (0.9, 3200), "b": (0.9, 3201)}, n=4000))
    assert two.verdict == "either"


def test_too_few_questions_are_said_to_be_too_few() -> None:
    rows = {"fine-tune": (0.8, 80), "first": (0.8, 84)}
    decision = decide(judged(rows, n=100))
    assert decision.verdict == "too-few-questions"
    assert decision.detectable and decision.detectable > 0.03
    points = round(100 * decision.detectable)
    assert decision.headline == (
        f"Too few questions to tell: differences below {points} points are invisible at n = 100."
    )
    assert decision.ship and decision.ship.row == "first"  # the best guess, not the simplest
    tiny = decide(
        judged(
            rows,
            n=12,
            records={
                ("csqa", "fine-tune"): answers(0.8, 6, 12),
                ("csqa", "first"): answers(0.8, 12, 12),
            },
        )
    )
    assert tiny.headline == "Too few questions to tell: intervals need 20 questions, and n = 12."


def test_a_coarse_test_never_calls_students_level() -> None:
    rows = {"a": (0.9, 20), "b": (0.75, 225), "c": (0.75, 228)}
    decision = decide(judged(rows, n=300))
    assert standing(judged(rows, n=300), "csqa").behind == ("a",)  # type: ignore[union-attr]
    assert (decision.verdict == "too-few-questions") == (decision.detectable > COARSE)  # type: ignore[operator]


def test_the_detectable_difference_is_the_half_width_towards_zero() -> None:
    questions = Difference(0.05, Interval(0.01, 0.12), 0.01)
    assert detectable(Compared(questions, None)) == pytest.approx(0.04)
    assert detectable(
        Compared(Difference(-0.05, Interval(-0.12, -0.01), 0.01), None)
    ) == pytest.approx(0.04)
    seeds = Difference(0.05, Interval(-0.02, 0.12), 0.1)
    assert detectable(Compared(questions, seeds)) == pytest.approx(0.07)


def test_the_first_evaluation_decides_and_the_others_are_stated() -> None:
    names = ("csqa", "shifted", "same", "b", "c", "d")
    right = {"a": 1600, "b": 1200}
    records = {(name, row): answers(0.8, k, 2000) for name in names for row, k in right.items()}
    records["shifted", "b"] = answers(0.95, 1900, 2000)
    records["same", "b"] = answers(0.8, 1600, 2000)
    members = {row: (row,) for row in right}
    data = report(members=members, evaluations=names, records=records)
    decision = decide(data)
    assert decision.verdict == "ship" and decision.ship and decision.ship.row == "a"
    first, shifted, same, _, rest = decision.reasons[:5]  # then who only guesses
    assert first.startswith("csqa (decides): `a` has") and "clearly behind: `b` (40.0)" in first
    assert shifted.startswith("shifted: `b` is clearly better, by ")
    assert same.startswith("same: no student is clearly better; `a` has")
    assert rest == "2 further evaluations: `a` is level with the best on 2 and clearly behind on 0."
    assert decide(report(members=members, evaluations=["shifted", "csqa"], records=records)).ship


def seeded(*right: int, n: int = 2000) -> ReportData:
    members = {row: tuple(f"{row}@{s}" for s in (1, 2, 3)) for row in ("a", "b")}
    records = {("csqa", f"a@{s}"): answers(0.8, n * 3 // 4, n) for s in (1, 2, 3)}
    records |= {("csqa", f"b@{s}"): answers(0.8, k, n) for s, k in enumerate(right, 1)}
    return report(members=members, evaluations=["csqa"], records=records, seeds=(1, 2, 3))


def test_seeds_that_disagree_name_no_winner() -> None:
    clear, scattered = decide(seeded(1598, 1600, 1602)), decide(seeded(1100, 1600, 1990))
    assert clear.verdict == "ship" and clear.ship and clear.ship.folder == "students/b@1"
    assert scattered.verdict == "too-few-questions" and scattered.level == ()
    assert any(limit.startswith("3 seeds") for limit in clear.limits)


def test_seeds_are_not_blamed_on_the_number_of_questions() -> None:
    scattered = decide(seeded(11000, 16000, 19900, n=20000))
    assert scattered.verdict == "too-few-questions" and scattered.detectable
    points = round(100 * scattered.detectable)
    invisible = f"below {points} points are invisible at n = 20,000 with 3 seeds."
    assert scattered.headline == f"Too few seeds to tell: differences {invisible}"
    assert scattered.limits[0].endswith(f"below about {invisible.removeprefix('below ')}")


def test_commands_name_the_model_of_one_seed() -> None:
    members = {"a": ("a@1", "a@2"), "a + T": ("a@1+T", "a@2+T")}
    records = {("csqa", name): answers(0.8, 1500, 2000) for row in members.values() for name in row}
    data = report(members=members, evaluations=["csqa"], records=records, seeds=(1, 2))
    decision = decide(data)
    assert decision.ship and decision.ship.model == "a@1"
    assert decision.commands == (
        'first predict RUN --arm a@1 "..."',
        "first export RUN --arm a@1 DIR",
        'first export RUN --arm "a@1 + T" DIR',
    )


def test_a_correction_holds_for_the_verdict() -> None:
    rows = {"a": (0.9, 150), **{name: (0.9, 150) for name in "bcdef"}, "g": (0.9, 158)}
    plain = judged(rows, n=200, settings=MetricsSettings())
    holm = judged(rows, n=200, settings=MetricsSettings(correction="holm"))
    assert plain.distinguishable("csqa", "a", "g", "trust")
    assert not holm.distinguishable("csqa", "a", "g", "trust")
    assert decide(plain).verdict == "ship" and decide(holm).verdict != "ship"
    assert "Holm" in decide(holm).limits[0]


def test_rows_that_are_best_in_nothing_can_be_compared() -> None:
    """The forest compares the chosen student with all others, whoever is best in a metric.

    `b + T` has the accuracy of `b`, which counts as the best in it, and not the best ECE.
    """
    rows = {"a": (0.6, 1200), "b": (0.9, 1500), "b + T": (0.76, 1500), "c": (0.6, 1000)}
    for correction in ("none", "holm"):
        settings = MetricsSettings.model_validate({"correction": correction})
        data = judged(rows, settings=settings)
        pairs = {tuple(sorted(test.rows)) for test in data.p_values if test.metric == "accuracy"}
        assert ("b + T", "c") not in pairs
        assert data.distinguishable("csqa", "b + T", "c", "accuracy")


def test_runs_with_nothing_to_compare() -> None:
    teacher = decide(judged({"teacher": (0.8, 1600)}))
    assert (teacher.verdict, teacher.ship) == ("undecided", None)
    assert "only the teacher was evaluated" in teacher.headline
    alone = decide(judged({"teacher": (0.8, 1600), "first": (0.8, 1500)}, labels_only=frozenset()))
    assert alone.verdict == "only-student" and alone.ship and alone.ship.row == "first"
    assert any("posthoc" in limit for limit in alone.limits)
    assert any("learn: labels" in limit for limit in alone.limits)
    unanswerable = report(
        evaluations=["none"], records={("none", "first"): answers(0.6, 0, answerable=False)}
    )
    assert decide(unanswerable).verdict == "undecided"
    assert decide(report(records={})).verdict == "undecided"


def test_rows_without_a_trust_or_with_other_questions_are_named() -> None:
    full = judged(
        {"fine-tune": (0.9, 1400), "fine-tune + T": (0.8, 1400), "first": (0.8, 1600)},
        settings=MetricsSettings(confidence="full"),
        records={
            ("csqa", "fine-tune"): answers(0.9, 1400, 2000),
            ("csqa", "fine-tune+T"): answers(0.8, 1400, 2000, post_hoc=True),
            ("csqa", "first"): answers(0.8, 1600, 2000),
        },
    )
    assert "Without a Trust on csqa: `fine-tune + T`." in decide(full).limits
    other = judged({"a": (0.8, 1600), "b": (0.8, 1200), "c": (0.8, 900)})
    other = judged(
        {"a": (0.8, 1600), "b": (0.8, 1200), "c": (0.8, 10)},
        records=dict(other.records) | {("csqa", "c"): answers(0.8, 10, 100)},
    )
    decision = decide(other)
    assert decision.verdict == "ship" and decision.level == ("a",)
    assert any("different questions and were not compared: `c`" in each for each in decision.limits)
    apart = judged(
        {"a": (0.8, 1600), "b": (0.8, 80)},
        records={("csqa", "a"): answers(0.8, 1600, 2000), ("csqa", "b"): answers(0.8, 80, 100)},
    )
    assert decide(apart).verdict == "undecided"


def test_json_holds_what_predict_reads() -> None:
    content = json.loads(decide(everything()).to_json())
    assert content["format"] == 1 and content["ship"]["folder"].startswith("students/")
    assert {"headline", "verdict", "ship", "reasons", "limits", "commands"} <= content.keys()
    assert {"arm", "posthoc", "folder"} <= content["ship"].keys()
    assert json.loads(Decision("undecided", "x").to_json())["ship"] is None


def equally_good(seed: int, rows: Sequence[str], n: int, over: float) -> ReportData:
    """Return students of the same quality: they agree in what is difficult, not in their errors.

    Args:
        seed: of the draws.
        rows: the students.
        n: number of questions.
        over: by how much the confidences exceed the chance of being right.
    """
    random = np.random.default_rng(seed)
    hard = random.beta(3, 1.2, n)
    ids = [f"q{i}" for i in range(n)]
    records = {}
    for row in rows:
        chance = np.clip(hard + random.normal(0, 0.08, n), 0.02, 0.98)
        sure = np.clip(chance + over, 0.51, 0.99)
        log_probs = [np.log([c, 1 - c]) for c in sure]
        right = (random.random(n) >= chance).astype(int).tolist()
        records["null", row] = EvalRecords.from_log_probs(ids, right, log_probs)
    members = {row: (row,) for row in rows}
    return report(members=members, evaluations=["null"], records=records)


def rates(draws: int, students: int, n: int, over: float) -> Counter[str]:
    rows = [f"s{i}" for i in range(students)]
    return Counter(decide(equally_good(i, rows, n, over)).verdict for i in range(draws))


@pytest.mark.parametrize(("students", "over"), [(2, 0.1), (3, 0.0)])
def test_a_winner_is_rarely_named_where_there_is_none(students: int, over: float) -> None:
    found = rates(40, students, 200, over)
    assert found["ship"] <= 5  # with a rate of 5 %, more would happen in 1 % of such tests
    assert found["undecided"] == found["only-student"] == 0


if __name__ == "__main__":
    for count in (2, 4):
        for size in (100, 400, 1000):
            for gap in (0.0, 0.1):
                print(count, size, gap, dict(rates(200, count, size, gap)), flush=True)


def test_rows_that_no_test_compares_differ_without_a_correction_alone() -> None:
    """The chosen student of the figure need be neither the best in a metric nor a baseline."""
    rows = {"a": (0.9, 110), "b": (0.9, 118), "c": (0.9, 178)}
    for correction, expected in (("none", True), ("holm", False)):
        data = judged(
            rows, n=200, settings=MetricsSettings.model_validate({"correction": correction})
        )
        assert ComparisonTest("csqa", frozenset(("a", "b")), "accuracy") not in data.p_values
        assert data.compared("csqa", "a", "b")["accuracy"].distinguishable
        assert data.distinguishable("csqa", "a", "b", "accuracy") is expected
