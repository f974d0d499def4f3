"""Records on disk to tables, plots and one self-contained HTML page.

>>> from bezoar.reports import comparison_table, load, write_report  # doctest: +SKIP
>>> write_report("runs/my-comparison")  # doctest: +SKIP
>>> print(comparison_table(load("runs/my-comparison")).text())  # doctest: +SKIP
"""

from bezoar.reports.estimates import Estimate
from bezoar.reports.page import render, write_report
from bezoar.reports.plots import plots
from bezoar.reports.published import Judged, judged, published_table
from bezoar.reports.records import (
    Cell,
    Comparison,
    Evaluation,
    RecordsError,
    Round,
    Run,
    Summary,
    Timing,
    load,
)
from bezoar.reports.style import Plot
from bezoar.reports.tables import (
    Column,
    Table,
    adversary_table,
    communication_table,
    comparison_table,
    matrix_table,
    over_attacks_table,
    per_class_table,
    runs_table,
    tables,
    timing_table,
)

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Estimate",
    "Evaluation",
    "Judged",
    "Plot",
    "RecordsError",
    "Round",
    "Run",
    "Summary",
    "Table",
    "Timing",
    "adversary_table",
    "communication_table",
    "comparison_table",
    "judged",
    "load",
    "matrix_table",
    "over_attacks_table",
    "per_class_table",
    "plots",
    "published_table",
    "render",
    "runs_table",
    "tables",
    "timing_table",
    "write_report",
]
