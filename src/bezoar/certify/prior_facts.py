"""What a prior over honest sets says and allows: chances, law of the number of bad clients, breakdown, overlaps.

The overlap constant rho and what it promises are in docs/robustness.md's terms: with the candidate honest sets S, T of
a family, no rule does better than :math:`\\rho_S = \\max_T |S \\setminus T| / |S \\cap T|` for every S at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bezoar.aggregation import RULES, SIP, Mixing, Pipeline, Rule
from bezoar.certify.constants import breakdown
from bezoar.errors import ConfigError
from bezoar.priors import Count, HonestPrior, Subsets
from bezoar.priors.family import Family, Floats, Masks

#: Levels at which the number of bad clients is told.
LEVELS = (0.5, 0.9, 0.95, 0.99)

#: More sets than this are not compared with each other.
MOST_SETS = 10_000

#: Clients one could trust are tried while comparing costs no more than this many pairs of sets.
_TRIALS = 3 * 10**8

#: Draws where chances are not known exactly.
DRAWS = 20_000


@dataclass(frozen=True)
class RuleFact:
    """How many bad rows a rule withstands, and how likely it breaks.

    ``withstands`` is None for a rule that can not work with so few rows, or does not go by a number (SIP).
    """

    name: str
    withstands: int | None
    breaks: float


@dataclass(frozen=True, eq=False)
class Overlap:
    """What the overlaps of a family's sets allow.

    Attributes:
        rho: the best constant for every set [K]; infinite for one that is disjoint with another.
        worst: which two sets S, T with the largest :math:`|S \\setminus T| / |S \\cap T|`, disjoint ones first.
        disjoint: how many sets have no client in common with another one: no rule can serve both.
        lost: share of the family's probability that is lost if the less likely set of each such pair is given up.
    """

    rho: Floats
    worst: tuple[int, int]
    disjoint: int
    lost: float


@dataclass(frozen=True, eq=False)
class PriorFacts:
    """What is known of a prior about n clients.

    Attributes:
        weights: w_i [n], None where they are not known exactly.
        bad: probability that client i is bad [n].
        half: half width of the 95 % interval of ``bad`` at most; 0 where it is exact.
        law: P(abs(B) = k) for k = 0..n [n + 1]; a frequency of draws where it is not known exactly.
        quantiles: level -> the smallest f with P(abs(B) <= f) at least that.
        rules: registered rules, by what they withstand.
        delta: probability that ``family`` leaves out at most.
        family: the likeliest sets, None where there are too many.
        why: why there is no family or no overlap; empty if there is.
        overlap: of the family.
        trusted: client -> largest rho if it were honest whatever happens to the others, the best first.
    """

    prior: HonestPrior
    n: int
    weights: Floats | None
    bad: Floats
    half: float
    law: Floats
    law_exact: bool
    quantiles: Mapping[float, int]
    rules: tuple[RuleFact, ...]
    delta: float
    family: Family | None
    why: str
    overlap: Overlap | None
    trusted: tuple[tuple[int, float], ...]

    @property
    def mean_rho(self) -> float:
        """E[rho_S], given that the honest set is one of the family's."""
        assert self.family is not None
        assert self.overlap is not None
        return float(_shares(self.family) @ self.overlap.rho)

    @property
    def threshold(self) -> tuple[int, float, float]:
        """The least f that covers the family, with mean and largest optimal constant f / (abs(S) - f) of its sets.

        The constants are infinite where f is half of the clients or more.
        """
        assert self.family is not None
        f = int(self.n - self.family.sizes.min())
        if 2 * f >= self.n:
            return f, math.inf, math.inf
        kappas = f / (self.family.sizes - f)
        return f, float(_shares(self.family) @ kappas), float(kappas.max())


def prior_facts(prior: HonestPrior, delta: float = 0.05, seed: int = 0) -> PriorFacts:
    """What ``prior``, about a stated number of clients, says and allows.

    Args:
        prior: see :class:`bezoar.priors.HonestPrior`; ``prior.of(n)`` if it is about any number.
        delta: probability that the family of candidate sets may leave out.
        seed: of the draws, where something is not known exactly.

    Raises:
        ConfigError: the number of clients is open, or delta is no probability.

    >>> from bezoar.priors import Explicit
    >>> facts = prior_facts(Explicit(20, ((), tuple(range(12)), (12, 13, 14, 15)), (0.5, 0.3, 0.2)))
    >>> facts.quantiles[0.95], facts.overlap.rho.tolist()
    (12, [1.5, 1.0, 3.0])
    """
    n = prior._clients()
    family, why = None, ""
    try:
        family = prior.support(delta)
    except ConfigError as error:
        why = str(error)
        if not 0 <= delta <= 1:
            raise
    draws = None
    try:
        law, law_exact = prior.bad_count(), True
    except ConfigError:
        draws = prior.sample(DRAWS, seed)
        law, law_exact = np.bincount((~draws).sum(1), minlength=n + 1) / len(draws), False
    try:
        weights = prior.weights()
    except ConfigError:
        weights = None
    bad, half = _chances(prior, family if delta == 0 else None, draws, seed)
    cumulated = np.cumsum(law)
    quantiles = {level: int(np.argmax(cumulated >= level * (1 - 1e-12))) for level in LEVELS}
    overlap: Overlap | None = None
    trusted: tuple[tuple[int, float], ...] = ()
    if family is not None and len(family) > MOST_SETS:
        why = f"{len(family):,} sets are too many to compare them all (at most {MOST_SETS:,}): choose a larger delta"
    elif family is not None:
        overlap = overlaps(family)
        trusted = trust(family)
    rules = registered_rules(n, law)
    return PriorFacts(
        prior, n, weights, bad, half, law, law_exact, quantiles, rules, delta, family, why, overlap, trusted
    )


