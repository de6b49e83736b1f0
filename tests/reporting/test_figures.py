"""The report's figures: their numbers against naive ones, their looks, their files."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

from firstcli.metrics import accuracy_at, reliability_bins, summarize
from firstcli.metrics.records import EvalRecords
from firstcli.reporting import (
    concentration,
    coverage,
    forest,
    questions,
    ranks,
    reliability,
    scatter,
    studies,
)
from firstcli.reporting import temperature as temperatures
from firstcli.reporting.data import FittedRecalibrator
from firstcli.reporting.style import Drawing, Numbers, Panel, heading, looks, png, save, shortened
from support.invented_report import (
    CALIBRATION,
    CONCENTRATION,
    EVIL,
    answers,
    curve,
    everything,
    report,
)


def some_records(seed: int = 0, n: int = 60) -> EvalRecords:
    """Return questions of two to four candidates with random answers."""
    random = np.random.default_rng(seed)
    rows = [np.log(random.dirichlet(np.ones(2 + i % 3))) for i in range(n)]
    right = [int(random.integers(len(row))) for row in rows]
    return EvalRecords.from_log_probs([f"q{i}" for i in range(n)], right, rows)


def numbers(drawing: Drawing | None) -> list[tuple[object, ...]]:
    assert drawing
    return list(drawing.numbers.rows)


def test_ranks_equal_a_naive_count() -> None:
    records = some_records()
    profile = ranks.profile(records)
    assert [r.rank for r in profile] == [1, 2, 3, 4]
    for rank in profile:
        predicted, right = [], []
        for i in range(len(records)):
            given = np.exp(records.log_probs[i, : records.count[i]])
            order = sorted(range(len(given)), key=lambda c: -given[c])
            if len(order) >= rank.rank:
                predicted.append(given[order[rank.rank - 1]] / given.sum())
                right.append(order[rank.rank - 1] == records.answer[i])
        assert rank.n == len(predicted)
        assert rank.confidence == pytest.approx(np.mean(predicted))
        assert rank.frequency == pytest.approx(np.mean(right))
    assert profile[0].frequency == pytest.approx(records.correct.mean())


def test_ranks_show_the_paper_s_models_and_the_recalibration() -> None:
    drawing = ranks.drawing(everything(), "csqa")
    assert drawing
    assert [panel.title for panel in drawing.panels] == ["teacher", "fine-tune", "distill", "first"]
    others = report(members={"a": ("fine-tune",), "b": ("first",)})
    assert {row[0] for row in numbers(ranks.drawing(others, "csqa"))} == {"a", "b"}
    assert numbers(ranks.validation(everything()))[:3] == [
        ("first: before", 1, 0.9, 0.6, 90),
        ("first: before", 2, 0.1, 0.3, 90),
        ("first: after", 1, 0.6, 0.6, 90),
    ]
    assert ranks.validation(report()) is None


def test_a_curve_is_the_accuracy_at_each_coverage() -> None:
    records = {("csqa", f"a@{seed}"): some_records(seed) for seed in (1, 2)}
    data = report(members={"a": ("a@1", "a@2")}, evaluations=["csqa"], records=records)
    curve = coverage.curve(data, "csqa", "a")
    assert curve is not None
    for share, value in zip(coverage.COVERAGES, curve, strict=True):
        each = [accuracy_at(share, one.confidence, one.correct) for one in records.values()]
        assert value == pytest.approx(np.mean(each))


def test_disputed_questions_have_the_largest_spread() -> None:
    answered = {name: some_records(seed) for seed, name in enumerate("abc")}
    answered = {
        name: EvalRecords.from_log_probs(  # with the same right answers
            records.ids,
            answered["a"].answer.tolist(),
            [row[:n] for row, n in zip(records.log_probs, records.count, strict=True)],
        )
        for name, records in answered.items()
    }
    spread = {}
    for i, id in enumerate(answered["a"].ids):
        given = [records.probabilities[i, records.answer[i]] for records in answered.values()]
        spread[id] = max(given) - min(given)
    chosen = questions.disputed(answered, 7)
    assert chosen == sorted(spread, key=lambda id: -spread[id])[:7]
    assert questions.disputed({"a": answered["a"]}) == []


def test_only_questions_that_all_rows_answered_are_chosen() -> None:
    fewer = answers(0.9, 3, n=5)
    assert set(questions.disputed({"a": answers(0.5, 9), "b": fewer}, 100)) == set(fewer.ids)


def test_a_long_prompt_loses_its_middle() -> None:
    assert questions.cut("short") == "short"
    cut = questions.cut("a" * 5000 + "b" * 5000)
    assert len(cut) < 800 and cut.startswith("aaa") and cut.endswith("bbb") and "9301" in cut


def test_the_search_shows_both_criteria_with_their_intervals() -> None:
    drawing = temperatures.search("first", CALIBRATION)
    assert drawing
    assert [panel.title for panel in drawing.panels] == ["first: ECE (selects T)", "first: NLL"]
    assert "T = 0.4 [0.36, 0.44]" in drawing.panels[0].description
    assert ("ECE", 0.4, 0.1) in drawing.numbers.rows
    assert temperatures.search("fixed", CALIBRATION._replace(curves={})) is None
    other = temperatures.search("other", FittedRecalibrator((), {"loss": curve(0.4, 0.1)}, None))
    assert other and other.panels[0].title == "other: loss"


def test_lines_join_arms_that_differ_only_in_temperature_or_k() -> None:
    data = everything()
    found = [row[:3] for row in numbers(temperatures.fixed(data, "csqa"))]
    assert found == [("temperature-scaling", "cold", 0.2), ("temperature-scaling", "warm", 0.8)]
    assert studies.top_k_lines(data) == {"temperature-scaling": ["k1", "first", "k20"]}
    rows = numbers(studies.top_k(data, "csqa"))
    assert [row[:4] for row in rows] == [
        ("k1", 1, 0.7, 2.1),
        ("first", 5, 0.99, 5.8),
        ("k20", 20, 0.999, None),
    ]
    assert rows[1][4:7] == pytest.approx(
        (0.05, *data.estimates("csqa", "first")["ece"].interval), abs=1e-9
    )
    assert temperatures.fixed(report(), "csqa") is None and studies.top_k(report(), "csqa") is None


def test_concentration_lists_mass_and_bytes() -> None:
    drawing = concentration.drawing(CONCENTRATION, 5)
    five = next(row for row in drawing.numbers.rows if row[0] == 5)
    assert five[1] == pytest.approx(1 - 0.3 / 25) and five[-1] == 5.8
    assert "the top 5 hold 98.8 percent" in drawing.panels[0].description


def test_confidence_where_no_answer_is_right() -> None:
    rows = numbers(studies.unanswerable(everything(), "none"))
    assert rows[0][0] == "teacher" and rows[0][1:] == pytest.approx((0.6, 0.6, 0.6))
    assert rows[-1] == ("1 / n", pytest.approx(1 / 3))
    seeds = [0.5, 0.9, 0.7]
    data = report(
        members={"first": [f"first@{at}" for at in range(3)]},
        evaluations=["none"],
        records={
            ("none", f"first@{at}"): answers(c, 0, answerable=False) for at, c in enumerate(seeds)
        },
    )
    interval = stats.ttest_1samp(seeds, 0).confidence_interval()
    expected = pytest.approx((0.7, interval.low, interval.high))
    assert numbers(studies.unanswerable(data, "none"))[0][1:] == expected
    assert studies.unanswerable(report(), "nowhere") is None


def test_each_row_has_its_own_look() -> None:
    rows = ["teacher", "teacher + T", *(f"arm{i}" for i in range(12)), "arm0 + T"]
    found = looks(rows)
    assert list(found) == rows and len(set(found.values())) == len(rows)
    assert found["arm0 + T"].color == found["arm0"].color and not found["arm0 + T"].filled


def test_shortened_keeps_both_ends() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("a-very-long-name", 9) == "a-ve…name"


def diagram(
    right: int = 160, title: str = "first", bins: int = 10, *, post_hoc: bool = False
) -> Drawing:
    pair = [reliability_curve(answers(0.85, right), title, bins)]
    if post_hoc:
        pair.append(reliability_curve(answers(0.75, right, post_hoc=True), f"{title} + T", bins))
    panel = reliability.panel(pair, "candidates")
    return Drawing("x", (panel,), Numbers(("n",), ((1,),)))


def reliability_curve(found: EvalRecords, row: str, bins: int) -> reliability.BinnedRow:
    drawn = reliability_bins(found.confidence, found.correct, bins)
    metrics = summarize(found, "candidates", bins)
    return reliability.BinnedRow(row, metrics, drawn, looks([row])[row])


def texts(svg: bytes) -> list[str]:
    found = [element for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]
    return ["".join(element.itertext()).strip() for element in found]


def test_a_diagram_prints_its_numbers(tmp_path: Path) -> None:
    (picture,) = save(diagram(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"x.svg", "x.png"}
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    found = texts(picture.svg)
    assert "first" in found and "confidence (candidates)" in found
    assert any("ECE 5.0 (null" in text and "Acc 80.0" in text for text in found)
    assert found.count("200") == 1  # questions in the fullest bin


def test_a_diagram_shows_a_model_before_and_after_its_temperature(tmp_path: Path) -> None:
    panel = diagram(160, post_hoc=True).panels[0]
    assert panel.title == "first → + T"
    assert "first: ECE 5.0 percent" in panel.description
    assert "first + T: ECE 5.0 percent" in panel.description
    assert "1 over-confident and 0 under-confident" in panel.description
    assert "0 over-confident and 1 under-confident" in panel.description
    (picture,) = save(diagram(160, post_hoc=True), tmp_path)
    assert any(text.startswith("ECE 5.0 → 5.0 (null") for text in texts(picture.svg))


def test_each_model_has_one_panel_and_the_first_ones_are_chosen() -> None:
    drawing = reliability.drawing(report(), "csqa", ("first", "teacher"))
    assert drawing
    titles = [panel.title for panel in drawing.panels]
    assert titles == ["first", "teacher", "fine-tune → + T", "distill"]
    assert {row[0] for row in drawing.numbers.rows} == set(report().rows)


def test_bins_with_few_questions_are_faded(tmp_path: Path) -> None:
    few = EvalRecords.from_log_probs(
        [f"q{i}" for i in range(100)],
        [0] * 100,
        [
            np.log([0.95, 0.05]) if i < reliability.FEW - 1 else np.log([0.75, 0.25])
            for i in range(100)
        ],
    )
    panel = reliability.panel([reliability_curve(few, "x", 10)], "candidates")
    (picture,) = save(Drawing("x", (panel,), Numbers(("n",), ())), tmp_path)
    many = reliability.panel([reliability_curve(answers(0.85, 90), "x", 10)], "candidates")
    (other,) = save(Drawing("x", (many,), Numbers(("n",), ())), tmp_path)
    assert "opacity: 0.3" in picture.svg.decode() and "opacity: 0.3" not in other.svg.decode()


def test_figures_have_colours_for_dark_mode(tmp_path: Path) -> None:
    (picture,) = save(diagram(post_hoc=True), tmp_path)
    svg = picture.svg.decode()
    style = re.search(r"@media \(prefers-color-scheme:dark\)\{(.*)\}</style>", svg)
    assert style
    exchanged = dict(re.findall(r'\[style\*="(\w+: #\w{6})"\],\[[^]]*\]\{(\w+:#\w{6})!', style[1]))
    assert exchanged["fill: #ffffff"] == "fill:#14181D"
    used = {c.lower() for c in re.findall(r"(?:fill|stroke): (#\w{6})", svg.split("</style>")[1])}
    kept = used - {name.split()[1] for name in exchanged}
    assert kept <= {"#000000"}, kept  # every colour has a twin


def test_points_have_labels_and_share_their_axes(tmp_path: Path) -> None:
    data = report()
    drawing = scatter.drawing(data, "csqa")
    assert drawing
    first = next(row for row in drawing.numbers.rows if row[0] == "first")
    accuracy = data.estimates("csqa", "first")["accuracy"]
    assert first[1] == pytest.approx(0.05) and first[4:] == (accuracy.value, *accuracy.interval)
    (picture,) = save(drawing, tmp_path)
    assert set(data.rows) <= set(texts(picture.svg))
    assert any(text.startswith("95 % intervals are about ±") for text in texts(picture.svg))
    assert "first: accuracy 80.0, ECE 5.0" in picture.description
    ends = scatter.limits(scatter.points(data, "csqa").values())
    for p in scatter.points(data, "csqa").values():
        assert ends.ece[0] <= p.ece <= ends.ece[1]
        assert ends.accuracy[0] <= p.accuracy <= ends.accuracy[1]
    assert scatter.drawing(report(records={}), "csqa") is None


def test_labels_of_close_points_do_not_overlap(tmp_path: Path) -> None:
    near = {f"arm-{i}": answers(0.8, 160 + i) for i in range(6)}
    data = report(
        members={row: (row,) for row in near},
        evaluations=["csqa"],
        records={("csqa", row): r for row, r in near.items()},
    )
    drawing = scatter.drawing(data, "csqa")
    assert drawing
    (picture,) = save(drawing, tmp_path)
    found = re.findall(r' x="([\d.]+)" y="([\d.]+)"[^>]*>(arm-\d)<', picture.svg.decode())
    assert len(found) == 6
    places = [(float(x), float(y)) for x, y, _ in found]
    for i, (x, y) in enumerate(places):
        for left, up in places[:i]:
            assert abs(x - left) > 20 or abs(y - up) > 7


def test_a_forest_shows_what_is_better_to_the_right() -> None:
    data = report()
    drawing = forest.drawing(data, "csqa", "first")
    assert drawing
    titles = [panel.title for panel in drawing.panels]
    assert titles == [
        *("Trust of first: higher by", "Accuracy of first: higher by", "ECE of first: lower by")
    ]
    rows = {(row[0], row[1]): row[2:] for row in drawing.numbers.rows}
    gap = data.compared("csqa", "first", "fine-tune")["ece"].questions
    assert rows["ECE", "fine-tune"][0] == pytest.approx(0.2) == pytest.approx(-gap.value)
    assert rows["ECE", "fine-tune"][1:3] == (-gap.interval.high, -gap.interval.low)
    assert rows["ECE", "fine-tune"][3] == "yes"
    assert rows["Trust", "fine-tune"][0] == pytest.approx(0.3)
    twins = forest.drawing(data, "csqa", "fine-tune + T")
    assert twins and ("accuracy", "fine-tune") not in {row[:2] for row in twins.numbers.rows}
    assert forest.drawing(report(records={}), "csqa", "first") is None


def test_a_diagram_of_many_bins_stays_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1.0, 3000)
    rows = [np.log([c, 0.7 * (1 - c), 0.3 * (1 - c)]) for c in confidence]
    right = (random.random(3000) > confidence).astype(int)
    found = EvalRecords.from_log_probs([f"q{i}" for i in range(3000)], right.tolist(), rows)
    panel = reliability.panel([reliability_curve(found, "x", 50)], "candidates")
    (picture,) = save(Drawing("x", (panel,), Numbers(("n",), ())), tmp_path)
    assert len(picture.svg) < 100_000  # a page has about twenty; base64 makes them a third larger


def test_figures_are_well_formed_whatever_the_title(tmp_path: Path) -> None:
    (picture,) = save(diagram(title=f"{EVIL} $x_ & -- " + "long " * 20), tmp_path)
    root = ET.fromstring(picture.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_figures_do_not_depend_on_the_user_s_style_and_do_not_change_it(tmp_path: Path) -> None:
    drawing = diagram(bins=25)
    first = save(drawing, tmp_path)
    image = (tmp_path / "x.png").read_bytes()
    with mpl.rc_context({"font.size": 22.0, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        before = dict(mpl.rcParams)
        assert save(drawing, tmp_path) == first
        assert png(drawing) == image
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "x.png").read_bytes() == image


def test_a_file_contains_all_panels_and_the_key(tmp_path: Path) -> None:
    one = diagram().panels[0]
    key = Panel("key", lambda place: heading(place, "the key"), "what marks mean")
    drawing = Drawing("x", (one,) * 5, Numbers(("n",), ()), key)
    pictures = save(drawing, tmp_path)
    assert [picture.key for picture in pictures] == [True, *[False] * 5]
    found = texts((tmp_path / "x.svg").read_bytes())
    assert found.count("confidence (candidates)") == 5 and "the key" in found
