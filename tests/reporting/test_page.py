"""The report's page: complete, self-contained, safe and reproducible."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from firstcli.reporting.data import ReportData
from firstcli.reporting.page import write_report
from support.invented_report import EVIL, answers, everything, report, sample


def files(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(invented_report: Path) -> Mapping[str, bytes]:
    return files(invented_report)


def test_the_folder_is_complete(written: Mapping[str, bytes]) -> None:
    drawn = {
        f"{kind}+{name}"
        for kind in ("accuracy-ece", "differences", "ranks", "reliability", "risk-coverage")
        for name in ("csqa", "world")
    }
    drawn |= {"concentration", "ranks-validation", "temperature+first", "temperature+fine-tune+T"}
    drawn |= {"trust-over-temperature+csqa", "top-k+csqa", "top-k+world", "unanswerable+none"}
    expected = {f"figures/{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    tables = {"table.md", "table.csv", "table.json"}
    assert set(written) == expected | tables | {"index.html", "decision.json"}
    for name, content in written.items():
        if name.endswith(".svg"):
            ET.fromstring(content)


def small_report(seconds: float) -> ReportData:
    rows = ("teacher", "first")
    members = {row: (row,) for row in rows}
    return everything(members=members, evaluations=["csqa"], seconds={"finetune": seconds})


def test_the_same_data_gives_the_same_bytes_and_other_times_change_only_times(
    tmp_path: Path,
) -> None:
    written = []
    for i, seconds in enumerate((1.0, 1.0, 99.0)):
        folder = tmp_path / str(i)
        folder.mkdir()
        write_report(folder, small_report(seconds))
        written.append(files(folder))
    first, again, slower = written
    assert first == again
    assert [name for name in first if first[name] != slower[name]] == ["index.html"]
    pages = [re.sub(rb"<time>.*?</time>", b"", one["index.html"]) for one in (first, slower)]
    assert pages[0] == pages[1]


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


def test_the_page_has_all_sections(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    for part in ("Results of demo", "first to fine-tune", "not distinguishable", "T = 0.34"):
        assert part in page.text
    for part in ("name: demo", "firstcli 1.2.3", "6 min 40 s", "over-confident by", "+17.0"):
        assert part in page.text
    for title in ("Concentrated knowledge", "Miscalibration rank by rank", "Reliability"):
        assert title in page.text
    for title in ("Temperature", "Risk and coverage", "How many tokens to keep"):
        assert title in page.text
    for title in ("Questions without a right answer", "Questions on which the models differ most"):
        assert title in page.text
    html = written["index.html"].decode()
    assert "<strong>75.0</strong> <small>±" in html and '<tr class="shipped">' in html
    assert page.of("html") == [{"lang": "en"}]
    assert page.of("meta")[:2] == [
        {"charset": "utf-8"},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ]


def test_the_page_is_accessible(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    images = page.of("img")
    assert len(images) > 30 and all(len(str(image["alt"])) > 20 for image in images)
    # `fine-tune` and `fine-tune + T` share one
    assert sum("Reliability diagram of" in str(image["alt"]) for image in images) == 11
    regions = [one for one in page.of("div") if one.get("role") == "region"]
    assert regions and all(one["tabindex"] == "0" and one["aria-label"] for one in regions)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.of("a"):
        assert str(link["href"]).removeprefix("#") in ids
    for section in page.of("section"):
        assert section.get("aria-label") or section["aria-labelledby"] in ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_every_figure_has_its_numbers_beside_it(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    drawn = {name for name in written if name.endswith(".svg")}
    assert sum(one.get("class") == "numbers" for one in page.of("details")) == len(drawn)


def test_the_page_loads_nothing(written: Mapping[str, bytes]) -> None:
    page = Page(written["index.html"])
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert str(attributes.get(name, "data:")).startswith(("data:", "#"))
    html = written["index.html"].decode()
    assert "http:" not in html and "https:" not in html
    assert "url(" not in html and "@import" not in html
    assert not page.of("script")


def test_user_text_never_becomes_markup(tmp_path: Path) -> None:
    data = report(
        run=EVIL,
        recipe=f"name: x  # {EVIL} https://example.org\n</pre>",
        members={row: (row,) for row in ("teacher", EVIL, "first", "../up")},
        evaluations=[EVIL],
        records={(EVIL, EVIL): answers(0.9, 100), (EVIL, "../up"): answers(0.9, 100)},
        notes=[(EVIL, f"ü {EVIL}")],
        versions={EVIL: EVIL},
        questions={EVIL: [sample("q0000", EVIL)]},
    )
    write_report(tmp_path, data)
    page = Page((tmp_path / "index.html").read_bytes())
    assert not page.of("script")
    assert page.text.count(EVIL) >= 9 and "https://example.org" in page.text
    assert len(list((tmp_path / "figures").iterdir())) == 10
    assert {path.name for path in tmp_path.iterdir()} == {
        *("index.html", "decision.json", "table.md", "table.csv", "table.json", "figures")
    }


def test_the_page_opens_with_the_decision(written: Mapping[str, bytes]) -> None:
    decision = json.loads(written["decision.json"])
    page = Page(written["index.html"])
    opening = page.text[: page.text.index("csqa (n = 200)")]
    assert decision["headline"].replace("`", "") in opening
    assert all(text.replace("`", "") in " ".join(opening.split()) for text in decision["limits"])
    assert f"RUN/{decision['ship']['folder']}" in opening and decision["commands"][0] in opening
    assert "<code>" in written["index.html"].decode()


def test_only_the_first_figures_are_unfolded(written: Mapping[str, bytes]) -> None:
    visible = unfolded(written["index.html"].decode())
    assert visible.count("<img") < written["index.html"].count(b"<img") / 2
    assert visible.count('alt="Reliability diagram of') == 4
    assert 'class="results"' not in visible  # tables of all metrics and differences


def unfolded(html: str) -> str:
    """Return HTML without `details`, the innermost of which are removed first."""
    line = html.replace("\n", " ")
    inner = re.compile(r"<details[^>]*>(?:(?!<details).)*?</details>")
    while inner.search(line):
        line = inner.sub("", line)
    return line


def test_the_page_has_rules_for_dark_mode_and_print(written: Mapping[str, bytes]) -> None:
    html = written["index.html"].decode()
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    for name, content in written.items():
        if name.endswith(".svg"):
            assert b"prefers-color-scheme:dark" in content, name


def bare(**changes: object) -> ReportData:
    return report(**{"records": {}, "notes": [], "versions": {}, **changes})


def test_missing_parts_are_explained(tmp_path: Path) -> None:
    write_report(tmp_path, bare())
    text = Page((tmp_path / "index.html").read_bytes()).text
    assert "No model was evaluated" in text and "concentration.json" in text
    assert "No recalibrator of this run" in text
    assert "How many tokens to keep" not in text and "without a right answer" not in text
    assert not list((tmp_path / "figures").iterdir())


def test_the_page_is_small(written: Mapping[str, bytes]) -> None:
    assert len(written["index.html"]) < 3_000_000
