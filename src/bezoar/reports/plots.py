"""The figures of a report: curves, the accuracy plane, times, distances, accuracy by class.

matplotlib is imported when a figure is drawn, never when this module is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bezoar.reports.estimates import Estimate
from bezoar.reports.records import PHASES, Comparison, Evaluation, Run, as_comparison
from bezoar.reports.rows import Grid, Row, grid
from bezoar.reports.style import (
    GHOST,
    HALO,
    INK,
    MUTED,
    PHASE,
    WIDTH,
    Look,
    Panel,
    Plot,
    looks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

TOGETHER = 7
"""Series that one panel of curves can hold; more are split over panels, the others in grey behind them."""


def plots(records: Comparison | Run | Grid) -> tuple[Plot, ...]:
    """All figures that apply to the records, in the order of the report."""
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    found = (curves(g), plane(g), distances(g), timing(g), per_class(g))
    return tuple(plot for plot in found if plot is not None)


# Curves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Curve:
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def _curve(row: Row, value: Callable[[Evaluation], float | None]) -> _Curve | None:
    """Mean, least and greatest over the seeds, at the rounds that all of them evaluated.

    Unfinished runs count only where no run has finished: a mean that changes its seeds midway is no curve.
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
    return _Curve(at, mean, low, high, len(by_seed))


def curves(g: Grid) -> Plot | None:
    """Test and attack accuracy over the rounds, one panel per setting."""
    look = series_looks(g)
    test = {row.number: _curve(row, lambda e: e.test_accuracy_clean) for row in g.rows}
    attack = {row.number: _curve(row, lambda e: e.attack_accuracy) for row in g.rows}
    if not any(test.values()):
        return None
    targeted = any(attack.values())
    last = max(curve.rounds[-1] for curve in test.values() if curve is not None)
    top = _nice_top([curve.high for curve in test.values() if curve is not None])
    panels = []
    for setting, rows in g.settings.items():
        for group in _groups(rows, g):
            names = _title(g, setting) if len(group) == len(rows) else f"{_title(g, setting)} (rows {_span(group)})"
            draw = partial(
                _draw_curves, title=names, g=g, rows=rows, group=group, look=look, last=last, top=top,
                test=test, attack=attack if targeted else None,
            )  # fmt: skip
            panels.append(Panel(names, draw))
    seeds = max(curve.seeds for curve in test.values() if curve is not None)
    band = " Line: mean over seeds; band: least to greatest seed." if seeds > 1 else " One seed."
    caption = "Test accuracy is measured without the aux points." + band
    if len(panels) > len(g.settings):
        caption += " Grey: the series named in other panels."
    return Plot("curves", "Accuracy over the rounds", caption, tuple(panels), 3.35 if targeted else 1.95)