def overlaps(family: Family) -> Overlap:
    """What the overlaps of a family allow."""
    least, rival = family.overlaps
    with np.errstate(divide="ignore"):
        rho = (family.sizes - least) / least
    worst = int(rho.argmax())
    lost = 0.0 if least.all() else max(0.0, 1 - family.intersecting().mass / family.mass)
    return Overlap(rho, (worst, int(rival[worst])), int((least == 0).sum()), lost)


def trust(family: Family, most: int = 5) -> tuple[tuple[int, float], ...]:
    """The clients whom it would help most to trust, at most ``most``, with the largest rho that then remains.

    A trusted client is honest whatever happens to the others: it is added to every candidate set. Of clients that are
    in the same sets the first one stands for all. Empty where trying them all would take too long.
    """
    columns, first = np.unique(family.honest, axis=1, return_index=True)
    if len(first) * len(family) ** 2 > _TRIALS:
        return ()
    members, sizes = family.honest.astype(np.float32), family.sizes.astype(np.float64)
    common = (members @ members.T).astype(np.float64)
    found = []
    for column, client in zip(columns.T, first, strict=True):
        if column.all():
            continue
        inside = column.astype(np.float64)
        both = np.outer(inside, inside)
        ratios = (sizes[:, None] - common - inside[:, None] + both) / (common + 1 - both)
        found.append((int(client), float(ratios.max())))
    return tuple(sorted(found, key=lambda pair: (pair[1], pair[0]))[:most])


def registered_rules(n: int, law: Floats) -> tuple[RuleFact, ...]:
    """All registered rules that go by the number of bad rows, those that break least often first."""
    found = []
    for name in RULES:
        kind = RULES[name]
        fields = dataclasses.fields(kind)
        if issubclass(kind, Mixing) or not issubclass(kind, Rule) or any(spec.name == "prior" for spec in fields):
            continue
        needed = [s for s in fields if s.init and s.default is s.default_factory is dataclasses.MISSING]
        try:
            # What a rule withstands at best does not depend on the f that it is given.
            most = breakdown(kind(**dict.fromkeys((spec.name for spec in needed), 1)), n)
            found.append(RuleFact(name, most, _more(law, most)))
        except (TypeError, ConfigError):
            found.append(RuleFact(name, None, 1.0))
    return tuple(sorted(found, key=lambda fact: (fact.breaks, fact.name)))


def rule_fact(name: str, rule: Rule, n: int, law: Floats) -> RuleFact:
    """What ``rule`` withstands as it stands, with the f that it declares; SIP breaks outside its sets."""
    rule.check(n)
    end = rule.rule if isinstance(rule, Pipeline) else rule
    if isinstance(end, SIP):
        return RuleFact(name, None, max(0.0, 1 - end.family(n).mass))
    most = breakdown(rule, n)
    if rule.tolerated is not None:
        most = min(most, rule.tolerated)
    return RuleFact(name, most, _more(law, most))


def _more(law: Floats, most: int) -> float:
    return float(law[most + 1 :].sum())


def _chances(prior: HonestPrior, family: Family | None, draws: Masks | None, seed: int) -> tuple[Floats, float]:
    """Probability that each client is bad [n], given that somebody is honest, and the half width of its interval."""
    n = prior._clients()
    if isinstance(prior, Count | Subsets):
        return np.full(n, float(prior.bad_count() @ np.arange(n + 1)) / n), 0.0
    try:
        tilted = prior._tilted(np.ones(1))
    except ConfigError:
        tilted = None
    if tilted is not None:
        log_z, honest = tilted
        return np.clip(1 - np.exp(log_z[0] - prior._log_some()) * honest[0], 0.0, 1.0), 0.0
    if family is not None:
        return _shares(family) @ ~family.honest, 0.0
    draws = prior.sample(DRAWS, seed) if draws is None else draws
    bad = (~draws).mean(0)
    return bad, float(1.96 * np.sqrt(bad * (1 - bad) / len(draws)).max())


def _shares(family: Family) -> Floats:
    p = np.exp(family.log_prob - family.log_prob.max())
    return np.asarray(p / p.sum())
