"""What the drawings share: a sheet measured in inches, short texts, labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bezoar.reports.rows import Grid, Row
from bezoar.reports.style import INK, MUTED, WIDTH, Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sheet:
    """The inside of a panel: below its heading (if the plot has headings), above its lower edge."""

    body: float
    headed: bool

    @property
    def height(self) -> float:
        """Inches of the whole panel."""
        return self.body + (0.28 if self.headed else 0.0)

    def heading(self, figure: FigureBase, title: str) -> None:
        """Writes the panel's heading."""
        if title:
            place = 1 - 0.13 / self.height
            figure.text(0.06 / WIDTH, place, short(title, 52), fontsize=8, fontweight="bold", va="center_baseline")

    def text(self, figure: FigureBase, x: float, down: float, text: str, **style: object) -> None:
        """Text at inches from the left, and down from the top of the body."""
        figure.text(x / WIDTH, (self.body - down) / self.height, text, va="center_baseline", **style)  # type: ignore[arg-type]

    def axes(self, figure: FigureBase, left: float, right: float, bottom: float, tall: float) -> Axes:
        """Axes with margins and height in inches."""
        box = (left / WIDTH, bottom / self.height, (WIDTH - left - right) / WIDTH, tall / self.height)
        return figure.add_axes(box)


def series_looks(g: Grid) -> dict[str, Look]:
    """The look of every series of the comparison, by name."""
    return looks(list(dict.fromkeys(g.series(row) for row in g.rows)), g.baseline)


def short(text: str, most: int = 20) -> str:
    """Text for a drawing: one line, nothing unprintable, cut where it would be too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def names(g: Grid, rows: Sequence[Row], most: int = 20) -> list[str]:
    """Short names of the rows' series. Where cutting would make two the same, the middle goes instead of the end."""
    full = [short(g.series(row), 200) for row in rows]
    cut = [short(name, most) for name in full]
    if len(set(cut)) == len(set(full)):
        return cut
    half = (most - 1) // 2
    middle = [name if len(name) <= most else f"{name[:half]}…{name[-half:]}" for name in full]
    if len(set(middle)) == len(set(full)):
        return middle
    return [f"{row.number} {name}"[:most] for row, name in zip(rows, full, strict=True)]


def label_width(texts: Iterable[str]) -> float:
    """Inches that the longest of the texts takes at 7 points, a little too many rather than too few."""
    return 0.061 * max(map(len, texts), default=0)


def rows_axis(axes: Axes, texts: Sequence[str]) -> None:
    """Named rows from the top down."""
    axes.set_yticks(range(len(texts)), texts, color=INK)
    axes.set_ylim(len(texts) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def caption_of(axes: Axes, text: str) -> None:
    """Says what the vertical axis measures, in reading direction, above it."""
    axes.set_title(text, color=MUTED, fontsize=7, pad=4)


def finite(values: Iterable[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def spread(values: Sequence[float], gap: float, bottom: float, top: float) -> list[float]:
    """Places ``gap`` apart between ``bottom`` and ``top`` for sorted ``values``, each as near its value as that allows.

    More places than there is room for stand above ``top``.

    >>> spread([0.0, 10.0, 10.0], 2.0, 0.0, 100.0)
    [0.0, 9.0, 11.0]
    """
    blocks: list[tuple[float, int]] = []  # the sum of the places that the members' first one would like; how many
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1:
            (first, n), (second, m) = blocks[-2:]
            if second / m >= first / n + n * gap:
                break
            blocks[-2:] = [(first + second - m * n * gap, n + m)]
    places = [total / count + i * gap for total, count in blocks for i in range(count)]
    last = len(places) - 1
    below = [min(place, top - (last - i) * gap) for i, place in enumerate(places)]
    return [max(place, bottom + i * gap) for i, place in enumerate(below)]


#: Points between a label and its point from which on a line ties them.
FAR = 10.0


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[float, float, str, bool]],
    lines: Sequence[tuple[float, float, float, float]],
    crowded: bool,
) -> None:
    """Puts each text ``(x, y, text, strong)`` on the side of its point where it covers least.

    ``lines`` are horizontal or vertical pieces (x0, y0, x1, y1) that a text should not cover. Strong texts
    choose first; a weak one that finds no room is left out if the panel is ``crowded``.
    """
    frame = axes.get_window_extent()
    at = [tuple(axes.transData.transform((x, y))) for x, y, _, _ in labels]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    solid = len(taken)
    for x0, y0, x1, y1 in lines:
        (a, b), (c, d) = axes.transData.transform([(x0, y0), (x1, y1)])
        taken.append((min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1))
    texts = len(taken)
    for index in sorted(range(len(labels)), key=lambda i: (not labels[i][3], -at[i][1], i)):
        x, y, text, strong = labels[index]
        if not text:
            continue
        width = 4.2 * len(text)
        best: tuple[float, tuple[float, float], str, Box] | None = None
        for order, (side, dx, dy) in enumerate(_SIDES):
            start = at[index][0] + dx - {"left": 0.0, "center": width / 2, "right": width}[side]
            middle = at[index][1] + dy
            place = (start, middle - 4, start + width, middle + 4)
            cost = order + sum(_overlap(place, other) for j, other in enumerate(taken) if j != index)
            cost += 50 * (max(0.0, frame.x0 - place[0]) + max(0.0, place[2] - frame.x1 - 14))
            cost += 50 * (max(0.0, frame.y0 - place[1]) + max(0.0, place[3] - frame.y1 - 6))
            if best is None or cost < best[0]:
                best = (cost, (dx, dy), side, place)
        assert best is not None
        covered = sum(_overlap(best[3], taken[j]) for j in (*range(solid), *range(texts, len(taken))) if j != index)
        if crowded and not strong and covered > 4:
            continue
        taken.append(best[3])
        axes.annotate(
            text,
            (x, y),
            best[1],
            textcoords="offset points",
            ha=best[2],
            va="center_baseline",
            fontsize=7,
            color=INK if strong else MUTED,
            zorder=5,
            annotation_clip=False,
            # A text that stands off is tied to its point: in a crowd another one may be nearer.
            arrowprops=_tie(best[2], best[1][1]) if abs(best[1][1]) > FAR else None,
        )


_SIDES = (
    ("left", 7.0, 0.0),
    ("right", -7.0, 0.0),
    ("center", 0.0, 10.0),
    ("center", 0.0, -10.0),
    ("left", 5.0, 7.5),
    ("left", 5.0, -7.5),
    ("right", -5.0, 7.5),
    ("right", -5.0, -7.5),
    ("left", 6.0, 14.0),
    ("right", -6.0, 14.0),
    ("left", 6.0, -14.0),
    ("right", -6.0, -14.0),
)
"""Alignment and offset in points (72 to the inch, as the figures' dpi) of a label, the most readable ones first."""


def _tie(side: str, dy: float) -> dict[str, object]:
    """A line from the nearest corner of a text to its point."""
    corner = (1.0 if side == "right" else 0.0, 1.0 if dy < 0 else 0.0)
    return {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": corner}


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
