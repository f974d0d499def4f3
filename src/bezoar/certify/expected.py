r"""What a rule promises when there is a probability over who is honest; the proof is in docs/expected.md.

For one honest set S, Robust DGD with a rule of constant kappa_S on (G_S, B_S)-dissimilar clients ends with

.. math:: L_S(\hat\theta_S) - L_S^* \le \frac{\kappa_S G_S^2}{2\mu(1 - \kappa_S B_S^2)}

beside what is left of the start (mu-PL losses), or with that mean squared gradient norm (2 mu replaced by 1) where
nothing is known but smoothness. The expectation over S is taken where kappa_S B_S^2 < 1; the probability of the other
sets is reported beside it, never mixed into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.aggregation import SIP, Pipeline, PriorTrimmedMean, Rule
from bezoar.certify.families import family_constants
from bezoar.certify.frontier import Frontier
from bezoar.certify.objectives import Reading, stratified_sets
from bezoar.errors import ConfigError
from bezoar.priors import Family, HonestPrior

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

#: How large G or B is: a number, or a function of the honest set, bool [n].
Size = float | Callable[[Masks], float]

#: Frontiers of honest sets: a function from a set, bool [n], to what its gradients were.
Frontiers = Callable[[Masks], Frontier]

#: More honest sets than this are drawn, not listed.
MOST = 20_000


@dataclass(frozen=True)
class ExpectedGuarantee:
    """What is promised in expectation (reading R1).

    Attributes:
        value: E[bound_S 1{something is promised}]: add what breakdown costs, ``breakdown`` times the largest loss.
        breakdown: the probability that nothing is promised.
        half_width: of the 95 % interval of ``value``; 0 where it is exact.
        unseen: probability of numbers of bad clients that no draw had; their share is in neither of the two.
        rows: by number of bad clients: (number, its probability, least and largest kappa_S, E[bound_S] given that
            number and that something is promised, None if nothing ever is).
    """

    value: float
    breakdown: float
    half_width: float
    unseen: float
    rows: tuple[tuple[int, float, float, float, float | None], ...]
    reading: Reading = Reading.R1

    @property
    def given(self) -> float:
        """The expected bound given that something is promised; NaN if that never happens."""
        held = 1 - self.breakdown - self.unseen
        return self.value / held if held > 1e-15 else math.nan


def bound(kappa: float, g: float, b: float = 0.0, mu: float | None = None) -> float:
    r"""kappa G^2 / (2 mu (1 - kappa B^2)), or kappa G^2 / (1 - kappa B^2) without ``mu``; infinite for kappa B^2 >= 1.

    >>> bound(0.5, g=2.0, b=1.0, mu=0.1), bound(1.0, g=2.0, b=1.0)
    (20.0, inf)
    """
    left = 1 - kappa * b * b if math.isfinite(kappa) else -1.0
    if left <= 0:
        return math.inf
    return kappa * g * g / left / (1.0 if mu is None else 2 * mu)


def expected_guarantee(
    rule: Rule,
    prior: HonestPrior,
    g: Size | Frontiers,
    b: Size = 0.0,
    mu: float | None = None,
    *,
    draws: int = MOST,
    seed: int = 0,
) -> ExpectedGuarantee:
    r"""E_S of what ``rule`` promises for S, and the probability that it promises nothing.

    Args:
        rule: with constants, for any number of bad rows (:func:`bezoar.certify.kappa`) or for the prior's sets (SIP).
        prior: about n clients; rules without a prior of their own are told it.
        g: G_S, a number or a function of S; or a function that gives the frontier of S, from which the best (G, B) is
            taken, and ``b`` is left out.
        b: B_S, a number or a function of S.
        mu: the PL (or strong convexity) constant of the honest losses; None bounds squared gradient norms.
        draws, seed: where there are too many sets to list them.

    The law of the number of bad clients is enough, and the answer exact, where kappa, G and B depend on that alone;
    else every set is looked at, or draws of them, weighted so that each number of bad clients counts with its own
    probability. Numbers that no draw had are reported as ``unseen``.

    >>> from bezoar.aggregation import TrimmedMean
    >>> from bezoar.priors import Independent
    >>> found = expected_guarantee(TrimmedMean(f=2), Independent(0.1, clients=10), g=1.0, mu=0.5)
    >>> round(found.value, 4), round(found.breakdown, 4)
    (0.2624, 0.0702)
    """
    if prior.n is None:
        raise ConfigError("expected_guarantee: of how many clients? Say it with prior.of(n)")
    if mu is not None and not (math.isfinite(mu) and mu > 0):
        raise ConfigError(f"expected_guarantee: mu must be finite and positive, got {mu}")
    for name, value in (("g", g), ("b", b)):
        if not callable(value) and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"expected_guarantee: {name} must be finite and not negative, got {value}")
    rule = rule.given(prior)
    rule.check(prior.n)
    if not callable(g) and not callable(b) and by_count(rule):
        return _by_count(rule, prior, g, b, mu)
    honest, weights, exact = _sets(prior, draws, seed)
    kappas = family_constants(rule, Family.uniform(honest))
    values = np.array([_of_set(k, mask, g, b, mu) for k, mask in zip(kappas, honest, strict=True)])
    return _summed(values, kappas, honest, weights, exact)


def by_count(rule: Rule) -> bool:
    """Whether kappa_S of ``rule`` depends on the number of bad rows alone."""
    last = rule.rule if isinstance(rule, Pipeline) else rule
    return not isinstance(last, SIP | PriorTrimmedMean)


def _of_set(kappa: float, mask: Masks, g: Size | Frontiers, b: Size, mu: float | None) -> float:
    size = g(mask) if callable(g) else g
    if isinstance(size, Frontier):
        found = size.best(kappa, 0.5 if mu is None else mu)
        return math.inf if found is None else found.value
    return bound(kappa, size, b(mask) if callable(b) else b, mu)


def _by_count(rule: Rule, prior: HonestPrior, g: float, b: float, mu: float | None) -> ExpectedGuarantee:
    n = prior.n
    assert n is not None
    law = prior.bad_count()
    value = breakdown = 0.0
    rows = []
    for q in np.flatnonzero(law > 0).tolist():
        mask = np.arange(n) >= q
        kappa = float(family_constants(rule, Family.uniform(mask[None]))[0])
        promised = bound(kappa, g, b, mu)
        if math.isfinite(promised):
            value += float(law[q]) * promised
        else:
            breakdown += float(law[q])
        rows.append((q, float(law[q]), kappa, kappa, promised if math.isfinite(promised) else None))
    return ExpectedGuarantee(value, breakdown, 0.0, 0.0, tuple(rows))


def _sets(prior: HonestPrior, draws: int, seed: int) -> tuple[Masks, Floats, bool]:
    """Honest sets and their weights, and whether they are all there are."""
    try:
        family = prior.support()
    except ConfigError:
        family = None
    if family is not None and len(family) <= max(MOST, draws):
        return family.honest, np.exp(family.log_prob), True
    honest, weights = stratified_sets(prior, draws, seed)
    return honest, weights, False


def _summed(values: Floats, kappas: Floats, honest: Masks, weights: Floats, exact: bool) -> ExpectedGuarantee:
    held = np.isfinite(values)
    filled = np.where(held, values, 0.0)
    bad = (~honest).sum(1)
    variance, rows = 0.0, []
    for q in np.unique(bad).tolist():
        here = bad == q
        chance = float(weights[here].sum())
        given = filled[here & held]
        mean = float((weights[here & held] @ given) / weights[here & held].sum()) if len(given) else None
        rows.append((q, chance, float(kappas[here].min()), float(kappas[here].max()), mean))
        if not exact and here.sum() > 1:
            variance += chance**2 * float(filled[here].var(ddof=1)) / int(here.sum())
    return ExpectedGuarantee(
        value=float(weights @ filled),
        breakdown=float(weights[~held].sum()),
        half_width=0.0 if exact else 1.96 * math.sqrt(variance),
        unseen=max(0.0, 1 - float(weights.sum())) if not exact else 0.0,
        rows=tuple(rows),
    )


@dataclass(frozen=True)
class ChosenF:
    """The declared f that promises most.

    Attributes:
        f: the least of those with the least ``total``.
        quantile: the f that covers the number of bad clients with probability 1 - delta, for comparison.
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
    curve = []
    for f in range((n - 1) // 2 + 1) if fs is None else fs:
        rule = make(f)
        try:
            rule.given(prior).check(n)
        except ConfigError:
            continue
        found = expected_guarantee(rule, prior, g, b, mu, draws=draws, seed=seed)
        curve.append((f, found.value, found.breakdown, found.value + found.breakdown * cost))
    if not curve:
        raise ConfigError(f"best_f: the rule works with no f for n={n} rows")
    best = min(curve, key=lambda row: (row[3], row[0]))
    return ChosenF(best[0], prior.f_quantile(delta), tuple(curve))
