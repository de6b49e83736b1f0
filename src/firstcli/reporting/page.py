"""Write the folder of a report: a self-contained page, the tables and the figures as files."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup, escape

from firstcli.reporting.data import PLUS_T, ReportData
from firstcli.reporting.decision import Decision, decide, shipped_rows
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.questions import questions
from firstcli.reporting.sections import Section, overview, sections
from firstcli.reporting.style import Drawing, Numbers, Picture, save
from firstcli.reporting.table import narrow_table, paper_table, undecided
from firstcli.reporting.templates import templates
from firstcli.reporting.terminal import Table
from firstcli.reporting.thresholds import promise_tables

_FIRST_CARDS = 4  # evaluations on the first screen; the others are folded
_FEW_EVALUATIONS = 4  # with more, a table per evaluation would repeat the models' names too often


class PageFigure(NamedTuple):
    """A figure of the page with its heading."""

    heading: str
    pictures: list[Picture]
    numbers: Numbers | None
    """None if another part of the figure shows them."""


class PageSection(NamedTuple):
    """A section with its visible and its folded figures."""

    section: Section
    visible: list[PageFigure]
    folded: list[PageFigure]

    @property
    def slim(self) -> bool:
        """Whether the figures are narrow enough for two side by side."""
        return all(len(figure.pictures) <= 2 for figure in self.visible)

    @property
    def beside(self) -> bool:
        """Whether there is room for the text beside the only figure."""
        return self.slim and len(self.visible) == 1


class Card(NamedTuple):
    """One evaluation on the first screen: its picture, if it has one, and its table."""

    evaluation: str
    figure: PageFigure | None
    table: Table


def write_report(folder: Path, data: ReportData) -> Decision:
    """Write index.html, decision.json, table.{md,csv,json} and figures/*.{svg,png} into a folder.

    The same data gives the same bytes.

    Returns:
        The decision, which the page and decision.json state.
    """
    figures = folder / "figures"
    figures.mkdir()
    decision = decide(data)
    pictures, content = overview(data), sections(data, decision)
    drawings = [*pictures, *(named for section in content for named in section.drawings)]
    numbers = {_file_name(drawing.name): drawing.numbers for _, drawing in drawings}
    first = {name: _figure(name, drawing, figures) for name, drawing in pictures}
    texts = {
        "decision.json": decision.to_json(),
        "table.md": to_markdown(data),
        "table.csv": to_csv(data),
        "table.json": to_json(data, numbers),
        "index.html": _html(data, decision, first, [_drawn(part, figures) for part in content]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return decision


def _figure(heading: str, drawing: Drawing, folder: Path) -> PageFigure:
    pictures = save(replace(drawing, name=_file_name(drawing.name)), folder)
    return PageFigure(heading, pictures, drawing.numbers)


def _drawn(section: Section, folder: Path) -> PageSection:
    visible: list[PageFigure] = []
    folded: list[PageFigure] = []
    for i, (heading, drawing) in enumerate(section.drawings):
        figure = _figure(heading, drawing, folder)
        if i >= section.figures:
            folded.append(figure)
            continue
        # the first figure shows the key for all
        kept = [picture for picture in figure.pictures if not (picture.key and visible)]
        most = section.panels + sum(picture.key for picture in kept)
        visible.append(figure._replace(pictures=kept[:most]))
        if kept[most:]:
            folded.append(PageFigure(heading, kept[most:], None))
    return PageSection(section, visible, folded)


def _html(
    data: ReportData,
    decision: Decision,
    pictures: Mapping[str, PageFigure],
    shown: list[PageSection],
) -> str:
    environment = templates()
    environment.filters |= {
        "uri": _data_uri,
        "number": _number,
        "duration": _duration,
        "code": _code,
        "parts": partial(_parts, few=len(data.evaluations) <= _FEW_EVALUATIONS),
    }
    disputed = {name: questions(data, name) for name in data.illustrated}
    shipped = shipped_rows(decision)
    cards = [
        Card(name, pictures.get(name), narrow_table(data, shipped, name)) for name in data.judged
    ]
    visible = min(_FIRST_CARDS, len(data.illustrated))
    return environment.get_template("page.html.j2").render(
        data=data,
        decision=decision,
        cards=cards[:visible],
        more_cards=cards[visible:],
        undecided=undecided(data),
        paper=paper_table(data),
        promises=promise_tables(data),
        illustrated=data.illustrated,
        shown=shown,
        disputed={name: chosen for name, chosen in disputed.items() if chosen},
        stages=list(_stages(data.seconds)),
    )


def _parts(table: Table, *, few: bool) -> list[Table]:
    """Return a table's column groups one by one, so that they fit; many stay side by side."""
    return table.by_group() if few or table.head != "model" else [table]


def _code(text: str) -> Markup:
    """Turn the names in backticks into code, and escape everything."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _stages(seconds: Mapping[str, float]) -> Iterator[tuple[str, int, float]]:
    """Yield each stage with the number and the total duration of its units."""
    for stage in dict.fromkeys(key.split()[0] for key in seconds):
        durations = [value for key, value in seconds.items() if key.split()[0] == stage]
        yield stage, len(durations), sum(durations)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: str | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data_uri(svg: bytes) -> str:
    # a separate image, so that the ids of different drawings cannot collide
    return f"data:image/svg+xml;base64,{b64encode(svg).decode('ascii')}"


def _file_name(name: str) -> str:
    return quote(name.replace(PLUS_T, "+T"), safe="@+")  # like the files of the models
