"""The report: numbers and marks in every format, figures, and a page that is safe and closed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl  # noqa: TID253
import pytest
from rich.console import Console

from firstcli.metrics import reliability_bins, summarize
from firstcli.recipe import MetricsSettings
from firstcli.records import EvalRecords
from firstcli.reporting import ReportData
from firstcli.reporting.figures import Diagram, save_diagrams
from firstcli.reporting.formats import TerminalTable, to_csv, to_json, to_markdown
from firstcli.reporting.page import write_report
from firstcli.reporting.table import Column, full_table, paper_table

EVIL = "<script>alert('x')</script>"


def records(confidence: float, right: int, n: int = 10, *, known: bool = False) -> EvalRecords:
    """Return n questions of equal confidence, the first `right` of them answered correctly."""
    return EvalRecords.from_log_probs(
        ids=[f"q{i}" for i in range(n)],
        answers=[0 if i < right else 1 for i in range(n)],
        log_probs=[[math.log(0.9 * confidence), math.log(0.9 * (1 - confidence))]] * n,
        truth=[[0.75, 0.25]] * n if known else None,
    )


def report(**changes: object) -> ReportData:
    content: dict[str, object] = {
        "run": "demo",
        "recipe": "name: demo\n",
        "models": ["teacher", "fine-tune", "distill", "first"],
        "evaluations": ["csqa", "world"],
        "records": {
            ("csqa", "teacher"): records(0.95, 9),
            ("csqa", "fine-tune"): records(0.95, 7),
            ("csqa", "distill"): records(0.85, 7),
            ("csqa", "first"): records(0.85, 8),
            ("world", "teacher"): records(0.8, 8, known=True),
            ("world", "fine-tune"): records(0.9, 8, known=True),
            ("world", "first"): records(0.78, 7, known=True),
        },
        "settings": MetricsSettings(),
        "notes": [("temperature of first", "T = 0.34")],
        "versions": {"firstcli": "1.2.3"},
    }
    return ReportData(**(content | changes))  # type: ignore[arg-type]


def shown(data: ReportData) -> dict[str, list[str]]:
    """Return the cells of the paper's table by row name, the best with a star."""
    return {
        row.name: [c.text + "*" * c.best for group in row.groups for c in group]
        for row in paper_table(data).rows
    }


def test_the_paper_table_holds_numbers_marks_dashes_and_differences() -> None:
    # ECE, Acc, Trust of csqa; ECE, Acc, Trust, ECE true, Conf. MAE of world
    assert shown(report()) == {
        "teacher": ["5.0", "90.0", "85.0", "0.0", "80.0", "80.0", "5.0", "5.0"],
        "fine-tune": ["25.0", "70.0", "45.0", "10.0", "80.0*", "70.0*", "15.0", "15.0"],
        "distill": ["15.0", "70.0", "55.0", "–", "–", "–", "–", "–"],
        "first": ["5.0*", "80.0*", "75.0*", "8.0*", "70.0", "62.0", "3.0*", "3.0*"],
        "first to fine-tune": [
            *("-20.0", "+10.0", "+30.0"),
            *("-2.0", "-10.0", "-8.0", "-12.0", "-12.0"),
        ],
    }


def test_the_paper_table_names_its_confidence_and_sizes() -> None:
    table = paper_table(report(settings=MetricsSettings(confidence="full", bins=15)))
    assert "confidence: full, 15 bins" in table.caption
    assert [group.title for group in table.groups] == ["csqa (n = 10)", "world (n = 10)"]
    assert [c.title for c in table.groups[0].columns] == ["ECE", "Acc", "Trust"]


def test_settings_change_the_numbers() -> None:
    data = report(settings=MetricsSettings(confidence="full"))
    assert data.metrics["csqa", "first"].confidence == pytest.approx(0.9 * 0.85)


def test_equal_students_share_the_mark_and_a_lone_student_has_none() -> None:
    same = {("csqa", m): records(0.9, 8) for m in ("teacher", "a", "b")}
    data = report(models=["teacher", "a", "b"], evaluations=["csqa"], records=same)
    assert shown(data)["a"] == shown(data)["b"] == ["10.0*", "80.0*", "70.0*"]
    alone = report(models=["teacher", "a"], evaluations=["csqa"], records=same)
    assert shown(alone)["a"] == ["10.0", "80.0", "70.0"]
    assert "first to fine-tune" not in shown(alone)
    assert not paper_table(alone).competing


