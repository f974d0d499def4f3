"""Reports of expected robustness: scores over honest sets, paired comparisons, heat maps, verdicts.

>>> from bezoar.reports.expected import load_records, write_page  # doctest: +SKIP
>>> write_page("runs/expected-verdict")  # doctest: +SKIP
"""

from bezoar.reports.expected import markdown
from bezoar.reports.expected.board import VIEWS, Board, Regime, View, ranked, regret, spreads
from bezoar.reports.expected.folder import Records, is_expected, keep, load_records
from bezoar.reports.expected.heat import loss_map, tightness_maps
from bezoar.reports.expected.page import render, write_page
from bezoar.reports.expected.scores import NONE, Score, checked, read_scores, reduced, write_scores
from bezoar.reports.expected.statistics import Paired, Sign, Spread, against, holm, signed_rank
from bezoar.reports.expected.tables import losses_table, pairs_table, tightness_table
from bezoar.reports.expected.verdict import (
    Contest,
    Finding,
    Hypothesis,
    Leaders,
    Regret,
    contest,
    judge,
    leaders,
    regrets,
)

__all__ = [
    "NONE",
    "VIEWS",
    "Board",
    "Contest",
    "Finding",
    "Hypothesis",
    "Leaders",
    "Paired",
    "Records",
    "Regime",
    "Regret",
    "Score",
    "Sign",
    "Spread",
    "View",
    "against",
    "checked",
    "contest",
    "holm",
    "is_expected",
    "judge",
    "keep",
    "leaders",
    "load_records",
    "loss_map",
    "losses_table",
    "markdown",
    "pairs_table",
    "ranked",
    "read_scores",
    "reduced",
    "regret",
    "regrets",
    "render",
    "signed_rank",
    "spreads",
    "tightness_maps",
    "tightness_table",
    "write_page",
    "write_scores",
]
