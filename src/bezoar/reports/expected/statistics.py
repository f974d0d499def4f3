"""Comparing rules over seeds: spreads that keep what diverged, paired differences, exact signed ranks, Holm.

A training that diverged has an infinite loss. It is never dropped: a mean over it is infinite, so medians, ranks and
"diverged in k of n" speak where means can not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bezoar.reports.estimates import Estimate

#: Significance level of every comparison.
LEVEL = 0.05

Sign = Literal["better", "worse", "undecided", "equal"]


@dataclass(frozen=True)
class Spread:
    """One figure over seeds: ``estimate`` of its mean (None if a seed diverged), ``median``, seeds that diverged.

    >>> Spread.of([1.0, 2.0, math.inf]).text()
    'diverged in 1 of 3, median 2'
    >>> Spread.of([1.0, 2.0, 3.0]).text()
    '2 ± 2.5'
    """

    estimate: Estimate | None
    median: float
    diverged: int
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From one value per seed. Raises ValueError if there is none, or one is NaN."""
        if not values or any(math.isnan(value) for value in values):
            raise ValueError(f"needs at least one value, and numbers alone, got {list(values)!r}")
        lost = sum(value == math.inf for value in values)
        return cls(None if lost else Estimate.of(values), median(values), lost, len(values))

    @property
    def key(self) -> tuple[float, float]:
        """What ranks: the mean; where seeds diverged, after all others, by how many and the median."""
        if self.estimate is not None:
            return (-1.0, self.estimate.mean)
        return (self.diverged / self.n, self.median)

    @property
    def typical(self) -> float:
        """The mean, or infinity."""
        return math.inf if self.estimate is None else self.estimate.mean

    def text(self) -> str:
        """As in ``0.12 ± 0.03``, or how often it diverged."""
        if self.estimate is None:
            middle = f", median {digits(self.median)}" if math.isfinite(self.median) else ""
            return f"diverged in {self.diverged} of {self.n}{middle}"
        half = self.estimate.half
        return digits(self.estimate.mean) + (f" ± {digits(half, 2)}" if half is not None else "")


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones; infinite values are the greatest.

    >>> median([1.0, math.inf, 2.0, 3.0])
    2.5
    """
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def digits(value: float, n: int = 3) -> str:
    """A number with ``n`` significant digits, without an exponent where that is short.

    >>> digits(0.012345), digits(123456.0), digits(1.0)
    ('0.0123', '1.23e+05', '1')
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "NaN" if math.isnan(value) else "-∞"
    return f"{value:.{n}g}"


@dataclass(frozen=True)
class Paired:
    """``this`` minus ``that`` on the same seeds.

    ``difference`` is the mean with its Student t interval, None where a seed diverged. ``p`` is that of the exact
    two-sided signed-rank test, which needs no mean: a seed where only one of the two diverged has the greatest rank,
    one where both did is a tie. ``less`` and ``more`` count seeds where ``this`` is the smaller and the greater;
    ``lean`` is below 0 where the ranks say that it is the smaller.
    """

    difference: Estimate | None
    p: float
    lean: int
    less: int
    more: int
    n: int

    @classmethod
    def of(cls, this: Mapping[int, float], that: Mapping[int, float]) -> Paired:
        """From seed -> value. Raises ValueError if the two do not have the same seeds: what is not paired stays out."""
        if set(this) != set(that) or not this:
            raise ValueError(f"not the same seeds: {sorted(this)} and {sorted(that)}")
        gaps = [_gap(this[seed], that[seed]) for seed in sorted(this)]
        known = Estimate.of(gaps) if all(map(math.isfinite, gaps)) else None
        less, more = sum(g < 0 for g in gaps), sum(g > 0 for g in gaps)
        return cls(known, signed_rank(gaps), _lean(gaps), less, more, len(gaps))

    def sign(self, p: float) -> Sign:
        """What is to be said at the (adjusted) ``p``: ``this`` is the smaller loss ("better"), greater, or neither."""
        if self.less == self.more == 0:
            return "equal"
        if p >= LEVEL or self.lean == 0:
            return "undecided"
        return "better" if self.lean < 0 else "worse"


def _gap(this: float, that: float) -> float:
    return 0.0 if this == that else this - that


def signed_rank(differences: Sequence[float]) -> float:
    """The exact two-sided p-value of Wilcoxon's signed-rank test of differences around 0, with average ranks for ties.

    Zeros are left out; infinite differences have the greatest rank. The null distribution is that of all 2^n signs of
    the ranks at hand, counted without listing them.

    Wilcoxon: Individual comparisons by ranking methods, Biometrics Bulletin 1945.

    >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    0.03125
    >>> signed_rank([])
    1.0
    """
    if any(math.isnan(value) for value in differences):
        raise ValueError("a difference is NaN")
    pairs = _ranks(differences)
    ways = [1]
    for rank, _ in pairs:
        longer = [*ways, *([0] * rank)]
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    plus = sum(rank for rank, positive in pairs if positive)
    tail = min(plus, sum(rank for rank, _ in pairs) - plus)
    return min(1.0, 2 * sum(ways[: tail + 1]) / (1 << len(pairs)))


def _ranks(differences: Sequence[float]) -> list[tuple[int, bool]]:
    """Twice the average rank, which is a whole number, of each difference that is not 0, and whether it is positive."""
    order = sorted(abs(value) for value in differences if value != 0)
    twice = {value: order.index(value) * 2 + order.count(value) + 1 for value in set(order)}
    return [(twice[abs(value)], value > 0) for value in differences if value != 0]


def _lean(differences: Sequence[float]) -> int:
    """-1 if the negative differences have the greater sum of ranks, 1 if the positive ones have, else 0."""
    balance = sum(rank if positive else -rank for rank, positive in _ranks(differences))
    return (balance > 0) - (balance < 0)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: with those below a level rejected, the chance of any false one is below the level.

    Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    out = [0.0] * len(p)
    most = 0.0
    for place, index in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[index]))
        out[index] = most
    return out


def resolvable(seeds: int, comparisons: int) -> bool:
    """Whether any of so many comparisons made together can have a sign at all with so many seeds.

    The least p-value of the signed-rank test is 2 / 2^n, when all n differences have one sign.

    >>> resolvable(6, 7), resolvable(10, 14), resolvable(6, 1)
    (False, True, True)
    """
    return comparisons * 2.0 ** (1 - seeds) < LEVEL


def together(pairs: Mapping[str, Paired]) -> dict[str, tuple[Paired, Sign]]:
    """Comparisons that are made together, each with its sign after Holm's correction for all of them."""
    adjusted = holm([pair.p for pair in pairs.values()])
    return {name: (pair, pair.sign(p)) for (name, pair), p in zip(pairs.items(), adjusted, strict=True)}


def against(this: Mapping[int, float], others: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[Paired, Sign]]:
    """``this`` minus each of the others, compared together."""
    return together({name: Paired.of(this, that) for name, that in others.items()})
