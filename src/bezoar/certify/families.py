"""Robustness constants for candidate honest sets, one for every set; the proofs are in docs/sip.md."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bezoar.aggregation.base import Constant, Pipeline, Rule
from bezoar.aggregation.prior_trimmed_mean import PriorTrimmedMean
from bezoar.aggregation.sip import SIP
from bezoar.certify.constants import kappa
from bezoar.errors import ConfigError
from bezoar.priors import Family


def rho(family: Family) -> NDArray[np.float64]:
    r"""The best constant there is, for all sets of ``family`` at once: :math:`\max_T |S \setminus T| / |S \cap T|` [K].

    Raises:
        ConfigError: two sets are disjoint; no rule can serve both.

    >>> from bezoar.priors import Groups
    >>> family = Groups((8, 4, 4, 4), p=0.1).support(0.06)
    >>> [f"{size}: {value:.3g}" for size, value in zip(family.sizes.tolist(), rho(family))]
    ['20: 0.667', '12: 0.5', '16: 1', '16: 1', '16: 1']
    """
    return family.rho()


def family_constants(rule: Rule, family: Family) -> NDArray[np.float64]:
    r"""kappa_S of ``rule`` for every set S of ``family``: :math:`\|F(x) - \bar x_S\|^2 \le \kappa_S Var_S` [K].

    For :class:`~bezoar.aggregation.SIP` it is the rho_S of its own candidates, infinite for a set that is none of them;
    for the prior-trimmed mean what its weights and its share promise of the plain mean and variance of S; for other
    rules kappa with as many bad rows as S leaves out, infinite where that is more than the rule can take.
    All clients are taken to be there, in the order of the rows.

    Raises:
        ConfigError: the rule does not fit the number of clients, or its prior is about another one.

    >>> from bezoar.aggregation import TrimmedMean
    >>> from bezoar.priors import Explicit
    >>> family = Explicit(20, bad=((), (0, 1, 2), (0, 1, 2, 3, 4, 5)), p=(0.7, 0.2, 0.1)).support()
    >>> [float(round(value, 4)) for value in family_constants(TrimmedMean(f=4), family)]
    [0.25, 0.3077, inf]
    >>> [float(round(value, 4)) for value in family_constants(SIP(family), family)]
    [0.4286, 0.2143, 0.0]
    """
    n = family.n
    rule.check(n)
    last = rule.rule if isinstance(rule, Pipeline) else rule
    if isinstance(last, SIP):
        return _projected(rule, last, family)
    if isinstance(rule, PriorTrimmedMean):
        return _trimmed(*rule.weighting(n), family)
    declared = rule.tolerated

    @cache
    def known(q: int) -> float:
        if q > ((n - 1) // 2 if declared is None else declared):
            return math.inf
        return kappa(rule, n, f=q if declared is None else declared, q=q)

    return np.array([known(int(n - size)) for size in family.sizes])


def _projected(rule: Rule, sip: SIP, family: Family) -> NDArray[np.float64]:
    """The constants of a rule that ends in ``sip``; mixings before it take them on as they do for any S."""
    n = family.n
    own = sip.family(n)
    if own.n != n:
        raise ConfigError(f"SIP's prior is about {own.n} clients, the family about {n}")
    best = {row.tobytes(): float(value) for row, value in zip(own.honest, own.rho(), strict=True)}
    found = np.array([best.get(row.tobytes(), math.inf) for row in np.ascontiguousarray(family.honest)])
    for part in reversed(rule.mixings if isinstance(rule, Pipeline) else ()):
        for k, size in enumerate(family.sizes.tolist()):
            q, f = n - size, part.tolerated
            inner = Constant(float(found[k]), "rho_S", "exact")
            known = () if f is None or q > f else part.constants(inner, n, f, q)
            found[k] = min((c.value for c in known if c.source != "unverified"), default=math.inf)
    return found


def _trimmed(weights: NDArray[np.float64], phi: float, family: Family) -> NDArray[np.float64]:
    r"""A mean with shares u of S is off by at most (|S| sum u^2 - 1) Var_S, and u <= w/(w(S) - phi) (docs/sip.md)."""
    found = np.full(len(family), math.inf)
    for k, honest in enumerate(family.honest):
        own = np.sort(weights[honest])[::-1]
        left = float(own.sum()) - phi
        if 1 - own.sum() > phi + 1e-12 or left <= 0:
            continue
        # The largest sum of squares fills up the largest shares.
        upper = np.minimum(np.cumsum(own) / left, 1.0)
        shares = np.diff(upper, prepend=0.0)
        found[k] = max(0.0, len(own) * float((shares**2).sum()) - 1)
    return found
