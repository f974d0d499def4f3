"""A paper's numbers beside those of a comparison, and whether its claims hold there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bezoar.recipes.paper import METRICS, SEED, Claim, Labels, Verdict
from bezoar.reports.estimates import Estimate
from bezoar.reports.records import Comparison, Run, Summary, as_comparison
from bezoar.reports.rows import Grid, Row, grid
from bezoar.reports.tables import BLANK, Column, Entry, Table

_READERS: Mapping[str, Callable[[Summary], float | None]] = {
    "test": lambda s: 100 * s.test_accuracy,
    "error": lambda s: 100 * (1 - s.test_accuracy),
    "attack": lambda s: _attacked(s, None if s.attack_accuracy is None else 100 * s.attack_accuracy),
    "oif": lambda s: _attacked(s, s.outsized_impact),
    "l1": lambda s: _attacked(s, s.distance_l1),
}

#: Decimals that a metric is shown with.
DECIMALS = {"test": 1, "error": 1, "attack": 1, "oif": 3, "l1": 0}

#: Metrics of which the least seed is the worst.
_LOW_IS_BAD = ("test",)


def _attacked(summary: Summary, value: float | None) -> float | None:
    """A number of an attack: NaN, which a mean over seeds shows, where training under attack has diverged."""
    diverged = math.isnan(summary.test_accuracy) and bool(summary.attackers_per_round_mean)
    return math.nan if value is None and diverged else value


def measured(row: Row, metric: str) -> Estimate | None:
    """The metric of a row over its seeds, in the unit of :data:`bezoar.recipes.paper.METRICS`."""
    return row.of(_READERS[metric])


def worst(row: Row, metric: str) -> float | None:
    """The metric in the row's worst seed."""
    estimate = measured(row, metric)
    if estimate is None:
        return None
    return estimate.low if metric in _LOW_IS_BAD else estimate.high


@dataclass(frozen=True)
class Judged:
    """A claim beside the records: the verdict on the means over seeds, and in how many seeds it is "agrees"."""

    claim: Claim
    verdict: Verdict
    agreeing: int
    seeds: int

    @property
    def words(self) -> str:
        """The verdict and what it rests on.

        The seeds count where each of them was run under everything that the claim is about.
        """
        word = self.verdict.word
        if word in ("reported", "not run") or self.seeds < 2:
            return word
        return f"{word} (all checks hold in {self.agreeing} of {self.seeds} seeds by themselves)"


def judged(records: Comparison | Run | Grid) -> tuple[Judged, ...]:
    """The verdicts on the claims of a comparison's paper, empty if it has none."""
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    rows = [row.labels for row in g.rows]
    by_labels = {_key(row.labels): row for row in g.rows}

    def lookup(seed: str | None) -> Callable[[Labels, str], float | None]:
        def value(labels: Labels, metric: str) -> float | None:
            row = by_labels[_key(labels)]
            if seed is not None:
                row = replace(row, cells=tuple(cell for cell in row.cells if cell.labels.get(SEED) == seed))
            estimate = measured(row, metric)
            return None if estimate is None else estimate.mean

        return value

    seeds = list(dict.fromkeys(cell.labels.get(SEED, "") for row in g.rows for cell in row.cells))
    found = []
    for claim in g.comparison.claims:
        alone = [claim.judge(rows, lookup(seed)).word for seed in seeds]
        found.append(Judged(claim, claim.judge(rows, lookup(None)), alone.count("agrees"), len(seeds)))
    return tuple(found)


def published_table(records: Comparison | Run | Grid) -> Table | None:
    """The paper's numbers beside ours, row by row; None without a paper."""
    g = records if isinstance(records, Grid) else grid(as_comparison(records))
    verdicts = judged(g)
    if not verdicts:
        return None
    columns = (
        Column("of", "in the paper", numeric=False),
        *(Column(axis, axis, numeric=False) for axis in g.axes),
        Column("metric", "metric", numeric=False),
        Column("published", "published", numeric=False),
        Column("ours", "here", decimals=2),
        Column("worst", "worst seed", decimals=2),
    )
    rows: list[tuple[Entry, ...]] = []
    notes = ["Mean over seeds ± half width of the 95% Student t interval. Published numbers are of the full scale."]
    for one in verdicts:
        for labels in one.claim.rows([row.labels for row in g.rows]):
            row = next(row for row in g.rows if row.labels == labels)
            for metric in one.claim.metrics:
                ours, paper = measured(row, metric), one.claim.number(labels, metric)
                if ours is None and paper is None:
                    continue
                shown = BLANK if paper is None else f"{paper:g}" if not isinstance(paper, str) else paper
                entries = (*(labels[axis] for axis in g.axes), METRICS[metric], shown, ours, worst(row, metric))
                rows.append((one.claim.of, *entries))
        notes.append(f"{one.claim.of}: {one.words}. {sentence(one)}")
    title = f"Beside the paper, scale {g.comparison.scale}" if g.comparison.scale else "Beside the paper"
    return Table("published", title, columns, tuple(rows), tuple(notes))


def sentence(one: Judged) -> str:
    """The checks of a claim and which of them hold, in words."""
    marks = {True: "yes", False: "no", None: "not run"}
    return " ".join(
        f"{check.words()[0].upper()}{check.words()[1:]}: {marks[held]}."
        for check, held in zip(one.claim.checks, one.verdict.holds, strict=True)
    )


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
