"""Which number of bad clients a rule should declare under a prior over who is honest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bezoar.aggregation import Rule
from bezoar.certify.expected import MOST, Frontiers, Size, _by_count, _check, _law, _of_sets, _Sized, by_count
from bezoar.errors import ConfigError
from bezoar.priors import HonestPrior
from bezoar.priors.base import quantile_of
from bezoar.priors.checks import check_probability


@dataclass(frozen=True)
class ChosenF:
    """The declared f that promises most.

    Attributes:
        f: the least of those with the least ``total``.
        quantile: the f that covers the number of bad clients with probability 1 - delta, for comparison; by draws where
            the law of that number is not known.
        curve: (f, expected bound, breakdown probability, total) for every f tried.
    """

    f: int
    quantile: int
    curve: tuple[tuple[int, float, float, float], ...]


def best_f(
    make: Callable[[int], Rule],
    prior: HonestPrior,
    cost: float,
    g: Size | Frontiers,
    b: Size = 0.0,
    mu: float | None = None,
    *,
    fs: Sequence[int] | None = None,
    delta: float = 0.05,
    draws: int = MOST,
    seed: int = 0,
) -> ChosenF:
    """The f with the least expected bound + P(nothing is promised) * ``cost``.

    ``make`` gives the rule for an f, e.g. ``TrimmedMean``; ``cost`` is what is lost where nothing is promised, in the
    units of the bound: with clipping, what steps of at most that length can cost. All f are tried that the rule
    takes, or those of ``fs``. Other arguments as :func:`expected_guarantee`.

    >>> from bezoar.aggregation import TrimmedMean
    >>> from bezoar.priors import Independent
    >>> found = best_f(TrimmedMean, Independent(0.1, clients=10), cost=5.0, g=1.0, mu=0.5)
    >>> found.f, found.quantile
    (3, 3)
    """
    if not (math.isfinite(cost) and cost >= 0):
        raise ConfigError(f"best_f: cost must be finite and not negative, got {cost}")
    n = prior.n
    if n is None:
        raise ConfigError("best_f: of how many clients? Say it with prior.of(n)")
    _check(prior, g, b, mu)
    law, sized, curve = _law(prior), None, []
    for f in range((n - 1) // 2 + 1) if fs is None else fs:
        rule = make(f).given(prior)
        try:
            rule.check(n)
        except ConfigError:
            continue
        if law is not None and not callable(g) and not callable(b) and by_count(rule):
            found = _by_count(rule, law, g, b, mu)
        else:
            sized = _Sized.of(prior, g, b, draws, seed) if sized is None else sized
            found = _of_sets(rule, sized, mu)
        curve.append((f, found.value, found.breakdown, found.value + found.breakdown * cost))
    if not curve:
        raise ConfigError(f"best_f: the rule works with no f for n={n} rows")
    best = min(curve, key=lambda row: (row[3], row[0]))
    if law is None:
        check_probability("best_f", "delta", delta)
        law = np.bincount((~prior.sample(draws, seed)).sum(1), minlength=n + 1) / draws
    return ChosenF(best[0], quantile_of(law, delta), tuple(curve))
