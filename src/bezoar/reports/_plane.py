"""Test accuracy against attack accuracy or outsized impact, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bezoar.reports._drawing import Sheet, caption_of, place_labels, series_looks, short
from bezoar.reports.estimates import Estimate
from bezoar.reports.rows import Grid, Row
from bezoar.reports.style import GHOST, HALO, MUTED, Look, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

NAMED = 10
"""Points that a panel names; where there are more, those off the front carry their row number."""
_WORST = "worst over attacks"
_EDGE = 104.0


@dataclass(frozen=True)
class _Across:
    """What runs from left to right: values times ``factor``, from 0 to ``most``; ``end`` is where the axis ends."""

    title: str
    factor: float
    most: float

    @property
    def end(self) -> float:
        return 1.04 * self.most


_ATTACK = _Across("attack accuracy (%)", 100.0, 100.0)


@dataclass(frozen=True)
class _Point:
    name: str
    number: int
    attack: Estimate
    test: Estimate
    look: Look
    converged: bool
    factor: float = 100.0

    @property
    def x(self) -> float:
        return self.factor * self.attack.mean

    @property
    def y(self) -> float:
        return 100 * self.test.mean


def plane(g: Grid) -> Plot | None:
    """Test accuracy against attack accuracy, the Pareto front marked, one panel per setting."""
    look = series_looks(g)
    groups: list[tuple[str, list[_Point]]] = []
    for setting, rows in g.settings.items():
        points = [
            _Point(name, row.number, row.attack_accuracy, row.test_accuracy_clean, look[name], row.converged == row.n)
            for row in rows
            for name in (g.series(row),)
            if row.attack_accuracy is not None and row.test_accuracy_clean is not None
        ]
        groups.append((g.describe(setting), points))
    groups.append((_WORST, _worst(g, look)))
    groups = [(title, [p for p in points if math.isfinite(p.x + p.y)]) for title, points in groups]
    groups = [(title, points) for title, points in groups if points]
    if max((len(points) for _, points in groups), default=0) < 2:
        return None
    sheet = Sheet(2.65, any(title for title, _ in groups))
    limits = _limits([p.y for _, points in groups for p in points])
    panels = tuple(
        Panel(title, partial(_draw, title=title, points=points, limits=limits, sheet=sheet)) for title, points in groups
    )
    caption = (
        "Better is up and to the left. Ringed and joined: the Pareto front, the points than which no other is at "
        "least as good on both axes. Test accuracy without the aux points."
    )
    if any(p.attack.half is not None for _, points in groups for p in points):
        caption += " Whiskers: 95% interval over seeds."
    if not all(p.converged for _, points in groups for p in points):
        caption += " Hollow: not every seed converged."
    if any(len(points) > NAMED for title, points in groups if title != _WORST):
        caption += " Numbers: rows of the table. A point without a text has its line and marker there."
    if groups[-1][0] == _WORST:
        caption += " The last panel takes for each point the worst attack on each axis."
    return Plot("plane", "What a defence costs and what it buys", caption, panels, sheet.height)


def impact(g: Grid) -> Plot | None:
    """Test accuracy against outsized impact, all settings in one panel.

    Drawn where the plane of attack accuracies does not show the same: where rows differ in how many points there are to
    win, or where the paper that the comparison is about measures impact.
    """
    look = series_looks(g)
    known = [
        (row, o, t)
        for row in g.rows
        if (o := row.outsized_impact) is not None and (t := row.test_accuracy_clean) is not None
    ]
    known = [(row, o, t) for row, o, t in known if math.isfinite(o.mean + t.mean)]
    stated = any("oif" in claim.metrics for claim in g.comparison.claims)
    if len(known) < 2 or not (stated or _unlike([row for row, _, _ in known])):
        return None
    points = [
        _Point(g.series(row), row.number, o, t, look[g.series(row)], row.converged == row.n, 1.0) for row, o, t in known
    ]
    across = _Across("outsized impact factor", 1.0, max(1e-9, *(p.x for p in points)))
    sheet = Sheet(2.65, False)
    limits = _limits([p.y for p in points])
    panel = Panel("", partial(_draw, title="", points=points, limits=limits, sheet=sheet, across=across))
    caption = (
        "Better is up and to the left. Ringed and joined: the Pareto front. Every point is a row of the table of "
        "results. Test accuracy without the aux points."
    )
    return Plot("impact", "Impact of the attack and accuracy of the model", caption, (panel,), sheet.height)


def _unlike(rows: Sequence[Row]) -> bool:
    """Whether impact is not the same multiple of attack accuracy in all rows."""
    ratios = [
        row.outsized_impact.mean / row.attack_accuracy.mean
        for row in rows
        if row.outsized_impact is not None and row.attack_accuracy is not None and row.attack_accuracy.mean > 0
    ]
    return bool(ratios) and max(ratios) > 1.001 * min(ratios)


def pareto(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices of the points (attack accuracy, test accuracy) than which no other is at least as good on both axes.

    >>> pareto([(5.0, 80.0), (50.0, 79.0), (97.0, 88.0)])
    [0, 2]
    """
    points = list(points)
    best = -math.inf
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _worst(g: Grid, look: dict[str, Look]) -> list[_Point]:
    """One point per series over all attacks, where the attack is the only thing that varies besides the series."""
    varying = {axis for axis in g.axes if len(g.values[axis]) > 1}
    if g.attack_axis is None or g.series_axis is None or varying != {g.series_axis, g.attack_axis}:
        return []
    return [
        _Point(name, 0, entry.worst_attack, entry.worst_test, look[name], entry.converged)
        for entry in g.over_attacks
        if entry.worst_attack is not None and entry.worst_test is not None
        for name in (entry.labels[g.series_axis],)
    ]


