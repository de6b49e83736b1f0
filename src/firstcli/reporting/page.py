"""Write the folder of a report: a self-contained page, the tables and the figures as files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from firstcli.reporting.data import PLUS_T, ReportData
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.groups import group_tables
from firstcli.reporting.questions import questions
from firstcli.reporting.sections import Section, sections
from firstcli.reporting.style import Numbers, Picture, save
from firstcli.reporting.table import difference_tables, full_tables, paper_table
from firstcli.reporting.thresholds import promise_tables


class PageFigure(NamedTuple):
    """A figure of the page with its heading."""

    heading: str
    pictures: list[Picture]
    numbers: Numbers


class PageSection(NamedTuple):
    """A section and its figures."""

    section: Section
    figures: list[PageFigure]

    @property
    def slim(self) -> bool:
        """Whether the figures are narrow enough for two side by side."""
        return all(len(figure.pictures) <= 2 for figure in self.figures)


def write_report(folder: Path, data: ReportData) -> None:
    """Write index.html, table.{md,csv,json} and figures/*.{svg,png} into an existing folder.

    The same data gives the same bytes.
    """
    figures = folder / "figures"
    figures.mkdir()
    content = sections(data)
    drawings = [drawing for section in content for _, drawing in section.drawings]
    numbers = {_file_name(drawing.name): drawing.numbers for drawing in drawings}
    texts = {
        "table.md": to_markdown(data),
        "table.csv": to_csv(data),
        "table.json": to_json(data, numbers),
        "index.html": _html(data, [_drawn(section, figures) for section in content]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _drawn(section: Section, folder: Path) -> PageSection:
    figures: list[PageFigure] = []
    for heading, drawing in section.drawings:
        pictures = save(replace(drawing, name=_file_name(drawing.name)), folder)
        if figures:  # the first figure shows the key for all
            pictures = [picture for picture in pictures if not picture.key]
        figures.append(PageFigure(heading, pictures, drawing.numbers))
    return PageSection(section, figures)


def _html(data: ReportData, shown: list[PageSection]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"uri": _data_uri, "number": _number, "duration": _duration}
    disputed = {name: questions(data, name) for name in data.illustrated}
    return environment.get_template("page.html.j2").render(
        data=data,
        paper=paper_table(data),
        differences=difference_tables(data),
        groups=group_tables(data),
        promises=promise_tables(data),
        illustrated=data.illustrated,
        full=full_tables(data),
        shown=shown,
        disputed={name: chosen for name, chosen in disputed.items() if chosen},
        stages=list(_stages(data.seconds)),
    )


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
