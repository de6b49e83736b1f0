"""The page of `first select`: curves, what is needed, and what was picked, in one file."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from firstcli.reporting import curves
from firstcli.reporting.rounds import (
    PLACES,
    SHOWN,
    RoundsData,
    compared,
    costless,
    in_text,
    last_rows,
    needed_csv,
    needed_in_text,
    rounds_table,
    to_csv,
)
from firstcli.reporting.style import save
from firstcli.reporting.templates import templates


def write_rounds(folder: Path, data: RoundsData) -> None:
    """Write index.html, rounds.csv, needed.csv and figures/*.{svg,png} into a folder.

    The same data gives the same bytes.
    """
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    drawn = {
        (evaluation, place): save(curves.drawing(data, evaluation, place), figures)
        for evaluation in data.evaluations
        for place in data.places
    }
    environment = templates()
    environment.filters["uri"] = _data_uri
    page = environment.get_template("rounds.html.j2").render(
        data=data,
        drawn=drawn,
        places=PLACES,
        headings=[metric.heading for metric in SHOWN],
        last={name: list(last_rows(data, name)) for name in data.evaluations},
        needed={
            (name, place): data.needed(name, place)
            for name in data.evaluations
            for place in data.places
        },
        levels={name: data.levels(name)[1] for name in data.evaluations},
        compared=compared,
        in_text=in_text,
        needed_in_text=needed_in_text,
        rounds=rounds_table(data),
        costless=costless(data),
    )
    (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    (folder / "needed.csv").write_text(needed_csv(data), encoding="utf-8", newline="\n")
    (folder / "rounds.csv").write_text(to_csv(data), encoding="utf-8", newline="\n")


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg).decode('ascii')}"
