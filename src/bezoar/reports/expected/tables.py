"""Tables of expected robustness: losses by attack, tightness of bounds, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bezoar.reports.estimates import Estimate
from bezoar.reports.expected.board import VIEWS, Board, Regime, ranked, spreads
from bezoar.reports.expected.scores import Score
from bezoar.reports.expected.statistics import Paired, digits, together
from bezoar.reports.tables import Column, Entry, Table


class Digits(Column):
    """Numbers with three significant digits: losses span decades."""

    def _number(self, value: float) -> str:
        return digits(value * self.scale)


def losses_table(board: Board) -> Table:
    """One row for each regime and rule: every attack by itself, their mean, their worst, the worst honest set."""
    attacks = list(dict.fromkeys(attack for regime in board.regimes for attack in regime.attacks))
    columns = [
        *_axes(board),
        Column("rule", "rule", numeric=False),
        Digits("mean", "mean over attacks"),
        Digits("worst", "worst over attacks"),
        Digits("worst_set", "worst honest set"),
        *(Digits(f"attack_{attack}", attack) for attack in attacks),
        Digits("broken", "P(broken)"),
        Column("diverged", "seeds that diverged", numeric=False),
        Column("seeds", "seeds", numeric=False),
    ]
    rows: list[tuple[Entry, ...]] = []
    for regime in board.regimes:
        mean, worst = (regime.over(view) for view in VIEWS)
        sets = regime.over("worst", lambda score: score.worst)
        for rule in regime.rules:
            cells = [regime.cell(rule, attack) for attack in attacks]
            broken = [max(s.broken for c in cells if (s := c.get(seed)) is not None) for seed in _seeds(cells)]
            lost = sum(any(c[seed].diverged > 0 for c in cells if seed in c) for seed in _seeds(cells))
            rows.append(
                (
                    *(regime.labels.get(axis, "") for axis in board.axes),
                    rule,
                    *(Estimate.of(figures.get(rule, {}).values()) for figures in (mean, worst, sets)),
                    *(Estimate.of(score.expected for score in cell.values()) for cell in cells),
                    Estimate.of(broken),
                    f"{lost}" if lost else "",
                    f"{len(_seeds(cells))}",
                )
            )
    what = "loss above the minimum" if board.measure == "excess" else "loss"
    notes = (
        f"Expected {what} over the honest sets (reading {board.reading}), after the last round; "
        "mean over seeds ± half the 95% Student t interval. Mean and worst over attacks are taken within a seed, and "
        "leave “none” out. ∞: a seed diverged.",
        "Worst honest set: the greatest loss of any honest set under any attack. P(broken): the probability of the "
        "honest sets for which the rule promises nothing, the greatest of all attacks.",
    )
    return Table("losses", f"Expected {what}", tuple(columns), tuple(rows), notes)


def tightness_table(board: Board) -> Table | None:
    """Bound and measurement for each regime, rule and attack; None if no rule has a constant."""
    if all(score.bound is None and score.tight is None for score in board.scores):
        return None
    readers: dict[str, tuple[str, Callable[[Score], float | None]]] = {
        "bound": ("bound", lambda score: score.bound),
        "measured": ("measured", lambda score: None if score.bound is None else score.holding),
        "ratio": ("measured / bound", lambda score: score.ratio),
        "broken": ("P(broken)", lambda score: score.broken),
        "error": ("error of the aggregate", lambda score: score.error),
        "allowed": ("kappa x variance", lambda score: score.allowed),
        "tight": ("share of kappa reached", lambda score: score.tight),
    }
    columns = (
        *_axes(board),
        Column("rule", "rule", numeric=False),
        Column("attack", "attack", numeric=False),
        *(Digits(key, title) for key, (title, _) in readers.items()),
    )
    rows: list[tuple[Entry, ...]] = []
    for regime in board.regimes:
        for rule in regime.rules:
            for attack in regime.attacks:
                scores = list(regime.cell(rule, attack).values())
                if not scores:
                    continue
                labels = (regime.labels.get(axis, "") for axis in board.axes)
                found = (Estimate.of(read(score) for score in scores) for _, read in readers.values())
                rows.append((*labels, rule, attack, *found))
    notes = (
        "Bound, measurement and ratio are of the honest sets where the bound holds: kappa is known, and kappa B² < 1; "
        "P(broken) is the probability of the others. (G, B) are the empirical ones of each training.",
        "Error and kappa x variance are means over rounds; the share of kappa is the greatest of any honest set and "
        "round.",
    )
    return Table("tightness", "Bounds and what was measured", columns, tuple(rows), notes)


def pairs_table(board: Board) -> Table | None:
    """Every rule minus the first of its regime, on the same seeds; None with fewer than two seeds."""
    if max(len(regime.seeds) for regime in board.regimes) < 2:
        return None
    columns = (
        *_axes(board),
        Column("over", "over attacks", numeric=False),
        Column("rule", "rule", numeric=False),
        Column("first", "minus", numeric=False),
        Digits("difference", "difference"),
        Column("sign", "is", numeric=False),
        Column("count", "seeds less / more", numeric=False),
    )
    rows: list[tuple[Entry, ...]] = []
    for regime in board.regimes:
        for view in VIEWS:
            figures = regime.over(view)
            found = spreads(figures, regime.seeds)
            if len(found) < 2:
                continue
            first, *rest = ranked(found)
            compared = together({rule: Paired.of(figures[rule], figures[first]) for rule in rest})
            for rule, (pair, sign) in compared.items():
                labels = (regime.labels.get(axis, "") for axis in board.axes)
                gap = pair.difference
                shown: Entry = gap if gap is not None else Estimate(math.inf, None, math.inf, math.inf, pair.n)
                rows.append((*labels, view, rule, first, shown, sign, f"{pair.less} / {pair.more}"))
    notes = (
        "Differences on the same seeds, with 95% Student t intervals; ∞: a seed diverged. The sign is that of the "
        "exact signed-rank test at 5%, with Holm's correction for all rules of a regime. The first is chosen by the "
        "same data.",
    )
    return Table("pairs", "Differences to the first", columns, tuple(rows), notes)


def _axes(board: Board) -> list[Column]:
    return [Column(axis, axis, numeric=False) for axis in board.axes]


def _seeds(cells: Iterable[dict[int, Score]]) -> list[int]:
    return sorted({seed for cell in cells for seed in cell})


def regime_rows(table: Table, regime: Regime) -> Table:
    """The rows of one regime alone."""
    kept = [i for i, column in enumerate(table.columns) if column.key in regime.labels]
    rows = tuple(row for row in table.rows if all(row[i] == regime.labels[table.columns[i].key] for i in kept))
    return Table(table.name, table.title, table.columns, rows, table.notes)