def _groups(rows: Sequence[Row], g: Grid) -> list[list[Row]]:
    if len(rows) <= TOGETHER:
        return [list(rows)]
    base = [row for row in rows if g.series(row) == g.baseline]
    rest = [row for row in rows if g.series(row) != g.baseline]
    count = -(-len(rest) // (TOGETHER - 1))
    size = -(-len(rest) // count)
    return [base + rest[i : i + size] for i in range(0, len(rest), size)]


def _draw_curves(
    figure: FigureBase,
    *,
    title: str,
    g: Grid,
    rows: Sequence[Row],
    group: Sequence[Row],
    look: dict[str, Look],
    last: int,
    top: float,
    test: dict[int, _Curve | None],
    attack: dict[int, _Curve | None] | None,
) -> None:
    height = 3.35 if attack is not None else 1.95
    named = len(g.rows) > 1
    right = _label_width([_short(g.series(row)) for row in group]) + 0.28 if named else 0.4
    _heading(figure, height, title)
    parts = [("Test accuracy (%)", test, top), ("Attack accuracy (%)", attack, 100.0)]
    tall = 1.15 if attack is not None else 1.1
    for index, (label, curve_of, upper) in enumerate(part for part in parts if part[1] is not None):
        assert curve_of is not None
        bottom = height - 0.5 - tall - index * (tall + 0.3)
        axes = _axes(figure, height, 0.42, right, bottom, tall)
        axes.set_title(label, color=MUTED, fontsize=7, pad=3)
        axes.set_xlim(0, last)
        axes.set_ylim(0, upper)
        axes.yaxis.grid(True)
        axes.set_yticks([0, upper / 2, upper] if upper in (100, 60, 80, 40, 20) else [0, upper])
        axes.locator_params(axis="x", nbins=4, integer=True)
        if index == len([p for p in parts if p[1] is not None]) - 1:
            axes.set_xlabel("round", labelpad=1)
        else:
            axes.tick_params(labelbottom=False)
        ends: list[tuple[float, str, Look, int]] = []
        for row in rows:
            curve = curve_of[row.number]
            if curve is None or row in group:
                continue
            axes.plot(curve.rounds, curve.mean, color=GHOST, lw=0.7)
        for place, row in enumerate(group):
            curve, style = curve_of[row.number], look[g.series(row)]
            if curve is None:
                continue
            every = max(1, len(curve.rounds) // 5)
            if curve.seeds > 1:
                axes.fill_between(curve.rounds, curve.low, curve.high, color=style.color, alpha=0.16, lw=0)
            axes.plot(
                curve.rounds, curve.mean, color=style.color, ls=style.dashes, marker=style.marker, ms=3,
                markevery=(place * every // max(1, len(group)), every), mew=0, clip_on=False,
            )  # fmt: skip
            if math.isfinite(curve.mean[-1]):
                text = f"{_short(g.series(row))} {curve.mean[-1]:.0f}" if named else f"{curve.mean[-1]:.1f}"
                ends.append((curve.mean[-1], text, style, curve.rounds[-1]))
        if ends:
            _label_ends(axes, ends, last, upper / tall)
        else:
            axes.text(0.5, 0.5, "no targeted attack", transform=axes.transAxes, ha="center", color=MUTED, fontsize=7)


def _label_ends(axes: Axes, ends: list[tuple[float, str, Look, int]], last: int, per_inch: float) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    ends = sorted(ends, key=lambda end: end[0])
    places = _spread([end[0] for end in ends], 0.125 * per_inch, axes.get_ylim())
    width = axes.get_position().width
    inch = last / (width * _inches(axes))
    for (value, text, style, at), place in zip(ends, places, strict=True):
        x = last + 0.13 * inch
        axes.plot([at, x], [value, place], color=style.color, lw=0.6, clip_on=False)
        axes.plot([x], [place], color=style.color, marker=style.marker, ms=3.2, mew=0, clip_on=False)
        axes.text(x + 0.06 * inch, place, text, va="center_baseline", fontsize=7, color=INK)


def _spread(values: Sequence[float], gap: float, limits: tuple[float, float]) -> list[float]:
    """Places at least ``gap`` apart in the order of the sorted ``values``, each as near to its value as that allows."""
    blocks: list[list[float]] = []  # [sum of wished-for starts, count]; a block's members stand gap apart
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1:
            (first, n), (second, m) = blocks[-2], blocks[-1]
            if second / m - (m - 1) * gap / 2 >= first / n + (n - 1) * gap / 2 + gap:
                break
            blocks[-2:] = [[first + second, n + m]]
    places: list[float] = []
    for total, count in blocks:
        start = total / count - (count - 1) * gap / 2
        places += [start + i * gap for i in range(int(count))]
    excess = places[-1] - limits[1] if places else 0.0
    for i in range(len(places) - 1, -1, -1):  # push back what stands above the top, in a chain
        if excess <= 0:
            break
        places[i] = min(places[i], limits[1] - (len(places) - 1 - i) * gap)
    return places


# The plane ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    name: str
    number: int | None
    attack: Estimate
    test: Estimate
    look: Look
    whole: bool

    @property
    def x(self) -> float:
        return 100 * self.attack.mean

    @property
    def y(self) -> float:
        return 100 * self.test.mean


def plane(g: Grid) -> Plot | None:
    """Test accuracy against attack accuracy, the Pareto front marked, one panel per attack."""
    look = series_looks(g)
    groups: list[tuple[str, list[_Point]]] = []
    for setting, rows in g.settings.items():
        points = [
            _Point(
                g.series(r), r.number, r.attack_accuracy, r.test_accuracy_clean, look[g.series(r)], r.converged == r.n
            )
            for r in rows
            if r.attack_accuracy is not None and r.test_accuracy_clean is not None
        ]
        groups.append((_title(g, setting), points))
    if g.attack_axis is not None and set(g.axes) == {g.series_axis, g.attack_axis}:
        worst = [
            _Point(name, None, entry.worst_attack, entry.worst_test, look[name], True)
            for entry in g.over_attacks
            if len(entry.attacks) > 1 and entry.worst_attack is not None and entry.worst_test is not None
            for name in (entry.labels[g.series_axis or ""],)
        ]
        groups.append(("worst over attacks", worst))
    finite = [(title, [p for p in points if math.isfinite(p.x + p.y)]) for title, points in groups]
    finite = [(title, points) for title, points in finite if points]
    if not finite or sum(len(points) for _, points in finite) < 2:
        return None
    low, high = _range([p.y for _, points in finite for p in points])
    panels = tuple(
        Panel(title, partial(_draw_plane, title=title, points=points, low=low, high=high)) for title, points in finite
    )
    caption = (
        "Better is up and to the left. Ringed and joined: the Pareto front, the points that no other point beats in "
        "both. Whiskers: 95% interval over seeds. Test accuracy without the aux points."
    )
    if any(not p.whole for _, points in finite for p in points):
        caption += " Hollow: not every seed converged."
    if any(len(points) > _NAMED for _, points in finite):
        caption += " Points off the front carry their row number in the table."
    if any(title == "worst over attacks" for title, _ in finite):
        caption += " The last panel takes, per point, the worst attack on each axis."
    return Plot("plane", "What a defence costs and what it buys", caption, panels, 3.0)


_NAMED = 10


def pareto(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices of the points (attack accuracy, test accuracy) that no other point beats in both, by attack accuracy."""
    points = list(points)
    best = -math.inf
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _draw_plane(figure: FigureBase, *, title: str, points: list[_Point], low: float, high: float) -> None:
    height = 3.0
    _heading(figure, height, title)
    axes = _axes(figure, height, 0.42, 0.2, 0.4, height - 0.4 - 0.55)
    axes.set_title("Test accuracy (%)", color=MUTED, fontsize=7, pad=5)
    axes.set_xlabel("attack accuracy (%)", labelpad=1)
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_ylim(low, high)
    axes.grid(True)
    front = pareto((p.x, p.y) for p in points)
    xs = [points[i].x for i in front]
    ys = [points[i].y for i in front]
    axes.plot([*xs, 104], [*ys, ys[-1]], drawstyle="steps-post", color=GHOST, lw=1.6, zorder=1)
    for p in points:
        for half, estimate in ((0, p.attack), (1, p.test)):
            if estimate.half is None or not math.isfinite(estimate.half):
                continue
            span = [100 * max(0.0, estimate.mean - estimate.half), 100 * min(1.0, estimate.mean + estimate.half)]
            at = ([p.y, p.y], [p.x, p.x])[half]
            pair = (span, at) if half == 0 else (at, span)
            axes.plot(*pair, color=p.look.color, lw=0.7, alpha=0.7, zorder=2)
    for i, p in enumerate(points):
        if i in front:
            axes.plot(p.x, p.y, "o", ms=9, mfc="none", mec=MUTED, mew=0.7, zorder=3)
        axes.plot(
            p.x, p.y, marker=p.look.marker, ms=5, color=p.look.color, mfc=p.look.color if p.whole else HALO,
            mew=1, zorder=4,
        )  # fmt: skip
    many = len(points) > _NAMED
    labels = [
        (p.x, p.y, _short(p.name) if i in front or not many or p.number is None else f"{p.number}", i in front)
        for i, p in enumerate(points)
    ]
    _place_labels(axes, labels)


def _place_labels(axes: Axes, labels: list[tuple[float, float, str, bool]]) -> None:
    """Puts each text on the side of its point where it covers least, the front's first."""
    scale = axes.transData
    box = axes.get_window_extent()
    per_point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    at = [tuple(scale.transform((x, y))) for x, y, _, _ in labels]
    taken = [(x - 5 * per_point, y - 5 * per_point, x + 5 * per_point, y + 5 * per_point) for x, y in at]
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    for index in sorted(range(len(labels)), key=lambda i: (not labels[i][3], -at[i][1], i)):
        x, y, text, strong = labels[index][0], labels[index][1], labels[index][2], labels[index][3]
        width, high = 4.3 * len(text) * per_point, 8 * per_point
        px, py = at[index]
        best: tuple[float, tuple[int, int], tuple[float, float, float, float]] | None = None
        for order, (dx, dy) in enumerate(sides):
            cx = px + dx * (6.5 * per_point + width / 2) * (0.75 if dx and dy else 1)
            cy = py + dy * 9.5 * per_point
            place = (cx - width / 2, cy - high / 2, cx + width / 2, cy + high / 2)
            cost = sum(_overlap(place, other) for j, other in enumerate(taken) if j != index) + 0.5 * order
            cost += 50 * (max(0.0, box.x0 - place[0]) + max(0.0, place[2] - box.x1 - 12 * per_point))
            cost += 50 * (max(0.0, box.y0 - place[1]) + max(0.0, place[3] - box.y1))
            if best is None or cost < best[0]:
                best = (cost, (dx, dy), place)
        assert best is not None
        taken.append(best[2])
        dx, dy = best[1]
        shift = 5.5 if dx and dy else 6.5
        axes.annotate(
            text, (x, y), (dx * shift, dy * (9.5 if not dx else 7.5)), textcoords="offset points",
            ha={1: "left", -1: "right", 0: "center"}[dx], va="center_baseline", fontsize=7,
            color=INK if strong else MUTED, zorder=5, annotation_clip=False,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# Bars and dots -----------------------------------------------------------------------------------------------------


def timing(g: Grid) -> Plot | None:
    """Seconds per round, stacked by phase."""
    groups = [(_title(g, key), [row for row in rows if row.seconds_per_round]) for key, rows in g.settings.items()]
    groups = [(title, rows) for title, rows in groups if rows]
    totals = [row.seconds_per_round.mean for _, rows in groups for row in rows if row.seconds_per_round]
    totals = [total for total in totals if math.isfinite(total)]
    if not totals or max(totals) <= 0:
        return None
    height = _bars_height(groups)
    panels = tuple(
        Panel(title, partial(_draw_timing, title=title, rows=rows, g=g, most=max(totals), height=height))
        for title, rows in groups
    )
    caption = "Mean seconds per round over rounds and seeds, on the hardware named below."
    return Plot("timing", "Where the time of a round goes", caption, panels, height)


def _draw_timing(figure: FigureBase, *, title: str, rows: Sequence[Row], g: Grid, most: float, height: float) -> None:
    _heading(figure, height, title)
    left = _label_width([_short(g.series(row)) for row in rows]) + 0.12
    axes = _axes(figure, height, left, 0.5, 0.36, height - 0.36 - 0.55)
    x = 0.0
    for phase, color in zip(PHASES, PHASE, strict=True):  # the key: five words in the order of the bars
        figure.text((0.08 + x) / WIDTH, 1 - 0.4 / height, "■", color=color, fontsize=8, va="center_baseline")
        figure.text((0.19 + x) / WIDTH, 1 - 0.4 / height, phase, color=MUTED, fontsize=6.5, va="center_baseline")
        x += 0.2 + 0.06 * len(phase)
    for place, row in enumerate(rows):
        start = 0.0
        for phase, color in zip(PHASES, PHASE, strict=True):
            estimate = row.seconds[phase]
            if estimate is None or not math.isfinite(estimate.mean):
                continue
            axes.barh(place, estimate.mean, left=start, color=color, height=0.68, lw=0)
            start += estimate.mean
        axes.text(start + 0.02 * most, place, f"{_seconds(start)} s", va="center_baseline", fontsize=7)
    _rows_axis(axes, [_short(g.series(row)) for row in rows])
    axes.set_xlim(0, most)
    axes.set_xlabel("seconds per round", labelpad=1)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.grid(True)


def distances(g: Grid) -> Plot | None:
    """Distance of the final model to the one that the same seed gives without the attack."""
    groups = [
        (_title(g, key), [row for row in rows if row.distance_l2 is not None or row.distance_l1 is not None])
        for key, rows in g.settings.items()
    ]
    groups = [(title, rows) for title, rows in groups if rows]
    if not groups:
        return None
    height = _bars_height(groups) + 0.02
    spans = {
        name: _finite(e.mean for _, rows in groups for row in rows if (e := getattr(row, f"distance_{name}")))
        for name in ("l2", "l1")
    }
    panels = tuple(
        Panel(title, partial(_draw_distances, title=title, rows=rows, g=g, spans=spans, height=height))
        for title, rows in groups
    )
    caption = "Distance of the final model to its unattacked twin: same seed, same settings, no attack."
    if any(_logarithmic(span) for span in spans.values()):
        caption += " Logarithmic axis where the distances differ by more than a factor of 30."
    return Plot("distances", "How far the attack moved the model", caption, panels, height)


def _draw_distances(
    figure: FigureBase, *, title: str, rows: Sequence[Row], g: Grid, spans: dict[str, list[float]], height: float
) -> None:
    look = series_looks(g)
    _heading(figure, height, title)
    left = _label_width([_short(g.series(row)) for row in rows]) + 0.12
    shown = [name for name in ("l2", "l1") if spans[name]]
    wide = (WIDTH - left - 0.2 - 0.22 * (len(shown) - 1)) / len(shown)
    for index, name in enumerate(shown):
        start = left + index * (wide + 0.22)
        axes = _axes(figure, height, start, WIDTH - start - wide, 0.36, height - 0.36 - 0.5)
        axes.set_title(f"ℓ{name[1]}", color=MUTED, fontsize=7, pad=3)
        for place, row in enumerate(rows):
            estimate: Estimate | None = getattr(row, f"distance_{name}")
            if estimate is None or not math.isfinite(estimate.mean):
                continue
            style = look[g.series(row)]
            if estimate.half is not None and math.isfinite(estimate.half):
                low = max(estimate.mean - estimate.half, min(spans[name]) / 3 if _logarithmic(spans[name]) else 0)
                axes.plot([low, estimate.mean + estimate.half], [place, place], color=style.color, lw=0.8)
            axes.plot(estimate.mean, place, marker=style.marker, color=style.color, ms=4.5, mew=0, clip_on=False)
        if _logarithmic(spans[name]):
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xlim(min(spans[name]) / 2, max(spans[name]) * 2)
        else:
            axes.set_xlim(0, max(spans[name]) * 1.15 or 1)
            axes.locator_params(axis="x", nbins=3)
        _rows_axis(axes, [_short(g.series(row)) for row in rows] if index == 0 else None, len(rows))
        axes.grid(True)


def per_class(g: Grid) -> Plot | None:
    """Accuracy of every class as a heat map, one line per row of the comparison."""
    rows = [row for row in g.rows if row.per_class]
    if not rows:
        return None
    height = 0.7 + 0.19 * len(rows)
    panel = Panel("", partial(_draw_per_class, rows=rows, g=g, height=height))
    caption = "Share of each class's test points that are classified rightly at the final round, mean over seeds."
    return Plot("per_class", "Accuracy by class", caption, (panel,), height, 2 * WIDTH)


def _draw_per_class(figure: FigureBase, *, rows: Sequence[Row], g: Grid, height: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    classes = max(len(row.per_class) for row in rows)
    names = []
    for row in rows:
        setting = g.describe(g.setting(row))
        names.append(_short(g.series(row) + (f", {setting}" if setting else ""), 34))
    left = min(2.4, _label_width(names) + 0.1)
    axes = figure.add_axes((left / (2 * WIDTH), 0.36 / height, 1 - (left + 0.15) / (2 * WIDTH), 1 - 0.7 / height))
    shares = [
        [100 * e.mean if e is not None else math.nan for e in row.per_class]
        + [math.nan] * (classes - len(row.per_class))
        for row in rows
    ]
    ramp = LinearSegmentedColormap.from_list("share", HEAT)
    axes.pcolormesh(shares, cmap=ramp, vmin=0, vmax=100, edgecolor="white", lw=0.4 if classes <= 40 else 0)
    if classes <= 20:
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                color = "white" if share > 55 else "black"
                text = f"{share:.0f}" if math.isfinite(share) else "–"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", fontsize=6.5, color=color)
    step = 1 if classes <= 20 else 5 if classes <= 60 else 10
    axes.set_xticks([c + 0.5 for c in range(0, classes, step)], [str(c) for c in range(0, classes, step)])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], names, color=INK)
    axes.set_ylim(len(rows), 0)
    axes.set_xlabel("class", labelpad=1)
    axes.tick_params(length=0)
    axes.set_title("Accuracy (%)", color=MUTED, fontsize=7, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


HEAT = ("#f4f1ea", "#c9d7e2", "#7fa8c9", "#2f6fa3", "#0d3a63")
"""The steps of the heat map, pale (0%) to dark (100%); lightness falls evenly, so that it also works in grey."""


# What the drawings share -------------------------------------------------------------------------------------------


def series_looks(g: Grid) -> dict[str, Look]:
    """The look of every series of the comparison, by name."""
    return looks(list(dict.fromkeys(g.series(row) for row in g.rows)), g.baseline)


def _title(g: Grid, setting: tuple[str, ...]) -> str:
    return g.describe(setting)


def _heading(figure: FigureBase, height: float, title: str) -> None:
    figure.text(0.08 / WIDTH, 1 - 0.16 / height, _short(title, 52), fontsize=8, fontweight="bold", va="center_baseline")


def _axes(figure: FigureBase, height: float, left: float, right: float, bottom: float, tall: float) -> Axes:
    """Axes with their margins in inches."""
    return figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, tall / height))


def _inches(axes: Axes) -> float:
    figure = axes.get_figure(root=False)
    assert figure is not None
    return float(figure.bbox.width / figure.get_figure(root=True).dpi)


def _rows_axis(axes: Axes, names: list[str] | None, count: int = 0) -> None:
    count = len(names) if names is not None else count
    axes.set_yticks(range(count), names if names is not None else [""] * count, color=INK)
    axes.set_ylim(count - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bars_height(groups: Sequence[tuple[str, Sequence[Any]]]) -> float:
    return 0.95 + 0.2 * max(len(rows) for _, rows in groups)


def _short(text: str, most: int = 20) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _label_width(names: Iterable[str]) -> float:
    """Inches that the longest of the names takes, a little too many rather than too few."""
    return 0.063 * max(map(len, names), default=0)


def _span(rows: Sequence[Row]) -> str:
    return ", ".join(str(row.number) for row in rows)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _logarithmic(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _nice_top(values: Iterable[Iterable[float]]) -> float:
    """The next multiple of 20 above all values, in per cent."""
    greatest = max((v for line in values for v in line if math.isfinite(v)), default=100.0)
    return min(100.0, max(20.0, 20.0 * math.ceil(greatest / 20)))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits for percentages: all values with some air, at least 12 points wide, within 0 to 100 and a little."""
    low, high = min(values), max(values)
    air = max(1.5, 0.12 * (high - low), (12 - (high - low)) / 2)
    return max(-4.0, low - air), min(104.0, high + air)
