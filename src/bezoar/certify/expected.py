r"""What a rule promises when there is a probability over who is honest; the proof is in docs/expected.md.

For one honest set S, Robust DGD with a rule of constant kappa_S on (G_S, B_S)-dissimilar clients ends with

.. math:: L_S(\hat\theta_S) - L_S^* \le \frac{\kappa_S G_S^2}{2\mu(1 - \kappa_S B_S^2)}

beside what is left of the start (mu-PL losses), or with that mean squared gradient norm (2 mu replaced by 1) where
nothing is known but smoothness. The expectation over S is taken where kappa_S B_S^2 < 1; the probability of the other
sets is reported beside it, never mixed into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.aggregation import SIP, Pipeline, PriorTrimmedMean, Rule
from bezoar.certify.families import family_constants
from bezoar.certify.frontier import Frontier, Looks, least_bounds
from bezoar.certify.objectives import Reading
from bezoar.errors import ConfigError
from bezoar.priors import Family, HonestPrior
from bezoar.priors.strata import Strata, stratified

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

#: How large G or B is: a number, or a function of the honest set, bool [n].
Size = float | Callable[[Masks], float]

#: Frontiers of honest sets: a function from a set, bool [n], to what its gradients were. :class:`Looks` are one.
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
        breakdown_half_width: of that of ``breakdown``. Where no draw broke and the law of the number of bad clients is
            not known, three over the number of draws, which bounds it with as much confidence.
        unseen: probability of numbers of bad clients that no draw had; their share is in neither of the two.
        rows: by number of bad clients: (number, its probability, least and largest kappa_S, E[bound_S] given that
            number and that something is promised, None if nothing ever is).
    """

    value: float
    breakdown: float
    half_width: float
    unseen: float
    rows: tuple[tuple[int, float, float, float, float | None], ...]
    breakdown_half_width: float = 0.0
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
        g: G_S, a number or a function of S; or a function that gives the frontier of S (:class:`Looks`), from which the
            best (G, B) is taken, and ``b`` is left out.
        b: B_S, a number or a function of S.
        mu: the PL (or strong convexity) constant of the honest losses; None bounds squared gradient norms.
        draws, seed: where there are too many sets to list them.

    The law of the number of bad clients is enough, and the answer exact, where kappa, G and B depend on that alone;
    else every set is looked at, or draws of them, stratified by the number of bad clients
    (:func:`bezoar.priors.strata.stratified`). Numbers that no draw had are reported as ``unseen``.

    >>> from bezoar.aggregation import TrimmedMean
    >>> from bezoar.priors import Independent
    >>> found = expected_guarantee(TrimmedMean(f=2), Independent(0.1, clients=10), g=1.0, mu=0.5)
    >>> round(found.value, 4), round(found.breakdown, 4)
    (0.2624, 0.0702)
    """
    _check(prior, g, b, mu)
    rule = rule.given(prior)
    rule.check(prior.n or 0)
    law = _law(prior)
    if law is not None and not callable(g) and not callable(b) and by_count(rule):
        return _by_count(rule, law, g, b, mu)
    return _of_sets(rule, _Sized.of(prior, g, b, draws, seed), mu)


def _law(prior: HonestPrior) -> Floats | None:
    """P(abs(B) = k) [n + 1], None where it is not known exactly."""
    try:
        return prior.bad_count()
    except ConfigError:
        return None


def _check(prior: HonestPrior, g: Size | Frontiers, b: Size, mu: float | None) -> None:
    if prior.n is None:
        raise ConfigError("expected_guarantee: of how many clients? Say it with prior.of(n)")
    if mu is not None and not (math.isfinite(mu) and mu > 0):
        raise ConfigError(f"expected_guarantee: mu must be finite and positive, got {mu}")
    for name, value in (("g", g), ("b", b)):
        if not callable(value) and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"expected_guarantee: {name} must be finite and not negative, got {value}")


def by_count(rule: Rule) -> bool:
    """Whether kappa_S of ``rule`` depends on the number of bad rows alone."""
    last = rule.rule if isinstance(rule, Pipeline) else rule
    return not isinstance(last, SIP | PriorTrimmedMean)


def _by_count(rule: Rule, law: Floats, g: float, b: float, mu: float | None) -> ExpectedGuarantee:
    n = len(law) - 1
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


@dataclass(frozen=True, eq=False)
class _Sized:
    """Honest sets, what each counts, and G and B, or v and u of its frontier."""

    sets: Strata
    exact: bool
    frontier: bool
    first: Floats
    second: Floats

    @classmethod
    def of(cls, prior: HonestPrior, g: Size | Frontiers, b: Size, draws: int, seed: int) -> _Sized:
        try:
            family = prior.support()
        except ConfigError:
            family = None
        exact = family is not None and len(family) <= max(MOST, draws)
        if family is not None and exact:
            sets = Strata(family.honest, np.exp(family.log_prob), True)
        else:
            sets = stratified(prior, draws, seed)
        if isinstance(g, Looks):
            return cls(sets, exact, True, *g.of(sets.honest))
        sizes = [g(mask) if callable(g) else g for mask in sets.honest]
        looks = [size for size in sizes if isinstance(size, Frontier)]
        if looks:
            if len(looks) < len(sizes):
                raise ConfigError("expected_guarantee: g must give frontiers for all sets or for none")
            return cls(sets, exact, True, _padded([x.variances for x in looks]), _padded([x.gradients for x in looks]))
        first = np.array(sizes, dtype=np.float64)
        second = np.array([b(mask) if callable(b) else b for mask in sets.honest], dtype=np.float64)
        for name, values in (("g", first), ("b", second)):
            wrong = ~(np.isfinite(values) & (values >= 0))
            if wrong.any():
                at = int(wrong.argmax())
                raise ConfigError(
                    f"expected_guarantee: {name} of the set {np.flatnonzero(sets.honest[at]).tolist()} must be finite "
                    f"and not negative, got {values[at]}"
                )
        return cls(sets, exact, False, first, second)

    def bounds(self, kappas: Floats, mu: float | None) -> Floats:
        """What is promised for each set, infinite where nothing is."""
        if self.frontier:
            return least_bounds(kappas, 0.5 if mu is None else mu, self.first, self.second)
        known = zip(kappas.tolist(), self.first.tolist(), self.second.tolist(), strict=True)
        return np.array([bound(k, g, b, mu) for k, g, b in known])


def _padded(rows: list[Floats]) -> Floats:
    """Rows of perhaps different lengths as an array; looks of nothing but zeros ask for no larger G or B."""
    found = np.zeros((len(rows), max(map(len, rows))))
    for line, row in zip(found, rows, strict=True):
        line[: len(row)] = row
    return found


def _of_sets(rule: Rule, sized: _Sized, mu: float | None) -> ExpectedGuarantee:
    sets, exact = sized.sets, sized.exact
    honest, weights = sets.honest, sets.weights
    kappas = family_constants(rule, Family.uniform(honest))
    values = sized.bounds(kappas, mu)
    held = np.isfinite(values)
    filled = np.where(held, values, 0.0)
    bad = (~honest).sum(1)
    rows = []
    for q in np.unique(bad).tolist():
        here = bad == q
        mass = float(weights[here & held].sum())
        mean = float(weights[here & held] @ filled[here & held]) / mass if mass > 0 else None
        rows.append((q, float(weights[here].sum()), float(kappas[here].min()), float(kappas[here].max()), mean))
    broken = 0.0 if exact else 1.96 * sets.error((~held).astype(np.float64))
    if not (exact or sets.law) and held.all():
        broken = 3 / len(held)
    return ExpectedGuarantee(
        value=float(weights @ filled),
        breakdown=float(weights[~held].sum()),
        half_width=0.0 if exact else 1.96 * sets.error(filled),
        unseen=0.0 if exact else sets.unseen,
        rows=tuple(rows),
        breakdown_half_width=broken,
    )