def test_the_full_table_has_every_metric() -> None:
    (table, _) = full_table(report()).by_group()
    names = [column.title for column in table.groups[0].columns]
    row = dict(zip(names, (c.text for c in table.rows[3].groups[0]), strict=True))
    assert row == {
        "n": "10",
        "ECE": "5.0",
        "Acc": "80.0",
        "Trust": "75.0",
        "Conf.": "85.0",
        "NLL": "0.509",
        "Brier": "0.325",
        "Brier top": "0.163",
        "Mass": "90.0",
        "Ties": "0",
        "Floored": "0",
        "Bins used": "1",
    }


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.1234, False, "12.3"),
        (-0.1234, False, "-12.3"),
        (0.1234, True, "+12.3"),
        (-0.00001, True, "0.0"),  # neither -0.0 nor +0.0
        (0.00001, True, "0.0"),
        (0.0, False, "0.0"),
        (0.00011, False, "0.01"),  # a mass this small is not nothing
        (None, True, "–"),
    ],
)
def test_percentages(value: float | None, signed: bool, text: str) -> None:
    assert Column("ece", "ECE", "percent").text(value, signed=signed) == text


def terminal(data: ReportData, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(TerminalTable(paper_table(data)))
    console.print(TerminalTable(full_table(data)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [45, 60, 80, 160])
def test_the_terminal_shows_all_of_a_table_at_any_width(width: int) -> None:
    text = terminal(report(), width)
    assert "…" not in text and "\x1b" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for value in ("80.0*", "+30.0", "-12.0", "0.509", "–"):
        assert value in text
    assert "* best of the students" in " ".join(text.split())


def test_the_terminal_cuts_long_names_rather_than_numbers() -> None:
    long = "an-arm-" * 14
    text = terminal(report(models=["first", long], records=report().records), 80)
    assert "…" in text and "75.0*" not in text  # no competitor has results
    for value in ("75.0", "0.509", "Bins used"):
        assert value in text


def test_a_wide_terminal_shows_the_evaluations_side_by_side() -> None:
    lines = terminal(report(), 160).splitlines()
    first = next(line.split() for line in lines if line.strip().startswith("first "))
    assert first == ["first", "5.0*", "80.0*", "75.0*", "8.0*", "70.0", "62.0", "3.0*", "3.0*"]


def test_markdown() -> None:
    text = to_markdown(report())
    assert "| first | **5.0** | **80.0** | **75.0** | **8.0** | 70.0 |" in text
    assert "confidence: candidates, 10 bins" in text
    assert "- temperature of first: T = 0.34" in text
    evil = to_markdown(report(run=EVIL, notes=[("a|b", f"{EVIL}\n# x")]))
    assert "<script>" not in evil.replace("\\<", "")
    assert "\n# x" not in evil and "a\\|b" in evil


def test_csv_is_tidy_and_at_full_precision() -> None:
    data = report()
    rows = list(csv.DictReader(io.StringIO(to_csv(data))))
    assert [(r["evaluation"], r["model"]) for r in rows] == [
        *[("csqa", m) for m in data.models],
        *[("world", m) for m in ("teacher", "fine-tune", "first")],
        ("csqa", "first to fine-tune"),
        ("world", "first to fine-tune"),
    ]
    assert float(rows[3]["nll"]) == data.metrics["csqa", "first"].nll
    assert rows[3]["ece_true"] == "" and rows[3]["confidence_kind"] == "candidates"
    assert rows[3]["best"].split()[:3] == ["ece", "accuracy", "trust"]
    assert float(rows[-2]["trust"]) == pytest.approx(0.3) and rows[-2]["n"] == ""


def test_json_is_at_full_precision_and_holds_the_bins() -> None:
    data = report()
    content = json.loads(to_json(data))
    assert (content["confidence"], content["bins"], content["unit"]) == (
        "candidates",
        10,
        "fraction",
    )
    row = content["rows"][3]
    metrics = data.metrics["csqa", "first"]
    assert (row["model"], row["ece"], row["nll"]) == ("first", metrics.ece, metrics.nll)
    assert row["ece_true"] is None
    assert [b["n"] for b in row["reliability"]] == [0, 0, 0, 0, 0, 0, 0, 0, 10, 0]
    assert row["reliability"][0]["accuracy"] is None
    assert content["differences"][0]["trust"] == pytest.approx(0.3)
    assert content["notes"] == [{"label": "temperature of first", "value": "T = 0.34"}]


def diagram(title: str = "first on csqa", bins: int = 10) -> Diagram:
    found = records(0.85, 8)
    metrics = summarize(found, "candidates", bins)
    drawn = reliability_bins(found.confidence, found.correct, bins)
    return Diagram(title, metrics, drawn, "candidates")


def texts(svg: bytes) -> list[str]:
    """Return the texts of a drawing, which matplotlib leaves as comments beside the outlines."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), flags=re.DOTALL)]


def test_a_diagram_prints_numbers_and_counts(tmp_path: Path) -> None:
    svg = save_diagrams([diagram()], tmp_path / "x.y")  # a dot is no suffix
    assert {path.name for path in tmp_path.iterdir()} == {"x.y.svg", "x.y.png"}
    assert (tmp_path / "x.y.png").read_bytes().startswith(b"\x89PNG")
    found = texts(svg)
    assert "first on csqa" in found
    assert any("ECE 5.0" in t and "Acc 80.0" in t and "Trust 75.0" in t for t in found)
    assert found.count("0") == 9 and found.count("10") == 1  # questions in each bin
    assert "confidence (candidates)" in found


def uses(svg: str, color: str) -> int:
    """Count what is filled by the hatching on a colour."""
    (pattern,) = re.findall(rf'<pattern id="(\w+)"[^>]*>\s*<rect[^>]*fill="{color}"', svg)
    return svg.count(f"url(#{pattern})")


def test_an_empty_bin_has_no_bar_and_direction_has_its_own_colour(tmp_path: Path) -> None:
    over = save_diagrams([diagram()], tmp_path / "over").decode()
    found = records(0.85, 10)
    bins = reliability_bins(found.confidence, found.correct, 10)
    sure = Diagram("x", summarize(found, "candidates", 10), bins, "candidates")
    under = save_diagrams([sure], tmp_path / "under").decode()
    # a filling is used by its key in the legend, and by the one bin where that direction occurs
    assert (uses(over, "#f9dfcc"), uses(over, "#cce3f0")) == (2, 1)
    assert (uses(under, "#f9dfcc"), uses(under, "#cce3f0")) == (1, 2)
    assert "1 over-confident and 0 under-confident" in diagram().description()


def test_figures_are_well_formed_whatever_the_title(tmp_path: Path) -> None:
    svg = save_diagrams([diagram(f"{EVIL} $x_ & -- " + "long " * 20)], tmp_path / "x")
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [e for e in root.iter() if e.tag.endswith("script")]


def test_figures_are_the_same_whatever_the_style_and_leave_it_alone(tmp_path: Path) -> None:
    first = save_diagrams([diagram(), diagram(bins=25)], tmp_path / "x")
    png = (tmp_path / "x.png").read_bytes()
    with mpl.rc_context({"font.size": 22.0, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        before = dict(mpl.rcParams)
        assert save_diagrams([diagram(), diagram(bins=25)], tmp_path / "x") == first
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "x.png").read_bytes() == png


def files(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, report())
    return files(folder)


def test_the_folder_is_complete(written: Mapping[str, bytes]) -> None:
    drawn = {"csqa", "world", "csqa+teacher", "csqa+fine-tune", "csqa+distill", "csqa+first"}
    drawn |= {"world+teacher", "world+fine-tune", "world+first"}
    expected = {f"figures/{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert set(written) == expected | {"index.html", "table.md", "table.csv", "table.json"}
    for name, content in written.items():
        if name.endswith(".svg"):
            ET.fromstring(content)


def test_the_same_data_gives_the_same_bytes(tmp_path: Path, written: Mapping[str, bytes]) -> None:
    write_report(tmp_path, report())
    assert files(tmp_path) == written


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_holds_it_all(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    for part in (
        "Results of demo",
        "first to fine-tune",
        "+30.0",
        "T = 0.34",
        "name: demo",
        "1.2.3",
    ):
        assert part in page.text
    assert "<strong>75.0</strong>" in written["index.html"].decode()
    assert len(page.of("img")) == 7
    assert all("Reliability diagram of" in str(image["alt"]) for image in page.of("img"))
    assert page.of("meta")[:2] == [
        {"charset": "utf-8"},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ]
    assert page.of("html") == [{"lang": "en"}]


def test_the_page_loads_nothing(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:")
    html = written["index.html"].decode()
    assert "http:" not in html and "https:" not in html
    assert "url(" not in html and "@import" not in html
    assert not page.of("script")


def test_nothing_that_users_write_becomes_markup(tmp_path: Path) -> None:
    data = report(
        run=EVIL,
        recipe=f"name: x  # {EVIL} https://example.org\n</pre>",
        models=["teacher", EVIL, "first", "../up"],
        evaluations=[EVIL],
        records={(EVIL, EVIL): records(0.9, 5), (EVIL, "../up"): records(0.9, 5)},
        notes=[(EVIL, f"ü {EVIL}")],
        versions={EVIL: EVIL},
    )
    write_report(tmp_path, data)
    page = Page((tmp_path / "index.html").read_bytes())
    assert not page.of("script")
    assert page.text.count(EVIL) >= 8 and "https://example.org" in page.text
    assert len(list((tmp_path / "figures").iterdir())) == 6
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "table.md", "table.csv", "table.json", "figures")
    }


def test_an_evaluation_without_results_is_said_so(tmp_path: Path) -> None:
    write_report(tmp_path, report(records={}))
    assert "No model was evaluated." in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "figures").iterdir())
