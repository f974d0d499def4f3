"""The curve by which k is chosen, as a table and as a figure; matplotlib is imported when it is drawn."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bezoar.certify.choose_k import LossCurve
from bezoar.reports.style import INK, MUTED, SERIES, Panel, Plot
from bezoar.reports.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


def k_table(curve: LossCurve, omega: float, k: int, note: str = "", used: int | None = None) -> Table:
    """The loss at round numbers of coordinates, at the chosen ``k`` and at the ``used`` one."""
    marks = {k: f"smallest k with a loss of at most {omega:g}"}
    if used is not None:
        marks[used] = f"{marks[used]}; k of the experiment" if used in marks else "k of the experiment"
    counts = {m * 10**e for e in range(len(str(curve.d))) for m in (1, 2, 5)}
    rows = tuple(
        (count, count / curve.d, float(curve.losses[count]), marks.get(count, ""))
        for count in sorted({n for n in counts if n <= curve.d} | set(marks) | {curve.d})
    )
    loss = Column("loss", "loss", "%", 100, 2) if curve.relative else Column("loss", "lost l1 norm", decimals=4)
    columns = (Column("k", "k"), Column("share", "of all", "%", 100, 3), loss, Column("note", "", numeric=False))
    return Table(
        "choose-k", f"What top-k loses, mean of {curve.vectors} vectors", columns, rows, (note,) if note else ()
    )


def k_plot(curve: LossCurve, omega: float, k: int, used: int | None = None) -> Plot:
    """The loss over k, the bound omega and the chosen k, and the ``used`` one if it is another."""
    what = "share of the l1 norm" if curve.relative else "l1 norm"
    caption = (
        f"What top-k loses ({what}), mean of {curve.vectors} vectors of {curve.d:,} numbers. "
        f"k = {k:,} is the smallest with a loss of at most {omega:g}."
    )
    if used is not None and used != k:
        caption += f" The experiment has k = {used:,}."
    draw = partial(_draw, curve=curve, omega=omega, k=k, used=used)
    return Plot("choose-k", "Choice of k", caption, (Panel("", draw),), height=2.2)


def _draw(figure: FigureBase, curve: LossCurve, omega: float, k: int, used: int | None) -> None:
    axes = figure.add_axes((0.13, 0.18, 0.83, 0.74))
    scale = 100 if curve.relative else 1
    counts = np.unique(np.geomspace(1, curve.d, 400).round().astype(np.int64))
    axes.semilogx(counts, scale * curve.losses[counts], color=SERIES[1])
    axes.axhline(scale * omega, color=MUTED, lw=0.6, ls=(0, (4, 2)))
    axes.set_xlim(1, max(curve.d, 2))
    axes.xaxis.set_major_formatter(lambda count, _: _short(count))
    axes.set_ylim(0, scale * max(float(curve.losses[0]), omega) or 1)
    axes.yaxis.grid(True)
    axes.set_xlabel("k, coordinates that move in a round", labelpad=1)
    axes.set_title("lost by top-k, % of the l1 norm" if curve.relative else "l1 norm lost by top-k", color=MUTED)
    # Points in the left half have their label on the right, and the other way round.
    for count, text, color in ((used, "in use", SERIES[2]), (k, "chosen", INK)):
        if count is None or (text == "in use" and count == k):
            continue
        left = count**2 > curve.d
        axes.plot([count], [scale * curve.losses[count]], "o", color=color, ms=4, clip_on=False)
        axes.annotate(
            f"{text}: k = {count:,}",
            (count, scale * float(curve.losses[count])),
            xytext=(-6 if left else 6, -7 if left else 5),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=7,
            color=color,
        )


def _short(count: float) -> str:
    """A round number in the room of a tick: 500, 10k, 1M."""
    unit, size = next(((unit, size) for unit, size in (("M", 1e6), ("k", 1e3)) if count >= size), ("", 1.0))
    return f"{count / size:g}{unit}"
