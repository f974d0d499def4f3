"""Bars and dots, one line per row: seconds per round, distances, accuracy by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bezoar.reports._drawing import Sheet, caption_of, finite, label_width, names, rows_axis, series_looks, short
from bezoar.reports.estimates import Estimate
from bezoar.reports.records import PHASES
from bezoar.reports.rows import Grid, Row
from bezoar.reports.style import INK, MUTED, PHASE, WIDTH, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

HEAT = ("#faf3ec", "#f0cdb4", "#dd9468", "#b8552a", "#7a2c10")
"""The steps of the heat map, pale (100%) to dark (0%): what an attack has destroyed stands out, in grey print too."""
_BELOW, _LINE = 0.37, 0.19
_Groups = list[tuple[str, list[Row]]]


def timing(g: Grid) -> Plot | None:
    """Seconds per round, stacked by phase."""
    groups = _groups(g, lambda row: row.seconds_per_round is not None)
    totals = finite(row.seconds_per_round.mean for _, rows in groups for row in rows if row.seconds_per_round)
    if not totals or max(totals) <= 0:
        return None
    sheet = _sheet(groups, above=0.24)
    most = max(totals)
    panels = tuple(
        Panel(t, partial(_draw_timing, title=t, rows=rows, g=g, most=most, sheet=sheet)) for t, rows in groups
    )
    caption = "Mean seconds per round, on the hardware named below; the attack's time is that of simulating it."
    return Plot("timing", "Where the time of a round goes", caption, panels, sheet.height)


def _draw_timing(figure: FigureBase, *, title: str, rows: Sequence[Row], g: Grid, most: float, sheet: Sheet) -> None:
    sheet.heading(figure, title)
    texts = names(g, rows)
    left = label_width(texts) + 0.12
    axes = sheet.axes(figure, left, 0.5, _BELOW, sheet.body - _BELOW - 0.24)
    x = 0.06
    for phase, color in zip(PHASES, PHASE, strict=True):  # the key, in the order of the bars
        sheet.text(figure, x, 0.1, "■", color=color, fontsize=8)
        sheet.text(figure, x + 0.11, 0.1, phase, color=MUTED, fontsize=6.5)
        x += 0.2 + 0.058 * len(phase)
    for place, row in enumerate(rows):
        start = 0.0
        for phase, color in zip(PHASES, PHASE, strict=True):
            estimate = row.seconds[phase]
            if estimate is not None and math.isfinite(estimate.mean):
                axes.barh(place, estimate.mean, left=start, color=color, height=0.66, lw=0)
                start += estimate.mean
        axes.text(start + 0.02 * most, place, f"{_digits(start)} s", va="center_baseline", fontsize=7)
    rows_axis(axes, texts)
    axes.set_xlim(0, most)
    axes.set_xlabel("seconds per round", labelpad=1)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.grid(True)


def distances(g: Grid) -> Plot | None:
    """Distance of the final model to the one that the same seed gives without the attack."""
    readers: Mapping[str, Callable[[Row], Estimate | None]] = {
        "ℓ2": lambda row: row.distance_l2,
        "ℓ1": lambda row: row.distance_l1,
    }
    groups = _groups(g, lambda row: any(read(row) is not None for read in readers.values()))
    spans = {
        name: finite(e.mean for _, rows in groups for row in rows if (e := read(row)) is not None)
        for name, read in readers.items()
    }
    kept = {name: read for name, read in readers.items() if spans[name]}
    if not kept:
        return None
    sheet = _sheet(groups, above=0.2)
    panels = tuple(
        Panel(title, partial(_draw_distances, title=title, rows=rows, g=g, readers=kept, spans=spans, sheet=sheet))
        for title, rows in groups
    )
    caption = "Distance of the final model to its unattacked twin: same seed, same settings, no attack."
    if any(_logarithmic(span) for span in spans.values()):
        caption += " The axis is logarithmic where the distances differ by more than a factor of 20."
    return Plot("distances", "How far the attack moved the model", caption, panels, sheet.height)


def _draw_distances(
    figure: FigureBase,
    *,
    title: str,
    rows: Sequence[Row],
    g: Grid,
    readers: Mapping[str, Callable[[Row], Estimate | None]],
    spans: Mapping[str, list[float]],
    sheet: Sheet,
) -> None:
    look = series_looks(g)
    sheet.heading(figure, title)
    texts = names(g, rows)
    left = label_width(texts) + 0.12
    wide = (WIDTH - left - 0.2 - 0.24 * (len(readers) - 1)) / len(readers)
    for index, (name, read) in enumerate(readers.items()):
        start = left + index * (wide + 0.24)
        axes = sheet.axes(figure, start, WIDTH - start - wide, _BELOW, sheet.body - _BELOW - 0.2)
        caption_of(axes, f"{name} distance")
        rows_axis(axes, texts if index == 0 else [""] * len(texts))
        axes.grid(True)
        _distance_axis(axes, spans[name])
        for place, row in enumerate(rows):
            estimate, style = read(row), look[g.series(row)]
            if estimate is None or not math.isfinite(estimate.mean):
                continue
            if estimate.half is not None and math.isfinite(estimate.half):
                low = max(estimate.mean - estimate.half, axes.get_xlim()[0])
                axes.plot([low, estimate.mean + estimate.half], [place, place], color=style.color, lw=0.8)
            axes.plot(estimate.mean, place, marker=style.marker, color=style.color, ms=4.5, mew=0, clip_on=False)


def _distance_axis(axes: Axes, span: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    if _logarithmic(span):
        axes.set_xscale("log")
        axes.set_xlim(min(span) / 2, max(span) * 2)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.minorticks_off()
    else:
        axes.set_xlim(0, max(span) * 1.15 or 1)
        axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))


def per_class(g: Grid) -> Plot | None:
    """Accuracy of every class as a heat map, one line per row of the comparison."""
    rows = [row for row in g.rows if row.per_class]
    if not rows:
        return None
    height = 0.6 + _LINE * len(rows)
    panel = Panel("", partial(_draw_per_class, rows=rows, g=g, height=height))
    caption = (
        "Share of each class's test points that are classified rightly after the final round, mean over seeds, in %. "
        "The stronger the colour, the lower."
    )
    return Plot("per_class", "Accuracy by class", caption, (panel,), height, 2 * WIDTH)


def _draw_per_class(figure: FigureBase, *, rows: Sequence[Row], g: Grid, height: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    classes = max(len(row.per_class) for row in rows)
    settings = [g.describe(g.setting(row)) for row in rows]
    texts = [
        f"{name}, {short(setting)}" if setting else name for name, setting in zip(names(g, rows), settings, strict=True)
    ]
    left = label_width(texts) + 0.1
    axes = figure.add_axes((left / (2 * WIDTH), 0.36 / height, 1 - (left + 0.1) / (2 * WIDTH), 1 - 0.6 / height))
    shares = [
        [100 * row.per_class[c].mean if c < len(row.per_class) and row.per_class[c] is not None else math.nan  # type: ignore[union-attr]
         for c in range(classes)]
        for row in rows
    ]  # fmt: skip
    ramp = LinearSegmentedColormap.from_list("loss", HEAT[::-1])
    axes.pcolormesh(shares, cmap=ramp, vmin=0, vmax=100, edgecolor="white", lw=0.4 if classes <= 40 else 0)
    if classes <= 20:
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                text = f"{share:.0f}" if math.isfinite(share) else "–"
                color = "white" if share < 28 else "black"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", fontsize=6.5, color=color)
    for index, color in enumerate(HEAT):  # the key, above the map
        across = left / (2 * WIDTH) + index * 0.065
        figure.text(across, 1 - 0.13 / height, "■", color=color, fontsize=9, va="center_baseline")
        text = f"{100 - 25 * index}" + (" %" if index == 0 else "")
        figure.text(across + 0.018, 1 - 0.13 / height, text, color=MUTED, fontsize=6.5, va="center_baseline")
    step = 1 if classes <= 20 else 5 if classes <= 60 else 10
    axes.set_xticks([c + 0.5 for c in range(0, classes, step)], [str(c) for c in range(0, classes, step)])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], texts, color=INK)
    axes.set_ylim(len(rows), 0)
    axes.set_xlabel("class", labelpad=1)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _groups(g: Grid, has: Callable[[Row], bool]) -> _Groups:
    groups = [(g.describe(key), [row for row in rows if has(row)]) for key, rows in g.settings.items()]
    return [(title, rows) for title, rows in groups if rows]


def _sheet(groups: _Groups, above: float) -> Sheet:
    return Sheet(above + _BELOW + _LINE * max((len(rows) for _, rows in groups), default=1), any(t for t, _ in groups))


def _logarithmic(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _brief(value: float) -> str:
    """A tick's number in few characters: 20000 as 20k.

    >>> _brief(20000.0), _brief(0.5)
    ('20k', '0.5')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
