"""Write a report's folder: one self-contained page, the tables as files, the figures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from firstcli.reporting import PLUS_T, ReportData
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.questions import Question, questions
from firstcli.reporting.sections import Section, sections
from firstcli.reporting.style import Numbers, Picture, save
from firstcli.reporting.table import difference_tables, full_tables, paper_table


class Part(NamedTuple):
    """A figure of the page under its heading."""

    heading: str
    pictures: list[Picture]
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Shown:
    """A section with its figures drawn."""

    section: Section
    parts: list[Part]

    @property
    def slim(self) -> bool:
        """Whether figures are narrow, so that two may stand side by side."""
        return all(len(part.pictures) <= 2 for part in self.parts)


def write_report(folder: Path, data: ReportData) -> None:
    """Write index.html, table.{md,csv,json} and figures/*.{svg,png} into a folder that exists.

    The same data gives the same bytes.
    """
    figures = folder / "figures"
    figures.mkdir()
    found = sections(data)
    pages = {
        "table.md": to_markdown(data),
        "table.csv": to_csv(data),
        "table.json": to_json(data, _numbers(found)),
        "index.html": _html(data, [_drawn(section, figures) for section in found]),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _drawn(section: Section, figures: Path) -> Shown:
    parts = [
        Part(
            heading, save(replace(drawing, name=_file_name(drawing.name)), figures), drawing.numbers
        )
        for heading, drawing in section.drawings
    ]
    for part in parts[1:]:  # one key is enough for all
        part.pictures[:] = [picture for picture in part.pictures if not picture.key]
    return Shown(section, parts)


def _numbers(found: list[Section]) -> dict[str, Numbers]:
    drawings = [drawing for section in found for _, drawing in section.drawings]
    return {_file_name(drawing.name): drawing.numbers for drawing in drawings}


def _html(data: ReportData, shown: list[Shown]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"uri": _data_uri, "number": _number, "span": _span}
    asked: dict[str, list[Question]] = {
        name: found for name in data.evaluations if (found := questions(data, name))
    }
    return environment.get_template("page.html.j2").render(
        data=data,
        paper=paper_table(data),
        differences=difference_tables(data),
        full=full_tables(data),
        shown=shown,
        asked=asked,
        stages=list(_stages(data.seconds)),
    )


def _stages(seconds: Mapping[str, float]) -> Iterator[tuple[str, int, float]]:
    """Add up how long the units of each stage took."""
    for stage in dict.fromkeys(key.split()[0] for key in seconds):
        found = [value for key, value in seconds.items() if key.split()[0] == stage]
        yield stage, len(found), sum(found)


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {rest:02d} s"
    )


def _number(value: str | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data_uri(svg: bytes) -> str:
    # as an image of its own, so that the ids of several drawings cannot meet
    return f"data:image/svg+xml;base64,{b64encode(svg).decode('ascii')}"


def _file_name(name: str) -> str:
    return quote(name.replace(PLUS_T, "+T"), safe="@+")  # as the models' files are named
