"""Rules that are told how many clients may be bad, by a prior: as many as there are with a given probability."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from bezoar.aggregation._candidates import Candidates, about, check_prior, present, prior_field
from bezoar.aggregation._holding import Holding
from bezoar.aggregation.base import Aggregate, Constant, Context, Part, Rule, State
from bezoar.aggregation.trimmed_mean import TrimmedMean
from bezoar.errors import ConfigError
from bezoar.priors import Family
from bezoar.priors.base import check_probability, quantile_of
from bezoar.updates.base import Updates

P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class AtQuantile(Holding):
    r"""Another rule, with the f that a prior makes safe: the (1 - delta) quantile of the number of bad clients.

    .. math:: f = \min\{k: P(|B| \le k) \ge 1 - \delta\}

    Every part of ``base`` that has an f gets this one, whatever it says. It is what a threshold rule can make of a
    prior: it knows how many are bad, not who. If f is more than ``base`` takes of that many rows, that is an error, or
    with ``clip=True`` the most that it takes.

    Tolerates: f bad rows, which is enough with probability 1 - delta.
    Cost: that of the base.
    Constant: that of the base with this f.
    Peers: none of ByzFL, Blades and FLPoison has it; a chance constraint on f is what their users set by hand.
    Reference: the usual baseline; the trade-off of a declared f is in arXiv 2510.04432.

    >>> from bezoar.priors import Explicit
    >>> rule = AtQuantile(Explicit(5, bad=((), (4,)), p=(0.5, 0.5)), base=TrimmedMean(f=0))
    >>> rule(torch.tensor([[1.0], [2.0], [3.0], [2.0], [100.0]]))
    tensor([2.3333])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    base: Rule = field(default_factory=lambda: TrimmedMean(f=0))
    delta: float = 0.05
    clip: bool = False
    #: Where all clients take part it does not matter who is who, but in a cohort it does.
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        if not isinstance(self.base, Rule):
            raise ConfigError(f"{self.name}: base must be a rule, for example TrimmedMean(f=0), got {self.base!r}")
        check_probability(self.name, "delta", self.delta)
        if not isinstance(self.clip, bool):
            raise ConfigError(f"{self.name}: clip must be true or false, got {self.clip!r}")
        if self.base.tolerated is None:
            raise ConfigError(f"{self.name}: {self.base.name} has no f that could be declared; use it alone")

    @property
    def huge(self) -> float | None:
        return self.base.huge

    @property
    def tolerated(self) -> int | None:
        """The f of a round in which all clients take part, None where the prior leaves their number open."""
        if self.prior is None or self.prior.n is None:
            return None
        return self._declared(tuple(range(self.prior.n)), self.prior).tolerated

    def check(self, n: int) -> None:
        if self.prior is not None and (self.prior.n is None or self.prior.n == n):
            self._declared(tuple(range(n)), about(self.name, self.prior, n)).check(n)

    def within(self, kept: Tensor, n: int) -> AtQuantile:
        return self

    def without(self, excluded: int) -> AtQuantile:
        return self

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.prior is None or (self.prior.n is not None and self.prior.n != n):
            return ()
        base = self._declared(tuple(range(n)), about(self.name, self.prior, n))
        declared = base.tolerated
        return () if declared is None or q > declared else base.constants(n, declared, q)

    def withstands(self, n: int) -> int:
        return self.base.withstands(n)

    def _declared(self, clients: tuple[int, ...], prior: Candidates) -> Rule:
        """The base as it is for a round of ``clients``."""
        f = quantile(prior, clients, self.delta)
        base = declaring(self.base, f)
        n = len(clients)
        try:
            base.check(n)
        except ConfigError as error:
            if not self.clip:
                raise ConfigError(
                    f"{self.name}: with probability {1 - self.delta:g} at most {f} clients are bad, but {error}. "
                    f"clip=True takes the largest f there is; SIP may serve the prior's sets themselves"
                ) from None
        else:
            return base
        for fewer in range(f - 1, -1, -1):
            base = declaring(self.base, fewer)
            try:
                base.check(n)
            except ConfigError:
                continue
            return base
        raise ConfigError(f"{self.name}: {self.base.name} works with no f for n={n} rows")

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        base = self._declared(tuple(sorted(clients + hostile)), prior)
        if hostile:
            # More rows may be unusable than were expected: f is then 0.
            base = base.without(min(len(hostile), base.tolerated or 0))
            base.check(len(rows))
        return base._run(rows, state, context, generator)


def declaring(part: P, f: int) -> P:
    """``part`` with this f wherever it, or a part that it holds, has one."""
    filled: dict[str, object] = {}
    for spec in dataclasses.fields(part):
        value = getattr(part, spec.name)
        if spec.name == "f":
            filled["f"] = f
        elif isinstance(value, Part):
            filled[spec.name] = declaring(value, f)
        elif isinstance(value, tuple) and any(isinstance(inner, Part) for inner in value):
            filled[spec.name] = tuple(declaring(inner, f) for inner in value)
    return dataclasses.replace(part, **filled)


@lru_cache(maxsize=256)
def quantile(prior: Candidates, clients: tuple[int, ...], delta: float) -> int:
    """The least f that as many of ``clients`` are bad, or fewer, with probability 1 - delta."""
    if isinstance(prior, Family):
        return quantile_of(prior.select(clients).bad_count(), delta)
    return (prior if clients == tuple(range(prior.n or 0)) else prior.among(clients)).f_quantile(delta)
