"""A prior as a picture: the clients with what ties them together, and the law of how many are bad."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bezoar.certify.prior_facts import PriorFacts
from bezoar.priors import HonestPrior
from bezoar.priors.family import Floats
from bezoar.reports._bars import HEAT
from bezoar.reports.style import GHOST, GRID, INK, MUTED, SERIES, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

#: Clients are tied where being bad correlates at least this much, in that many draws.
_TIED, _DRAWS = 0.1, 4000

#: More clients than this are not drawn one by one.
_MOST = 1000

#: Golden angle: points in a disc, evenly.
_ANGLE = np.pi * (3 - np.sqrt(5))


def prior_plot(facts: PriorFacts, seed: int = 0) -> Plot:
    """The picture of a prior; ``seed`` is that of the draws from which ties are seen where the prior has no edges."""
    law = Panel("How many are bad", partial(_draw_law, facts=facts))
    if facts.n > _MOST:
        caption = f"How many of {facts.n:,} clients are bad; lines say which f covers 50 % and 95 %."
        return Plot("prior", "Who may be bad", caption, (law,), height=2.9)
    ties = couplings(facts.prior, seed)
    caption = (
        f"{facts.n} clients: a darker one is bad more often, a larger one weighs more; clients in one ring, or with a "
        f"line between them, fall together. Beside it, how many are bad; lines say which f covers 50 % and 95 %."
    )
    panels = (Panel("Clients", partial(_draw_clients, facts=facts, ties=ties)), law)
    return Plot("prior", "Who may be bad", caption, panels, height=2.9)


def couplings(prior: HonestPrior, seed: int) -> Floats:
    """How strongly clients are tied [n, n], zero where they are not: the prior's own edges, else correlations."""
    n = prior._clients()
    edges = getattr(prior, "edges", None)
    if edges:
        ties = np.zeros((n, n))
        for i, j, strength in edges:
            ties[i, j] = ties[j, i] = abs(strength)
        return ties
    bad = (~prior.sample(_DRAWS, seed)).astype(np.float64)
    centred = bad - bad.mean(0)
    scale = np.sqrt((centred**2).sum(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ties = np.nan_to_num((centred.T @ centred) / np.outer(scale, scale))
    np.fill_diagonal(ties, 0.0)
    return np.where(ties >= _TIED, ties, 0.0)


def layout(ties: Floats) -> tuple[Floats, list[tuple[NDArray[np.int64], Floats, float, bool]]]:
    """Places of all clients [n, 2], and the clusters: who, centre, radius, whether all are tied to all.

    Clients without ties are one cluster.
    """
    n = len(ties)
    parts = _components(ties > 0)
    alone = [part[0] for part in parts if len(part) == 1]
    groups = [part for part in parts if len(part) > 1]
    if alone:
        groups.append(np.array(alone, dtype=np.int64))
    shapes = []
    for part in groups:
        inner = ties[np.ix_(part, part)] > 0
        m = len(part)
        loose = m == 1 or not inner.any()
        full = not loose and inner.sum() >= 0.8 * m * (m - 1)
        places = _sunflower(m) if loose or full else _springs(ties[np.ix_(part, part)])
        radius = float(np.sqrt((places**2).sum(1)).max()) + 0.75
        shapes.append((part, places, radius, full))
    shapes.sort(key=lambda shape: -shape[2])
    centres = _packed([shape[2] for shape in shapes])
    spots = np.zeros((n, 2))
    clusters = []
    for (part, places, radius, full), centre in zip(shapes, centres, strict=True):
        spots[part] = centre + places
        clusters.append((part, centre, radius, full))
    return spots, clusters


def _components(linked: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    left, found = set(range(len(linked))), []
    while left:
        part, todo = {min(left)}, [min(left)]
        while todo:
            new = set(np.flatnonzero(linked[todo.pop()]).tolist()) - part
            part |= new
            todo += new
        left -= part
        found.append(np.array(sorted(part), dtype=np.int64))
    return found


def _sunflower(m: int) -> Floats:
    """m points in a disc, about one apart."""
    if m == 1:
        return np.zeros((1, 2))
    if m <= 6:
        angles = 2 * np.pi * np.arange(m) / m
        return np.stack([np.cos(angles), np.sin(angles)], 1) * (0.62 if m == 2 else 0.6 / np.sin(np.pi / m))
    k = np.arange(m)
    return np.asarray((0.68 * np.sqrt(k + 0.5))[:, None] * np.stack([np.cos(k * _ANGLE), np.sin(k * _ANGLE)], 1))


def _springs(ties: Floats) -> Floats:
    """Fruchterman and Reingold: all push each other off, tied ones pull; from a circle, so always the same."""
    m = len(ties)
    strength = ties / ties.max()
    angles = 2 * np.pi * np.arange(m) / m
    places = np.stack([np.cos(angles), np.sin(angles)], 1) * m / (2 * np.pi)
    steps = 300
    for step in range(steps):
        apart = places[:, None] - places[None]
        length = np.sqrt((apart**2).sum(2)) + 1e-6
        push = 1.4 / length**2 - (0.5 + 0.5 * strength) * (strength > 0) * length
        move = (push / length)[:, :, None] * apart
        force = move.sum(1) - 0.02 * places
        size = np.sqrt((force**2).sum(1, keepdims=True)) + 1e-9
        places = places + force / size * np.minimum(size, 0.3 * (1 - step / steps) * np.sqrt(m))
    places = places - (places.max(0) + places.min(0)) / 2
    gaps = np.sqrt(((places[:, None] - places[None]) ** 2).sum(2)) + np.where(np.eye(m) > 0, np.inf, 0.0)
    # Close ones must not cover each other.
    return np.asarray(places * max(1.0, 1.1 / float(np.quantile(gaps.min(1), 0.1))))


def _packed(radii: Sequence[float]) -> list[Floats]:
    """Centres of discs that do not overlap, each as near to the middle as it can be."""
    placed: list[tuple[Floats, float]] = []
    for radius in radii:
        if not placed:
            placed.append((np.zeros(2), radius))
            continue
        near: list[tuple[float, float, float]] = []
        for centre, other in placed:
            for angle in np.linspace(0, 2 * np.pi, 48, endpoint=False):
                at = centre + (radius + other + 0.35) * np.array([np.cos(angle), np.sin(angle)])
                if all(np.hypot(*(at - c)) >= radius + r + 0.34 for c, r in placed):
                    near.append((round(float(np.hypot(at[0], 1.25 * at[1])), 6), float(at[0]), float(at[1])))
        _, x, y = min(near)
        placed.append((np.array([x, y]), radius))
    return [centre for centre, _ in placed]


def _draw_clients(figure: FigureBase, facts: PriorFacts, ties: Floats) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Circle

    axes = figure.add_axes((0.02, 0.17, 0.96, 0.81))
    spots, clusters = layout(ties)
    for part, centre, radius, full in clusters:
        if full:
            axes.add_patch(Circle((centre[0], centre[1]), radius, facecolor="none", edgecolor=MUTED, lw=0.7))
            continue
        inner = ties[np.ix_(part, part)]
        i, j = np.nonzero(np.triu(inner))
        if len(i):
            lines = np.stack([spots[part[i]], spots[part[j]]], 1)
            widths = 0.4 + 1.4 * inner[i, j] / ties.max()
            axes.add_collection(LineCollection(list(lines), colors=GHOST, linewidths=widths, zorder=1))
    axes.set_aspect("equal")
    reach = [(c - r, c + r) for _, c, r, _ in clusters]
    low, high = np.min([a for a, _ in reach], 0), np.max([b for _, b in reach], 0)
    axes.set_xlim(low[0] - 0.3, high[0] + 0.3)
    axes.set_ylim(low[1] - 0.3, high[1] + 0.3)
    axes.axis("off")
    # The diameter of a client in points, from one unit of the layout.
    unit = 72 * min(0.96 * 3.4 / (high[0] - low[0] + 0.6), 0.81 * 2.9 / (high[1] - low[1] + 0.6))
    weights = np.ones(facts.n) if facts.weights is None else facts.weights
    share = weights / weights.max()
    diameter = min(unit, 34.0) * (0.45 + 0.5 * np.sqrt(share))
    ramp = LinearSegmentedColormap.from_list("bad", HEAT)
    # Few steps, so that pictures compare; a small chance looks small.
    top = next(level for level in (0.05, 0.2, 0.5, 1.01) if facts.bad.max() <= level * 0.999)
    top = min(top, 1.0)
    colors = ramp(Normalize(0, top)(facts.bad))
    axes.scatter(spots[:, 0], spots[:, 1], s=diameter**2, c=colors, edgecolors=MUTED, linewidths=0.5, zorder=2)
    if unit >= 11:
        for client, (x, y) in enumerate(spots):
            dark = facts.bad[client] > 0.55 * top
            size = min(7.0, 0.45 * float(diameter[client]))
            axes.text(
                x,
                y,
                str(client),
                ha="center",
                va="center_baseline",
                fontsize=size,
                color="white" if dark else INK,
                zorder=3,
            )
    bar = figure.add_axes((0.12, 0.09, 0.3, 0.03))
    bar.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=ramp, extent=(0, 100 * top, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0, 100 * top], ["0 %", f"{100 * top:.3g} %"])
    bar.tick_params(length=0)
    figure.text(0.45, 0.09, "probability of being bad", color=MUTED, fontsize=7)


def _draw_law(figure: FigureBase, facts: PriorFacts) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes((0.12, 0.17, 0.85, 0.7))
    likely = np.flatnonzero(facts.law > 1e-4 * facts.law.max())
    low, high = (0 if likely.min() < 8 else int(likely.min())), int(likely.max())
    counts = np.arange(low, high + 1)
    axes.bar(counts, 100 * facts.law[counts], width=0.8, color=SERIES[1])
    axes.set_xlim(low - 0.7, high + 0.7)
    axes.set_ylim(0, 118 * float(facts.law.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.grid(True, color=GRID)
    axes.set_xlabel("bad clients", labelpad=1)
    axes.set_title("probability, %", color=MUTED)
    marks: dict[int, list[str]] = {}
    for level in (0.5, 0.95):
        marks.setdefault(facts.quantiles[level], []).append(f"{level:.0%}")
    middle = (low + high) / 2
    lines = [(f + 0.5, f"f = {f} covers {' and '.join(levels)}", INK) for f, levels in marks.items()]
    if low < facts.n / 2 < high + 0.7:
        lines.append((facts.n / 2, "n/2", SERIES[2]))
    for row, (x, text, color) in enumerate(lines):
        _mark(axes, x, text, right=x > middle, color=color, at=0.985 - 0.075 * row)


def _mark(axes: Axes, x: float, text: str, *, right: bool, color: str, at: float) -> None:
    axes.axvline(x, color=color, lw=0.7, ls=(0, (4, 2)), zorder=0)
    axes.annotate(
        text,
        (x, at),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if right else 4, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=7,
        color=color,
    )
