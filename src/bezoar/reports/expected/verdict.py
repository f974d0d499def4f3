"""Verdicts by rules that were written before the runs: who wins, who loses, what holds of a hypothesis.

All of them compare losses on the same seeds by the exact signed-rank test at 5%. Who claims that *some* comparison
holds pays for all of them (Holm's correction); who claims that *all* of them hold needs each at 5% and no correction
(an intersection-union test: Berger, Technometrics 1982). Nothing here looks at a name: which rules are new and which
are baselines, and what was expected of them, is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bezoar.reports.expected.board import Board, Figures, Regime, View, ranked, regret, spreads
from bezoar.reports.expected.statistics import LEVEL, Paired, Sign, Spread, against, holm

Result = Literal["wins", "loses", "level"]


@dataclass(frozen=True)
class Contest:
    """One rule against baselines in one regime.

    ``wins``: a smaller loss than every baseline (each at 5%); ``loses``: a greater one than some (``losing_to``, after
    Holm's correction); ``level``: neither.
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
    best = all(pair.sign(pair.p) == "better" for pair, _ in pairs.values())
    result: Result = "loses" if lost else "wins" if best else "level"
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
    """In every pair of ``pairs`` the first rule has a smaller loss than the second, by a factor of at least ``by``.

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
    """What came of a hypothesis: a sign for each regime, corrected for all regimes."""

    hypothesis: Hypothesis
    signs: tuple[tuple[str, Sign], ...]

    @property
    def word(self) -> str:
        """One of: not run, confirmed, confirmed in part, mixed, refuted, not told apart."""
        right, wrong = self._count("better"), self._count("worse")
        if not self.signs:
            return "not run"
        if right == len(self.signs):
            return "confirmed"
        if right:
            return "mixed" if wrong else "confirmed in part"
        return "refuted" if wrong else "not told apart"

    @property
    def counts(self) -> str:
        """As in ``holds in 3 of 4, the reverse in 1``."""
        wrong = self._count("worse")
        return f"holds in {self._count('better')} of {len(self.signs)}" + (f", the reverse in {wrong}" if wrong else "")

    def _count(self, sign: Sign) -> int:
        return sum(found == sign for _, found in self.signs)


def judge(hypothesis: Hypothesis, board: Board) -> Finding:
    """The verdict on a hypothesis. In a regime it holds if it does in all its pairs, and the reverse if in some.

    A regime counts if all the pairs were run there.
    """
    places: list[str] = []
    signs: list[tuple[Sign, float]] = []
    for regime in board.regimes:
        if any(regime.labels.get(axis) not in values for axis, values in hypothesis.where.items()):
            continue
        figures = under(regime, hypothesis.under)
        both = [(figures.get(this, {}), figures.get(that, {})) for this, that in hypothesis.pairs]
        if not all(left and set(left) == set(right) for left, right in both):
            continue
        scaled = [({seed: hypothesis.by * v for seed, v in left.items()}, right) for left, right in both]
        places.append(regime.title)
        signs.append(_of_all([Paired.of(left, right) for left, right in scaled]))
    adjusted = holm([p for _, p in signs])
    kept = (sign if p < LEVEL else "undecided" for (sign, _), p in zip(signs, adjusted, strict=True))
    return Finding(hypothesis, tuple(zip(places, kept, strict=True)))


def _of_all(pairs: Sequence[Paired]) -> tuple[Sign, float]:
    """Better in all (the greatest p), else worse in some (the least p, for as many as there are)."""
    if all(pair.lean < 0 for pair in pairs):
        return "better", max(pair.p for pair in pairs)
    return "worse", min(1.0, len(pairs) * min((pair.p for pair in pairs if pair.lean > 0), default=1.0))


def under(regime: Regime, view: str) -> Figures:
    """Figures of a regime over attacks ("mean", "worst") or under the attack of that name."""
    views: dict[str, View] = {"mean": "mean", "worst": "worst"}
    return regime.over(views[view]) if view in views else regime.under(view)
