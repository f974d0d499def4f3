"""SIP that stops relying on a prior which the updates speak against."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation._candidates import (
    Candidates,
    about,
    candidates,
    check_prior,
    needed,
    places,
    prior_field,
)
from bezoar.aggregation._gram import normalised
from bezoar.aggregation._outside import Minority, codes, missed, tight_sets
from bezoar.aggregation._posterior import Model, Posterior, posterior
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.aggregation.posterior_mean import check_model, mean_weights
from bezoar.aggregation.sip import project
from bezoar.errors import ConfigError
from bezoar.priors import Family
from bezoar.priors.base import check_probability
from bezoar.priors.family import Floats, Masks
from bezoar.registry import holds
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True, eq=False)
class Guard:
    """What the updates say of the prior.

    Attributes:
        mass: posterior probability that the honest set is one of the prior's, as far as sets were visited.
        least: a lower bound on it, with whatever the sets that were not visited can hold.
        sets: the sets that were visited [K, m], the prior's first.
        found: their posterior.
    """

    mass: float
    least: float
    sets: Masks
    found: Posterior


def _build(table: Any) -> Rule:
    from bezoar.aggregation.registry import pipeline

    return pipeline(table)


def _table(rule: Rule) -> Any:
    from bezoar.aggregation.registry import pipeline_tables

    tables = pipeline_tables(rule)
    return tables if len(tables) > 1 else tables[0]


@dataclass(frozen=True)
class GuardedSIP(Rule):
    r"""SIP as long as the updates agree with the prior, and its base rule alone where they do not.

    .. math:: \mu' = (1 - \varepsilon)\,\mu + \varepsilon\,\nu,\quad
        \nu = \text{every client bad with } p_0, \text{ given } |B| \le \lceil n/2 \rceil - 1

    If the posterior under mu' (that of posterior-mean, with ``beta``, ``exclusion``, ``em_steps``) leaves at least
    ``mass`` on the sets of ``prior``, the answer is ``base``'s, projected into their common box as SIP does; else it
    is ``base``'s. Left out, ``base`` is the posterior mean under mu'. ``contamination`` is epsilon. Of the sets of nu
    those with few bad clients are all visited, and of those with more the tightest that a beam search finds; what is
    not visited can only make the rule trust the prior too much, by an amount that :meth:`guard` bounds. The scores are
    the probabilities that clients are honest.

    Tolerates: the bad clients of any candidate set while the guard trusts the prior; nothing for certain else.
    Cost: that of SIP, one Gram matrix, O(n^2 d), and some thousands of sets, O(n^2) each.
    Constant: none for all inputs, as attackers may look like a wrong prior; rho_S where the prior is trusted.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: new to our knowledge; contaminated priors are Huber's.

    >>> from bezoar.priors import Explicit
    >>> rule = GuardedSIP(Explicit(5, bad=((), (4,)), p=(0.5, 0.5)))
    >>> rule(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    base: Rule | None = holds(_build, _table, default=None)  # noqa: RUF009
    contamination: float = 0.1
    p0: float = 0.1
    mass: float = 0.95
    beta: float = 8.0
    exclusion: float = 2.0
    em_steps: int = 5
    delta: float = 0.0
    disjoint: Literal["error", "drop"] = "error"
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        check_model(self.name, self.beta, self.exclusion, self.em_steps)
        if self.base is not None and not isinstance(self.base, Rule):
            raise ConfigError(f"{self.name}: base must be a rule, for example GeometricMedian(), got {self.base!r}")
        for name in ("contamination", "p0"):
            value = getattr(self, name)
            check_probability(self.name, name, value)
            if not 0 < value < 1:
                raise ConfigError(f"{self.name}: {name} must be above 0 and below 1, got {value}; SIP trusts blindly")
        check_probability(self.name, "mass", self.mass)
        check_probability(self.name, "delta", self.delta)
        if self.disjoint not in ("error", "drop"):
            raise ConfigError(f"{self.name}: disjoint must be 'error' or 'drop', got {self.disjoint!r}")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        own = Needs.GRAM | Needs.BLOCKS
        return own if self.base is None else own | self.base.needs

    @property
    def uses_root(self) -> bool:  # type: ignore[override]
        return self.base is not None and self.base.uses_root

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        return self.base is not None and self.base.weighted

    @property
    def huge(self) -> float | None:
        return None

    def check(self, n: int) -> None:
        if self.base is not None:
            self.base.check(n)

    def within(self, kept: Tensor, n: int) -> GuardedSIP:
        if self.base is None:
            return self
        declared = self.base.tolerated
        short = 0 if declared is None else max(0, n - len(kept) - declared)
        base = self.base.without(-short) if short else self.base
        return dataclasses.replace(self, base=base.within(kept, n))

    @property
    def model(self) -> Model:
        """The likelihood's parameters."""
        return Model(self.beta, self.exclusion, self.em_steps)

    def guard(self, distances: Floats, family: Family, hostile: int = 0) -> Guard:
        """What squared ``distances`` [m, m] say of ``family``, the prior's sets of these m rows.

        ``hostile`` further clients are known to be bad.
        """
        m = len(distances)
        n = m + hostile
        law = Minority(m, self.p0, max(0, math.ceil(n / 2) - 1 - hostile))
        visited = tight_sets(distances, law.most)
        sets, log_prior, own = self._mixed(family, visited.honest, law)
        found = posterior(distances, sets, log_prior, self.model)
        mass = float(found.p[:own].sum())
        rest = missed(distances, visited, law, (self.beta, self.exclusion, found.scale)) + math.log(self.contamination)
        whole = float(np.logaddexp.reduce(log_prior + found.log_likelihood))
        return Guard(mass, mass / (1 + math.exp(min(rest - whole, 700.0))), sets, found)

    def _mixed(self, family: Family, outside: Masks, law: Minority) -> tuple[Masks, Floats, int]:
        """All sets, the family's first, with their log probability under mu', and how many are the family's."""
        fresh = ~np.isin(codes(outside), codes(family.honest))
        sets = np.concatenate([family.honest, outside[fresh]])
        of_prior = family.log_prob - np.logaddexp.reduce(family.log_prob)
        told = np.concatenate([of_prior, np.full(int(fresh.sum()), -np.inf)]) + math.log1p(-self.contamination)
        minority = law.log_prob(law.m - sets.sum(1)) + math.log(self.contamination)
        return sets, np.logaddexp(told, minority), len(family)

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        given = needed(self.name, self.prior)
        clients, hostile = places(self.name, given, rows, context)
        prior = about(self.name, given, len(clients) + len(hostile))
        family, intervals = candidates(prior, self.delta, self.disjoint == "drop", clients, hostile)
        distances = normalised(rows.squared_distances()).cpu().double().numpy()
        known = self.guard(distances, family, len(hostile))
        weights, honest = mean_weights(known.found, known.sets)
        if self.base is None:
            shares = torch.from_numpy(weights).to(rows.device)
            answer = Aggregate(rows.combine(shares), weights=shares)
        else:
            answer = self.base.aggregate(rows, state, context, generator)
        answer = dataclasses.replace(answer, scores=torch.from_numpy(honest))
        if known.mass < self.mass:
            return answer
        vector, box = project(rows, intervals, answer.vector)
        return dataclasses.replace(answer, vector=vector, weights=answer.weights if box.moved == 0 else None, box=box)
