"""Concentrated knowledge (the paper's Figure 2): probability of the top tokens, and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from firstcli.api import JSON
from firstcli.reporting import style

_LINE = "#0072B2"
_DISK = "#009E73"


def drawing(measured: Mapping[str, JSON], top_k: int) -> style.Drawing:
    """Return cumulative probability by rank, and bytes per position by k.

    Args:
        measured: content of concentration.json.
        top_k: this run's k.
    """
    mass = dict(zip(measured["ranks"], measured["mean"], strict=True))
    size = {int(k): float(b) for k, b in measured["bytes"].items()}
    spreads = ("mean", "low", "p05", "p95", "high")
    rows = [
        (rank, *(float(measured[key][i]) for key in spreads), size.get(rank))
        for i, rank in enumerate(measured["ranks"])
        if rank in size or rank <= 10
    ]
    columns = ("k", "mean mass", "lowest", "5th percentile", "95th percentile", "highest", "bytes")
    kept = f"; the top {top_k} hold {100 * mass[top_k]:.1f} percent" if top_k in mass else ""
    means = ", ".join(f"{100 * mass[r]:.1f} percent" for r in (1, 5, 100) if r in mass)
    cumulative = style.Panel(
        "Cumulative probability",
        partial(_draw_mass, measured, top_k),
        "Mean cumulative probability of the teacher's 1, 5 and 100 most likely tokens: "
        f"{means}{kept}.",
    )
    costs = ", ".join(f"{bytes_:.1f} for k = {k}" for k, bytes_ in sorted(size.items()))
    draw = partial(_draw_disk, size, top_k, str(measured.get("precision", "standard")))
    disk = style.Panel("Disk", draw, f"Bytes per position on disk: {costs}.")
    numbers = style.Numbers(columns, rows)
    return style.Drawing("concentration", (cumulative, disk), numbers, size=(3.4, 2.9))


def _draw_mass(measured: Mapping[str, JSON], top_k: int, place: SubFigure) -> None:
    style.heading(place, "Cumulative probability", f"at {measured['positions']} training positions")
    main = style.axes(place, left=0.62, bottom=0.42)
    ranks = measured["ranks"]
    band: dict[str, Any] = {"color": style.BAND, "alpha": 0.5, "linewidth": 0}
    main.fill_between(ranks, measured["p05"], measured["p95"], label="90 % of positions", **band)
    dotted: dict[str, Any] = {"color": style.SOFT, "linewidth": 0.8, "linestyle": (0, (1, 1))}
    main.plot(ranks, measured["low"], label="minimum and maximum", **dotted)
    main.plot(ranks, measured["high"], **dotted)
    main.plot(ranks, measured["mean"], color=_LINE, label="mean")
    main.set(xlabel="most likely tokens kept, k", ylabel="their total probability")
    style.percent(main.yaxis)
    main.set_ylim(min(0.95, *measured["low"]) - 0.02, 1.01)
    _over_k(main, max(ranks), top_k)
    main.legend(loc="lower right", fontsize=7.5, frameon=False, handlelength=1.8)


def _draw_disk(size: Mapping[int, float], top_k: int, precision: str, place: SubFigure) -> None:
    style.heading(place, "Disk", f"precision: {precision}")
    main = style.axes(place, bottom=0.42)
    ks = sorted(size)
    main.plot(ks, [size[k] for k in ks], color=_DISK, marker="s")
    for k in ks:  # to the left of the point, where neither the curve nor the line of k is
        above: dict[str, Any] = {"xytext": (-5, 2), "textcoords": "offset points", "ha": "right"}
        main.annotate(f"{size[k]:.1f}", (k, size[k]), size=7, **above)
    main.set(xlabel="most likely tokens kept, k", ylabel="bytes per position")
    main.set_yscale("log")
    main.margins(y=0.12)
    _over_k(main, max(ks), top_k)
    main.set_xlim(left=0.55 * min(ks))
    main.yaxis.set_major_formatter(ScalarFormatter())
    main.yaxis.set_minor_formatter(NullFormatter())


def _over_k(main: Axes, largest: int, top_k: int) -> None:
    main.axvline(top_k, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    style.logarithmic(main, [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= largest])
    main.grid(True)
