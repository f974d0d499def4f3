"""Heat maps: rules down, regimes across, one panel for each value of the axis whose losses can not be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bezoar.reports._bars import HEAT
from bezoar.reports._drawing import label_width, short
from bezoar.reports.expected.board import Board, Regime, View, spreads
from bezoar.reports.expected.scores import Score
from bezoar.reports.expected.statistics import digits, median
from bezoar.reports.style import INK, MUTED, WIDTH, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

#: The axis of which each value is a panel, with colours of its own: losses of two tasks have no common scale.
PANELS = "task"

#: What is more than this many times the least of a panel has the darkest colour: one rule that diverges must not take
#: the colours from the others.
MOST = 1000.0

_LINE, _COLUMN, _ABOVE, _LEVEL, _CHARACTER = 0.19, 0.74, 0.3, 0.14, 0.05
_WIDE = 2 * WIDTH

_Values = dict[tuple[str, int], float]
"""(Rule, column) -> value; what does not apply is not there."""
_Read = Callable[[Score], float | None]

#: What is known of a bound and of what was measured.
TIGHTNESS: dict[str, _Read] = {
    "bound": lambda score: score.bound,
    "measured": lambda score: None if score.bound is None else score.holding,
    "ratio": lambda score: score.ratio,
    "tight": lambda score: score.tight,
}


@dataclass(frozen=True)
class _Map:
    """What one panel draws."""

    title: str
    rules: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    values: _Values


def loss_map(board: Board, view: View) -> Plot:
    """Expected loss, mean or worst over attacks, mean over seeds; infinite where a seed diverged."""
    over = {"mean": "Mean over attacks", "worst": "Worst over attacks"}[view]
    what = "expected loss above the minimum" if board.measure == "excess" else "expected loss"

    def value(regime: Regime, rule: str) -> float | None:
        spread = spreads(regime.over(view), regime.seeds).get(rule)
        return None if spread is None else spread.typical

    caption = (
        f"{over} of the {what} (reading {board.reading}), mean over seeds; ∞: a seed diverged. The darker, the worse; "
        "colours are logarithmic, each panel has its own, and what is more than 1,000 times the least is as dark."
    )
    return _plot(f"expected_{view}", f"{over}: {what}", caption, board, value)


def tightness_maps(board: Board) -> tuple[Plot, ...]:
    """Bound, measurement and their ratio, where rules have a bound: the greatest over attacks, median over seeds."""
    maps = {
        "bound": ("Bound of the expected error", "What is promised of the expected loss above the minimum"),
        "measured": ("Measured expected error", "What was measured, of the same honest sets as the bound"),
        "ratio": ("Measured, as a share of the bound", "1 would be tight"),
        "tight": ("How much of kappa was reached", "Squared error of the aggregate / (kappa x variance of the honest "
                  "rows), the greatest of all honest sets and rounds; 1 would be tight"),
    }  # fmt: skip
    found = []
    for name, (title, says) in maps.items():

        def value(regime: Regime, rule: str, read: _Read = TIGHTNESS[name]) -> float | None:
            values = regime.greatest(rule, read)
            return median(values) if values else None

        if any(value(regime, rule) is not None for regime in board.regimes for rule in regime.rules):
            caption = f"{says}. The greatest over attacks, median over seeds; –: no bound, ∞: diverged. Logarithmic."
            found.append(_plot(f"tightness_{name}", title, caption, board, value))
    return tuple(found)


def _plot(name: str, title: str, caption: str, board: Board, value: Callable[[Regime, str], float | None]) -> Plot:
    across = [axis for axis in board.axes if axis != PANELS]
    groups: dict[str, list[Regime]] = {}
    for regime in board.regimes:
        groups.setdefault(regime.labels.get(PANELS, ""), []).append(regime)
    maps = []
    for head, regimes in groups.items():
        rules = tuple(dict.fromkeys(rule for regime in regimes for rule in regime.rules))
        columns = tuple(tuple(regime.labels.get(axis, "") for axis in across) for regime in regimes)
        values: _Values = {}
        for column, regime in enumerate(regimes):
            for rule in regime.rules:
                found = value(regime, rule)
                if found is not None:
                    values[rule, column] = found
        maps.append(_Map(head, rules, columns, values))
    height = max(_ABOVE + 0.1 + _LINE * len(m.rules) + _LEVEL * (len(across) + 1) for m in maps)
    panels = tuple(Panel(m.title, partial(_draw, of=m, height=height, axes_names=across)) for m in maps)
    return Plot(name, title, caption, panels, height, _WIDE)


def _draw(figure: FigureBase, *, of: _Map, height: float, axes_names: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    texts = [short(rule, 38) for rule in of.rules]
    left = label_width(texts) + 0.12
    wide = min(_WIDE - left - 0.1, _COLUMN * len(of.columns))
    body = _LINE * len(of.rules)
    axes = figure.add_axes((left / _WIDE, (height - _ABOVE - body) / height, wide / _WIDE, body / height))
    if of.title:
        figure.text(0.06 / _WIDE, 1 - 0.13 / height, short(of.title, 40), fontsize=8, fontweight="bold",
                    va="center_baseline")  # fmt: skip
    good = [value for value in of.values.values() if math.isfinite(value) and value > 0]
    low, high = (min(good), min(max(good), MOST * min(good))) if good else (1.0, 1.0)
    # At least one decade of colours, so that small differences do not look like great ones.
    if high < 10 * low:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
    norm = LogNorm(low, high)
    ramp = LinearSegmentedColormap.from_list("loss", HEAT).with_extremes(bad="#e3e6ea")
    grid = [[_shade(of.values.get((rule, c)), low, high) for c in range(len(of.columns))] for rule in of.rules]
    axes.pcolormesh(grid, cmap=ramp, norm=norm, edgecolor="white", lw=0.5)
    for y, rule in enumerate(of.rules):
        for x in range(len(of.columns)):
            value = of.values.get((rule, x))
            shade = grid[y][x]
            dark = math.isfinite(shade) and norm(shade) > 0.6
            axes.text(x + 0.5, y + 0.5, label(value), ha="center", va="center_baseline", fontsize=6.2,
                      color="white" if dark else "black")  # fmt: skip
    axes.set_ylim(len(of.rules), 0)
    axes.set_yticks([i + 0.5 for i in range(len(of.rules))], texts, color=INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    step = wide / len(of.columns)
    for up, name in enumerate(reversed(axes_names)):
        level = len(axes_names) - 1 - up
        down = (height - _ABOVE - body - 0.1 - _LEVEL * up) / height
        figure.text((left - 0.06) / _WIDE, down, short(name, 34), color=MUTED, fontsize=6.5, ha="right",
                    va="center_baseline")  # fmt: skip
        for first, last in _runs([column[: level + 1] for column in of.columns]):
            middle = (left + step * (first + last + 1) / 2) / _WIDE
            text = short(of.columns[first][level], max(3, int(step * (last + 1 - first) / _CHARACTER)))
            figure.text(middle, down, text, color=INK, fontsize=6.2, ha="center", va="center_baseline")
            if first and level < len(axes_names) - 1:
                axes.axvline(first, color=INK, lw=0.8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for index, color in enumerate(HEAT):  # the key, above the map
        value = low * (high / low) ** (index / (len(HEAT) - 1))
        across = left / _WIDE + index * 0.085
        figure.text(across, 1 - 0.13 / height, "■", color=color, fontsize=9, va="center_baseline")
        figure.text(across + 0.018, 1 - 0.13 / height, digits(value, 2), color=MUTED, fontsize=6.5,
                    va="center_baseline")  # fmt: skip


def _runs(labels: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """First and last place of every run of equal labels.

    >>> _runs([("a",), ("a",), ("b",)])
    [(0, 1), (2, 2)]
    """
    starts = [i for i, value in enumerate(labels) if i == 0 or value != labels[i - 1]]
    return list(zip(starts, [*(start - 1 for start in starts[1:]), len(labels) - 1], strict=True))


def _shade(value: float | None, low: float, high: float) -> float:
    """What is coloured: nothing is paler than the least, and what is infinite is as dark as the greatest."""
    if value is None or math.isnan(value):
        return math.nan
    return min(max(value, low), high)


def label(value: float | None) -> str:
    """A value in few characters.

    >>> label(0.01234), label(123456.0), label(None), label(math.inf), label(12.3)
    ('.012', '1e5', '–', '∞', '12')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
