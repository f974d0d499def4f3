"""The figures of a report: curves, the accuracy plane, distances, times, accuracy by class.

matplotlib is imported when a figure is drawn, never when this module is imported.
"""

from __future__ import annotations

from bezoar.reports._bars import HEAT, distances, per_class, timing
from bezoar.reports._curves import curves
from bezoar.reports._drawing import series_looks
from bezoar.reports._plane import impact, pareto, plane
from bezoar.reports.records import Comparison, Run, as_comparison
from bezoar.reports.rows import Grid, grid
from bezoar.reports.style import Plot

__all__ = ["HEAT", "curves", "distances", "impact", "pareto", "per_class", "plane", "plots", "series_looks", "timing"]


def plots(records: Comparison | Run | Grid) -> tuple[Plot, ...]:
    """All figures that apply to the records, in the order of the report."""
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    found = (curves(g), plane(g), impact(g), distances(g), timing(g), per_class(g))
    return tuple(plot for plot in found if plot is not None)
