"""Write a report's folder: one self-contained page, the tables as files, the figures."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from firstcli.metrics import reliability_bins
from firstcli.reporting import ReportData
from firstcli.reporting.figures import Diagram, save_diagrams
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.table import full_table, paper_table


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the page: its image as a data URI, and what it shows in words."""

    source: str
    description: str


def write_report(folder: Path, data: ReportData) -> None:
    """Write index.html, table.{md,csv,json} and figures/*.{svg,png} into a folder that exists.

    The same data gives the same bytes.
    """
    figures = folder / "figures"
    figures.mkdir()
    pictures = {evaluation: _draw(figures, data, evaluation) for evaluation in data.evaluations}
    pages = {
        "table.md": to_markdown(data),
        "table.csv": to_csv(data),
        "table.json": to_json(data),
        "index.html": _html(data, pictures),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def diagrams(data: ReportData, evaluation: str) -> dict[str, Diagram]:
    """Return the reliability diagram of every model that has records of an evaluation."""
    kind, bins = data.settings.confidence, data.settings.bins
    return {
        model: Diagram(
            title=f"{model} on {evaluation}",
            metrics=metrics,
            bins=reliability_bins(shown, records.correct, bins),
            confidence=kind,
        )
        for model, metrics, records in data.results(evaluation)
        if records.answerable and (shown := records.shown(kind)) is not None
    }


def _draw(figures: Path, data: ReportData, evaluation: str) -> list[Picture]:
    """Save a figure a model and one of all models; `+` cannot occur in a quoted name."""
    found = diagrams(data, evaluation)
    if found:
        save_diagrams(list(found.values()), figures / _file_name(evaluation))
    return [
        Picture(
            source=_data_uri(
                save_diagrams([diagram], figures / f"{_file_name(evaluation)}+{_file_name(model)}")
            ),
            description=diagram.description(),
        )
        for model, diagram in found.items()
    ]


def _html(data: ReportData, pictures: dict[str, list[Picture]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        data=data,
        paper=paper_table(data),
        full=full_table(data).by_group(),
        pictures=pictures,
    )


def _data_uri(svg: bytes) -> str:
    # as an image of its own, so that the ids of several drawings cannot meet
    return f"data:image/svg+xml;base64,{b64encode(svg).decode('ascii')}"


def _file_name(name: str) -> str:
    return quote(name, safe="@")
