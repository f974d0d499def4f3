"""All scores of one grid, arranged: by regime (everything but the rule, the attack and the seed), by rule, by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bezoar.reports.expected.scores import NONE, Score, checked
from bezoar.reports.expected.statistics import Spread

#: What is compared over attacks: their mean, and the worst of them.
View = Literal["mean", "worst"]
VIEWS: tuple[View, ...] = ("mean", "worst")

Figures = dict[str, dict[int, float]]
"""Rule -> seed -> value."""


@dataclass(frozen=True)
class Regime:
    """The runs that differ in nothing but their seed: ``labels`` of the grid's axes, and their scores."""

    labels: Mapping[str, str]
    scores: tuple[Score, ...]

    @property
    def title(self) -> str:
        """The labels in one line."""
        return ", ".join(self.labels.values())

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """In the order of the experiment."""
        return tuple(dict.fromkeys(score.rule for score in self.scores))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """In the order of the experiment, "none" included."""
        return tuple(dict.fromkeys(score.attack for score in self.scores))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs."""
        return tuple(sorted({score.seed for score in self.scores}))

    @cached_property
    def _cells(self) -> dict[tuple[str, str], dict[int, Score]]:
        found: dict[tuple[str, str], dict[int, Score]] = {}
        for score in self.scores:
            found.setdefault((score.rule, score.attack), {})[score.seed] = score
        return found

    def cell(self, rule: str, attack: str) -> dict[int, Score]:
        """Seed -> score; empty if it was not run."""
        return self._cells.get((rule, attack), {})

    def under(self, attack: str, read: Callable[[Score], float] = lambda score: score.expected) -> Figures:
        """Every rule under one attack."""
        found = {rule: {seed: read(score) for seed, score in self.cell(rule, attack).items()} for rule in self.rules}
        return {rule: values for rule, values in found.items() if values}

    def over(self, view: View, read: Callable[[Score], float] = lambda score: score.expected) -> Figures:
        """Every rule over all attacks but none: first over attacks within a seed, so that seeds stay pairs."""
        kept = [attack for attack in self.attacks if attack != NONE]
        found: Figures = {}
        for rule in self.rules:
            for seed in self.seeds:
                values = [read(cell[seed]) for attack in kept if seed in (cell := self.cell(rule, attack))]
                if len(values) == len(kept) and values:
                    value = max(values) if view == "worst" else sum(values) / len(values)
                    found.setdefault(rule, {})[seed] = value
        return found

    def greatest(self, rule: str, read: Callable[[Score], float | None]) -> list[float]:
        """The greatest value over attacks (none aside) for every seed that has one."""
        found = []
        for seed in self.seeds:
            cells = [self.cell(rule, attack).get(seed) for attack in self.attacks if attack != NONE]
            values = [value for score in cells if score is not None and (value := read(score)) is not None]
            if values:
                found.append(max(values))
        return found


@dataclass(frozen=True)
class Board:
    """All regimes of a grid, in its order. Readings and measures are one."""

    name: str
    regimes: tuple[Regime, ...]

    @classmethod
    def of(cls, name: str, scores: Sequence[Score]) -> Board:
        """Raises RecordsError where scores may not stand in one table."""
        checked(scores, name)
        groups: dict[tuple[tuple[str, str], ...], list[Score]] = {}
        for score in scores:
            groups.setdefault(tuple(score.labels.items()), []).append(score)
        return cls(name, tuple(Regime(dict(key), tuple(group)) for key, group in groups.items()))

    @property
    def scores(self) -> Iterable[Score]:
        """Of all regimes."""
        return (score for regime in self.regimes for score in regime.scores)

    @property
    def reading(self) -> str:
        """R1 or R2."""
        return next(iter(self.scores)).reading

    @property
    def measure(self) -> str:
        """What ``expected`` is of."""
        return next(iter(self.scores)).measure

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """Of all regimes."""
        return tuple(dict.fromkeys(rule for regime in self.regimes for rule in regime.rules))

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Axes along which the regimes differ; all if there is one regime."""
        every = dict.fromkeys(axis for regime in self.regimes for axis in regime.labels)
        differ = [axis for axis in every if len({regime.labels.get(axis) for regime in self.regimes}) > 1]
        return tuple(differ or every)

    def where(self, **labels: str) -> Board:
        """Only the regimes with these labels."""
        kept = [r for r in self.regimes if all(r.labels.get(axis) == value for axis, value in labels.items())]
        return Board(self.name, tuple(kept))


def spreads(figures: Figures, seeds: Sequence[int]) -> dict[str, Spread]:
    """Every rule that has a value for all ``seeds``: what is not complete is not compared."""
    return {
        rule: Spread.of([values[seed] for seed in seeds])
        for rule, values in figures.items()
        if set(values) >= set(seeds) and seeds
    }


def ranked(found: Mapping[str, Spread]) -> list[str]:
    """Rules from the best to the worst; what diverged comes last."""
    return sorted(found, key=lambda rule: found[rule].key)


def regret(found: Mapping[str, Spread]) -> dict[str, float]:
    """Each rule's figure as a multiple of the regime's best; infinite for what diverged.

    A best figure of 0 or less (the minimum itself, up to rounding) makes no scale: rules at it have 1, others infinity.
    """
    best = min((spread.typical for spread in found.values()), default=math.inf)
    if best <= 0:
        return {rule: 1.0 if spread.typical <= 0 else math.inf for rule, spread in found.items()}
    return {
        rule: spread.typical / best if math.isfinite(spread.typical) else math.inf for rule, spread in found.items()
    }
