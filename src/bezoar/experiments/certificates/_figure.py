"""The radius over the rounds, on a log scale, against the measured distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bezoar.experiments.certificates._cell import Cell
from bezoar.reports.style import INK, MUTED, Panel, Plot, looks

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

_LOG10 = math.log(10)
_HEIGHT = 2.5
#: A line looks the same in every panel.
_LOOKS = looks(
    ("measured", "clipped steps reach", "recurrence", "ℓ2 of the convex loss × √d", "recurrence, omega as measured"),
    "measured",
)


def radius_plot(cells: Sequence[Cell]) -> Plot:
    """One panel for every k: log10 of the radii and of the measured l1 distance after every round."""
    panels = tuple(
        Panel(f"k = {cell.server.k:,}", partial(_draw, cell=cell, title=f"k = {cell.server.k:,} of {cell.server.d:,}"))
        for cell in cells
    )
    caption = "ℓ1 distance of the poisoned model from its clean twin: certified by each bound, and measured."
    return Plot("certificate", "Certified radius and measured distance", caption, panels, _HEIGHT)


def _lines(cell: Cell) -> dict[str, list[float]]:
    """Name -> log10 after every round; what is the same as another line is left out."""
    found: dict[str, list[float]] = {}
    if cell.distances[0]:
        found["measured"] = [math.log10(gap) if gap else -math.inf for gap in cell.distances[0]]
    found["clipped steps reach"] = _tens(cell.reach)
    if cell.always is not None:
        found["recurrence"] = _tens(cell.always.log_radius)
    if cell.if_measured is not None and cell.if_measured.gamma != (cell.always.gamma if cell.always else None):
        found["recurrence, omega as measured"] = _tens(cell.if_measured.log_radius)
    if cell.convex is not None:
        root = math.log(cell.server.d) / 2
        found["ℓ2 of the convex loss × √d"] = _tens([value + root for value in cell.convex.log_radius])
    return found


def _tens(logs: Sequence[float]) -> list[float]:
    return [value / _LOG10 for value in logs]


def _draw(figure: FigureBase, *, cell: Cell, title: str) -> None:
    axes = figure.add_axes((0.13, 0.37, 0.83, 0.52))
    lines = _lines(cell)
    rounds = range(1, len(cell.facts) + 1)
    for name, line in lines.items():
        look = _LOOKS[name]
        values = [value if math.isfinite(value) else math.nan for value in line]
        every = max(1, len(values) // 6)
        axes.plot(
            rounds,
            values,
            color=look.color,
            ls=look.dashes,
            marker=look.marker,
            ms=3,
            mew=0,
            markevery=every,
            label=f"{name}, c estimated" if cell.estimated and name == "recurrence" else name,
        )
    if cell.moved:
        axes.axhline(math.log10(cell.moved), color=MUTED, lw=0.6, ls="dotted", label="way of the clean model")
    axes.set_title(f"{title}: log10 of the ℓ1 distance", color=MUTED, fontsize=7)
    axes.set_xlabel("round", labelpad=1)
    axes.yaxis.grid(True)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.46, -0.24),
        ncol=2,
        fontsize=6.2,
        frameon=False,
        labelcolor=INK,
        handlelength=2.4,
        columnspacing=1.2,
    )
