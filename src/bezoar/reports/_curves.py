"""Test and attack accuracy over the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bezoar.reports._drawing import Sheet, caption_of, label_width, names, series_looks, spread
from bezoar.reports.estimates import Estimate
from bezoar.reports.records import Evaluation
from bezoar.reports.rows import Grid, Row
from bezoar.reports.style import GHOST, INK, MUTED, WIDTH, Look, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

TOGETHER = 7
"""Series that one panel can hold; more are split over panels, the others in grey behind them."""
_TALL, _BETWEEN, _BELOW, _ABOVE = 1.15, 0.32, 0.37, 0.2


@dataclass(frozen=True)
class Curve:
    """In per cent: mean, least and greatest over ``seeds`` seeds at ``rounds``."""

    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def curve(row: Row, value: Callable[[Evaluation], float | None]) -> Curve | None:
    """The row's curve at the rounds that all its seeds evaluated.

    Unfinished runs count only where no run has finished: a mean whose seeds change midway is no curve.
    """
    runs = row.runs or tuple(cell.run for cell in row.cells if cell.run is not None)
    by_seed = [{e.round: v for e in run.evaluations if (v := value(e)) is not None} for run in runs]
    by_seed = [values for values in by_seed if values]
    if not by_seed:
        return None
    rounds = sorted(set.intersection(*(set(values) for values in by_seed)))
    estimates = [Estimate.of(values[t] for values in by_seed) for t in rounds]
    points = [(t, 100 * e.mean, 100 * e.low, 100 * e.high) for t, e in zip(rounds, estimates, strict=True) if e]
    if not points:
        return None
    at, mean, low, high = zip(*points, strict=True)
    return Curve(at, mean, low, high, len(by_seed))


def curves(g: Grid) -> Plot | None:
    """Test and attack accuracy over the rounds, one panel per setting."""
    test = {row.number: c for row in g.rows if (c := curve(row, lambda e: e.test_accuracy_clean)) is not None}
    attack = {row.number: c for row in g.rows if (c := curve(row, lambda e: e.attack_accuracy)) is not None}
    if not test:
        return None
    parts = [("Test accuracy (%)", test)] + ([("Attack accuracy (%)", attack)] if attack else [])
    titles: list[str] = []
    groups: list[tuple[Sequence[Row], list[Row]]] = []
    for setting, rows in g.settings.items():
        drawn = [row for row in rows if row.number in test]
        split = _split(drawn, g)
        for index, group in enumerate(split):
            part = f"{index + 1} of {len(split)}" if len(split) > 1 else ""
            titles.append(" · ".join(text for text in (g.describe(setting), part) if text))
            groups.append((drawn, group))
    body = _ABOVE + len(parts) * _TALL + (len(parts) - 1) * _BETWEEN + _BELOW
    sheet = Sheet(body, any(titles))
    last = max(c.rounds[-1] for c in test.values())
    panels = tuple(
        Panel(title, partial(_draw, title=title, sheet=sheet, g=g, rows=rows, group=group, parts=parts, last=last))
        for title, (rows, group) in zip(titles, groups, strict=True)
    )
    caption = "Test accuracy without the aux points."
    seeds = {c.seeds for c in test.values()}
    caption += " Line: mean over seeds; band: least to greatest seed." if max(seeds) > 1 else " One seed per line."
    if len(panels) > len(g.settings):
        caption += " Grey: the series that other panels name."
    if any(row.number in test and not row.n for row in g.rows):
        caption += " A line that ends early is that of an unfinished run."
    return Plot("curves", "Accuracy over the rounds", caption, panels, sheet.height)


def _split(rows: Sequence[Row], g: Grid) -> list[list[Row]]:
    """Groups that one panel can name, each with the baseline."""
    if len(rows) <= TOGETHER:
        return [list(rows)] if rows else []
    base = [row for row in rows if g.series(row) == g.baseline]
    rest = [row for row in rows if g.series(row) != g.baseline]
    size = math.ceil(len(rest) / math.ceil(len(rest) / (TOGETHER - len(base))))
    return [base + rest[i : i + size] for i in range(0, len(rest), size)]


def _draw(
    figure: FigureBase,
    *,
    title: str,
    sheet: Sheet,
    g: Grid,
    rows: Sequence[Row],
    group: Sequence[Row],
    parts: Sequence[tuple[str, Mapping[int, Curve]]],
    last: int,
) -> None:
    look = series_looks(g)
    named = len(look) > 1
    texts = names(g, group)
    right = label_width(texts) + 0.42 if named else 0.42
    sheet.heading(figure, title)
    for index, (label, found) in enumerate(parts):
        lowest = index == len(parts) - 1
        bottom = sheet.body - _ABOVE - _TALL - index * (_TALL + _BETWEEN)
        axes = sheet.axes(figure, 0.38, right, bottom, _TALL)
        caption_of(axes, label)
        axes.set_xlim(0, last)
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 50, 100])
        axes.yaxis.grid(True)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.tick_params(labelbottom=lowest)
        if lowest:
            axes.set_xlabel("round", labelpad=1)
        for row in rows:
            if row not in group and row.number in found:
                axes.plot(found[row.number].rounds, found[row.number].mean, color=GHOST, lw=0.6)
        ends = []
        for place, (row, text) in enumerate(zip(group, texts, strict=True)):
            if row.number not in found:
                continue
            c, style = found[row.number], look[g.series(row)]
            _line(axes, c, style, place / len(group))
            if math.isfinite(c.mean[-1]):
                shown = f"{text} {c.mean[-1]:.0f}" if named else f"{c.mean[-1]:.1f}"
                ends.append((c.mean[-1], shown, style, c.rounds[-1]))
        if ends:
            _label_ends(axes, ends, last, (WIDTH - 0.38 - right))
        elif not any(row.number in found for row in group):
            axes.text(0.5, 0.5, "no targeted attack", transform=axes.transAxes, ha="center", color=MUTED, fontsize=7)


def _line(axes: Axes, c: Curve, style: Look, phase: float) -> None:
    """The mean with a few markers, shifted by ``phase`` so that the markers of close lines do not cover each other."""
    every = max(1, len(c.rounds) // 5)
    if c.seeds > 1:
        axes.fill_between(c.rounds, c.low, c.high, color=style.color, alpha=0.18, lw=0)
    axes.plot(
        c.rounds,
        c.mean,
        color=style.color,
        ls=style.dashes,
        marker=style.marker,
        ms=3.2,
        mew=0,
        markevery=(int(phase * every), every),
        clip_on=False,
    )


def _label_ends(axes: Axes, ends: list[tuple[float, str, Look, int]], last: int, wide: float) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    ends = sorted(ends, key=lambda end: end[0])
    places = spread([end[0] for end in ends], 0.125 * 100 / _TALL, -1, 104)
    inch = last / wide
    for (value, text, style, at), place in zip(ends, places, strict=True):
        x = last + 0.13 * inch
        axes.plot([at, x], [value, place], color=style.color, lw=0.5, clip_on=False)
        axes.plot([x], [place], color=style.color, marker=style.marker, ms=3.4, mew=0, clip_on=False)
        axes.text(x + 0.06 * inch, place, text, va="center_baseline", fontsize=7, color=INK)
