"""A figure of measured gradient-PAC constants; matplotlib is imported when it is drawn."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bezoar.personalized.pac import GradientPAC
from bezoar.reports.style import GHOST, MUTED, SERIES, Panel, Plot

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

VERDICTS = {
    True: "Looks like gradient-PAC.",
    False: "Does not look like gradient-PAC.",
    None: "Too few samples to tell: the true model is too sure.",
}


def pac_plot(found: GradientPAC, title: str = "Gradient-PAC, measured") -> Plot:
    """Noise at the true model over the number of samples with its power law, and the pull back over the distance."""
    caption = (
        f"Left: the longest gradient at the true model (grey: the median); line: {found.b:.3g} I^{found.alpha:.2f}. "
        f"Right: the least pull back per sample; line: A = {found.a:.3g}. " + VERDICTS[found.holds]
    )
    panels = (Panel("noise", partial(_noise, found=found)), Panel("pull", partial(_pull, found=found)))
    return Plot("gradient-pac", title, caption, panels, height=2.0)


def _noise(figure: FigureBase, found: GradientPAC) -> None:
    axes = figure.add_axes((0.17, 0.2, 0.79, 0.66))
    sizes = np.asarray(found.sizes, dtype=float)
    axes.loglog(sizes, found.typical_noise, "o", color=GHOST, ms=4)
    axes.loglog(sizes, found.noise, "o", color=SERIES[1], ms=4)
    axes.loglog(sizes, found.b * sizes**found.alpha, color=SERIES[2], lw=1)
    axes.set_title("|gradient| at the true model", color=MUTED, fontsize=7)
    axes.set_xlabel("samples I")


def _pull(figure: FigureBase, found: GradientPAC) -> None:
    axes = figure.add_axes((0.17, 0.2, 0.79, 0.66))
    axes.semilogx(found.radii, found.growth_by_radius, "o", color=SERIES[1], ms=4)
    axes.axhline(found.a, color=SERIES[2], lw=1)
    axes.set_title("pull back / (I min(1, r))", color=MUTED, fontsize=7)
    axes.set_xlabel("distance r from the true model")
