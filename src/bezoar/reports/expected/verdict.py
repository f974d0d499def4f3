"""Verdicts by rules that were written before the runs: who wins, who loses, what holds of a hypothesis.

All of them compare losses on the same seeds by the exact signed-rank test, at 5% after Holm's correction for the
comparisons that are made together. Nothing here looks at a name: which rules are new and which are baselines, and what
was expected of them, is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bezoar.reports.expected.board import Board, Figures, Regime, View, ranked, regret, spreads
from bezoar.reports.expected.statistics import Paired, Sign, Spread, against, holm

Result = Literal["wins", "loses", "level"]


@dataclass(frozen=True)
class Contest:
    """One rule against baselines in one regime.

    ``wins``: a smaller loss than every baseline; ``loses``: a greater one than some (``losing_to``); ``level``:
    neither.
    """

    rule: str
    result: Result
    losing_to: tuple[str, ...]
    beating: tuple[str, ...]
    pairs: Mapping[str, tuple[Paired, Sign]]


def contest(rule: str, baselines: Sequence[str], figures: Figures) -> Contest | None:
    """``rule`` against those of the ``baselines`` that have its seeds; None if there is nothing to compare."""
    this = figures.get(rule)
    others = {name: figures[name] for name in baselines if this and set(figures.get(name, ())) == set(this)}
    if not this or not others:
        return None
    pairs = against(this, others)
    lost = tuple(name for name, (_, sign) in pairs.items() if sign == "worse")
    won = tuple(name for name, (_, sign) in pairs.items() if sign == "better")
    result: Result = "loses" if lost else "wins" if len(won) == len(pairs) else "level"
    return Contest(rule, result, lost, won, pairs)


@dataclass(frozen=True)
class Leaders:
    """The rule that ranks first, and those that the data do not tell apart from it."""

    first: str
    level: tuple[str, ...]
    spreads: Mapping[str, Spread]


def leaders(regime: Regime, figures: Figures) -> Leaders | None:
    """Who leads among the rules that have all seeds of the regime; None if no rule has.

    The first is chosen by the same data that it is compared on, so what this names is a set of candidates for the
    best: those that are not worse by the test.
    """
    found = spreads(figures, regime.seeds)
    if not found:
        return None
    first, *rest = ranked(found)
    signs = against(figures[first], {rule: figures[rule] for rule in rest}) if rest else {}
    level = tuple(rule for rule in rest if signs[rule][1] not in ("better",))
    return Leaders(first, level, found)


@dataclass(frozen=True)
class Regret:
    """How far a rule is from the best of each regime: ``mean`` is geometric, ``most`` that of its worst regime."""

    mean: float
    most: float
    at: str
    regimes: int


def regrets(regimes: Sequence[Regime], figures: Callable[[Regime], Figures]) -> dict[str, Regret]:
    """Of every rule that was run in all the regimes, the least regret first."""
    each = [(regime, regret(spreads(figures(regime), regime.seeds))) for regime in regimes]
    each = [(regime, found) for regime, found in each if found]
    if not each:
        return {}
    common = [rule for rule in each[0][1] if all(rule in found for _, found in each)]
    out = {}
    for rule in common:
        values = [found[rule] for _, found in each]
        most = max(range(len(values)), key=lambda i: values[i])
        finite = all(map(math.isfinite, values))
        mean = math.exp(math.fsum(map(math.log, values)) / len(values)) if finite else math.inf
        out[rule] = Regret(mean, values[most], each[most][0].title, len(values))
    return dict(sorted(out.items(), key=lambda item: (item[1].mean, item[1].most)))


@dataclass(frozen=True)
class Hypothesis:
    """``this`` has a smaller loss than ``that``, by a factor of at least ``by``.

    ``under`` is an attack, or "mean" or "worst" over attacks; ``where`` keeps regimes by their labels.
    """

    of: str
    says: str
    pairs: tuple[tuple[str, str], ...]
    under: str = "worst"
    where: Mapping[str, Collection[str]] = field(default_factory=dict)
    by: float = 1.0


@dataclass(frozen=True)
class Finding:
    """What came of a hypothesis: one sign for each pair of rules in each regime, corrected for all of them."""

    hypothesis: Hypothesis
    signs: tuple[tuple[str, str, str, Sign], ...]

    @property
    def word(self) -> str:
        """One of: not run, confirmed, confirmed in part, mixed, refuted, not told apart."""
        signs = [sign for *_, sign in self.signs]
        right, wrong = signs.count("better"), signs.count("worse")
        if not signs:
            return "not run"
        if right == len(signs):
            return "confirmed"
        if right and wrong:
            return "mixed"
        if right:
            return "confirmed in part"
        return "refuted" if wrong else "not told apart"

    @property
    def counts(self) -> str:
        """As in ``holds in 3 of 4, the reverse in 1``."""
        signs = [sign for *_, sign in self.signs]
        right, wrong = signs.count("better"), signs.count("worse")
        text = f"holds in {right} of {len(signs)}"
        return text + (f", the reverse in {wrong}" if wrong else "")


def judge(hypothesis: Hypothesis, board: Board) -> Finding:
    """The verdict on a hypothesis: comparisons that were not run do not count."""
    places: list[tuple[str, str, str]] = []
    pairs: list[Paired] = []
    for regime in board.regimes:
        if any(regime.labels.get(axis) not in values for axis, values in hypothesis.where.items()):
            continue
        figures = under(regime, hypothesis.under)
        for this, that in hypothesis.pairs:
            left, right = figures.get(this), figures.get(that)
            if not left or not right or set(left) != set(right):
                continue
            scaled = {seed: hypothesis.by * value for seed, value in left.items()}
            places.append((regime.title, this, that))
            pairs.append(Paired.of(scaled, right))
    signs = [pair.sign(p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]
    return Finding(hypothesis, tuple((*place, sign) for place, sign in zip(places, signs, strict=True)))


def under(regime: Regime, view: str) -> Figures:
    """Figures of a regime over attacks ("mean", "worst") or under the attack of that name."""
    views: dict[str, View] = {"mean": "mean", "worst": "worst"}
    return regime.over(views[view]) if view in views else regime.under(view)