def _draw(
    figure: FigureBase,
    *,
    title: str,
    points: Sequence[_Point],
    limits: tuple[float, float],
    sheet: Sheet,
    across: _Across = _ATTACK,
) -> None:
    sheet.heading(figure, title)
    axes = sheet.axes(figure, 0.38, 0.2, 0.37, sheet.body - 0.37 - 0.2)
    caption_of(axes, "Test accuracy (%)")
    axes.set_xlabel(across.title, labelpad=1)
    axes.set_xlim(-0.04 * across.most, across.end)
    if across is _ATTACK:
        axes.set_xticks([0, 25, 50, 75, 100])
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(limits)
    axes.locator_params(axis="y", nbins=6)
    axes.grid(True)
    front = pareto((p.x, p.y) for p in points)
    corners = [(points[i].x, points[i].y) for i in front]
    axes.plot([*(x for x, _ in corners), across.end], [*(y for _, y in corners), corners[-1][1]],
              drawstyle="steps-post", color=GHOST, lw=1.6, zorder=1)  # fmt: skip
    lines = []
    for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], (across.end, corners[-1][1])], strict=True):
        lines += [(x, y, next_x, y), (next_x, y, next_x, next_y)]
    for p in points:
        for x0, y0, x1, y1 in _whiskers(p, across.most):
            axes.plot([x0, x1], [y0, y1], color=p.look.color, lw=0.7, alpha=0.75, zorder=2)
            lines.append((x0, max(y0, limits[0]), x1, min(y1, limits[1])))
    for i, p in enumerate(points):
        if i in front:
            axes.plot(p.x, p.y, "o", ms=9.5, mfc="none", mec=MUTED, mew=0.7, zorder=3)
        fill = p.look.color if p.converged else HALO
        axes.plot(p.x, p.y, marker=p.look.marker, ms=5, color=p.look.color, mfc=fill, mew=1, zorder=4)
    every = len(points) <= NAMED
    texts = [short(p.name) if every or i in front else str(p.number or "") for i, p in enumerate(points)]
    labels = [(p.x, p.y, text, i in front) for i, (p, text) in enumerate(zip(points, texts, strict=True))]
    place_labels(axes, labels, lines, crowded=not every)


def _whiskers(p: _Point, most: float) -> Iterable[tuple[float, float, float, float]]:
    """The intervals of a point, as far as they lie in 0 to ``most`` and in 0 to 100%."""

    def span(e: Estimate, factor: float, most: float) -> tuple[float, float] | None:
        if e.half is None or not math.isfinite(e.half):
            return None
        return max(0.0, factor * (e.mean - e.half)), min(most, factor * (e.mean + e.half))

    if (across := span(p.attack, p.factor, most)) is not None:
        yield across[0], p.y, across[1], p.y
    if (along := span(p.test, 100.0, 100.0)) is not None:
        yield p.x, along[0], p.x, along[1]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits for percentages: all values with some air, at least 12 points wide, within 0 to 100 and a little."""
    low, high = min(values), max(values)
    air = max(1.5, 0.12 * (high - low), (12 - (high - low)) / 2)
    return max(-4.0, low - air), min(_EDGE, high + air)
