"""Concentrated knowledge (the paper's Figure 2): what the first ranks hold, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from firstcli.reporting.style import (
    BAND,
    INK,
    SOFT,
    Drawing,
    Numbers,
    Panel,
    axes,
    heading,
    logarithmic,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from firstcli.api import JSON

_SIZE = (3.4, 2.9)
_LINE = "#0072B2"
_DISK = "#009E73"


def drawing(found: Mapping[str, JSON], top_k: int) -> Drawing:
    """Return cumulative mass over the rank, and bytes a position over k."""
    mass = dict(zip(found["ranks"], found["mean"], strict=True))
    size = {int(k): float(b) for k, b in found["bytes"].items()}
    spreads = ("mean", "low", "p05", "p95", "high")
    rows = tuple(
        (rank, *(float(found[key][i]) for key in spreads), size.get(rank))
        for i, rank in enumerate(found["ranks"])
        if rank in size or rank <= 10
    )
    columns = ("k", "mean mass", "lowest", "5th percentile", "95th percentile", "highest", "bytes")
    kept = f"the top {top_k} hold {100 * mass[top_k]:.1f} percent" if top_k in mass else ""
    said = ", ".join(f"{100 * mass[r]:.1f} percent" for r in (1, 5, 100) if r in mass)
    held = Panel(
        "Cumulative probability",
        partial(_draw_mass, found, top_k),
        f"Mean cumulative probability of the teacher's first 1, 5 and 100 tokens: {said}; {kept}.",
    )
    costs = ", ".join(f"{bytes_:.1f} for k = {k}" for k, bytes_ in sorted(size.items()))
    disk = Panel(
        "Disk",
        partial(_draw_disk, size, top_k, str(found.get("precision", "standard"))),
        f"Bytes a position on disk: {costs}.",
    )
    return Drawing("concentration", (held, disk), Numbers(columns, rows), size=_SIZE)


def _draw_mass(found: Mapping[str, JSON], top_k: int, place: SubFigure) -> None:
    heading(place, "Cumulative probability", f"of {found['positions']} training positions")
    main = axes(place, left=0.62, bottom=0.42)
    ranks = found["ranks"]
    main.fill_between(
        *(ranks, found["p05"], found["p95"]),
        color=BAND,
        alpha=0.5,
        linewidth=0,
        label="nine in ten positions",
    )
    for key, label in (("low", "lowest and highest"), ("high", None)):
        line = (0, (1, 1))
        main.plot(ranks, found[key], color=SOFT, linewidth=0.8, linestyle=line, label=label)
    main.plot(ranks, found["mean"], color=_LINE, label="mean")
    main.set(xlabel="most likely tokens kept, k", ylabel="probability they hold")
    main.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    main.set_ylim(min(0.95, *found["low"]) - 0.02, 1.01)
    _over_k(main, max(ranks), top_k)
    main.legend(loc="lower right", fontsize=7.5, frameon=False, handlelength=1.8)


def _draw_disk(size: Mapping[int, float], top_k: int, precision: str, place: SubFigure) -> None:
    heading(place, "Disk", f"precision: {precision}")
    main = axes(place, bottom=0.42)
    ks = sorted(size)
    main.plot(ks, [size[k] for k in ks], color=_DISK, marker="s")
    for k in ks:
        main.annotate(
            *(f"{size[k]:.1f}", (k, size[k])),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            size=7,
        )
    main.set(xlabel="most likely tokens kept, k", ylabel="bytes a position")
    main.set_ylim(0, 1.15 * max(size.values()))
    _over_k(main, max(ks), top_k)


def _over_k(main: Axes, most: int, top_k: int) -> None:
    main.axvline(top_k, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    logarithmic(main, [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= most])
    main.grid(True)
