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
    candidates,
    check_prior,
    check_sets,
    present,
    prior_field,
)
from bezoar.aggregation._gram import normalised
from bezoar.aggregation._holding import Holding, for_rest
from bezoar.aggregation._outside import Minority, codes, missed, tight_sets
from bezoar.aggregation._posterior import Model, Posterior, counted, posterior
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.aggregation.geometric_median import GeometricMedian
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
    from bezoar.aggregation.registry import rule_table

    return rule_table(rule)


def _build_fallback(table: Any) -> Rule | Literal["base"]:
    return "base" if table == "base" else _build(table)


def _table_fallback(rule: Rule | Literal["base"]) -> Any:
    return rule if isinstance(rule, str) else _table(rule)


@dataclass(frozen=True)
class GuardedSIP(Holding):
    r"""SIP as long as the updates agree with the prior, and its base rule alone where they do not.

    .. math:: \mu' = (1 - \varepsilon)\,\mu + \varepsilon\,\nu,\quad
        \nu = \text{every client bad with } p_0, \text{ given } |B| \le \lceil n/2 \rceil - 1

    If the posterior under mu' (that of posterior-mean, with ``beta``, ``exclusion``, ``em_steps``) leaves at least
    ``mass`` on the sets of ``prior``, the answer is ``base``'s, projected into their common box as SIP does; else it
    is that of ``fallback``. Left out, ``base`` is the posterior mean under mu'. The fallback is the geometric median:
    ``"base"`` was tried and fails where attackers talk the guard out of a right prior, as what they do then is what
    leads the posterior astray (docs/expected-results.md). ``contamination`` is epsilon. Of the sets of nu
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
    fallback: Rule | Literal["base"] = holds(  # noqa: RUF009
        _build_fallback, _table_fallback, default_factory=GeometricMedian
    )
    contamination: float = 0.1
    p0: float = 0.1
    mass: float = 0.95
    beta: float = 8.0
    exclusion: float = 2.0
    em_steps: int = 5
    delta: float = 0.0
    disjoint: Literal["error", "drop"] = "error"
    wants: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        check_model(self.name, self.beta, self.exclusion, self.em_steps)
        if self.base is not None and not isinstance(self.base, Rule):
            raise ConfigError(f"{self.name}: base must be a rule, for example GeometricMedian(), got {self.base!r}")
        if self.fallback != "base" and not isinstance(self.fallback, Rule):
            raise ConfigError(f"{self.name}: fallback must be a rule or 'base', got {self.fallback!r}")
        for name in ("contamination", "p0"):
            value = getattr(self, name)
            check_probability(self.name, name, value)
            if not 0 < value < 1:
                raise ConfigError(f"{self.name}: {name} must be above 0 and below 1, got {value}; SIP trusts blindly")
        check_probability(self.name, "mass", self.mass)
        check_sets(self.name, self.delta, self.disjoint)

    @property
    def huge(self) -> float | None:
        return None

    def check(self, n: int) -> None:
        for rule in self.held:
            rule.check(n)

    def within(self, kept: Tensor, n: int) -> GuardedSIP:
        base = None if self.base is None else for_rest(self.base, kept, n)
        fallback = self.fallback if isinstance(self.fallback, str) else for_rest(self.fallback, kept, n)
        return dataclasses.replace(self, base=base, fallback=fallback)

    @property
    def model(self) -> Model:
        """The likelihood's parameters."""
        return Model(self.beta, self.exclusion, self.em_steps)

    def guard(self, distances: Floats, family: Family, hostile: int = 0) -> Guard:
        """What squared ``distances`` [m, m] say of ``family``, the prior's sets of these m rows.

        ``hostile`` further clients are known to be bad.
        """
        law = self._law(len(distances), hostile)
        visited = tight_sets(distances, law.most)
        sets, log_prior, found = self._weighed(distances, family, visited.honest, law)
        mass = float(found.p[: len(family)].sum())
        rest = missed(distances, visited, law, (self.beta, self.exclusion, found.scale)) + math.log(self.contamination)
        whole = float(np.logaddexp.reduce(log_prior + found.log_likelihood))
        return Guard(mass, mass / (1 + math.exp(min(rest - whole, 700.0))), sets, found)

    def _law(self, m: int, hostile: int) -> Minority:
        """nu of m clients beside ``hostile`` bad ones."""
        return Minority(m, self.p0, max(0, math.ceil((m + hostile) / 2) - 1 - hostile))

    def _weighed(
        self, distances: Floats, family: Family, outside: Masks, law: Minority
    ) -> tuple[Masks, Floats, Posterior]:
        """All sets, the family's first, their log probability under mu', and their posterior."""
        sets, log_prior, _ = self._mixed(family, outside, law)
        return sets, log_prior, posterior(distances, sets, log_prior, self.model)

    def _mixed(self, family: Family, outside: Masks, law: Minority) -> tuple[Masks, Floats, int]:
        """All sets, the family's first, with their log probability under mu', and how many are the family's."""
        fresh = ~np.isin(codes(outside), codes(family.honest))
        sets = np.concatenate([family.honest, outside[fresh]])
        of_prior = family.log_prob - np.logaddexp.reduce(family.log_prob)
        told = np.concatenate([of_prior, np.full(int(fresh.sum()), -np.inf)]) + math.log1p(-self.contamination)
        minority = law.log_prob(law.m - counted(sets.astype(np.float64))) + math.log(self.contamination)
        return sets, np.logaddexp(told, minority), len(family)

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        family, intervals = candidates(prior, self.delta, self.disjoint == "drop", clients, hostile)
        distances = normalised(rows.squared_distances()).cpu().double().numpy()
        law = self._law(len(clients), len(hostile))
        sets, _, found = self._weighed(distances, family, tight_sets(distances, law.most).honest, law)
        weights, honest = mean_weights(found, sets)
        trusted = float(found.p[: len(family)].sum()) >= self.mass
        used = self.base if trusted or isinstance(self.fallback, str) else self.fallback
        if used is None:
            shares = torch.from_numpy(weights).to(rows.device)
            answer = Aggregate(rows.combine(shares), weights=shares)
        else:
            answer = used.given(prior).aggregate(rows, _own(state, used, self.base), context, generator)
        if isinstance(used, Rule):
            # Each rule remembers what it saw; the other one's memory is kept.
            answer = dataclasses.replace(answer, state=_merged(state, used is self.base, answer.state))
        else:
            answer = dataclasses.replace(answer, state=state)
        answer = dataclasses.replace(answer, scores=torch.from_numpy(honest))
        if not trusted:
            return answer
        vector, box = project(rows, intervals, answer.vector)
        return dataclasses.replace(answer, vector=vector, weights=answer.weights if box.moved == 0 else None, box=box)


_BASE, _FALLBACK = "base.", "fallback."


def _own(state: State, used: Rule, base: Rule | None) -> State:
    """What ``used`` remembers."""
    prefix = _BASE if used is base else _FALLBACK
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _merged(state: State, is_base: bool, fresh: State) -> State:
    prefix = _BASE if is_base else _FALLBACK
    kept = {key: value for key, value in state.items() if not key.startswith(prefix)}
    return {**kept, **{prefix + key: value for key, value in fresh.items()}}
