"""The mean with the weights that clients have in the expected honest loss."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._candidates import Candidates, about, check_prior, present, prior_field
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State, Sums
from bezoar.errors import ConfigError
from bezoar.priors import Family
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class PriorMean(Rule):
    r"""The weighted mean that an honest federation should take under a prior over who is honest.

    .. math:: F(x) = \sum_i w_i x_i,\quad w_i = E\Bigl[\frac{1\{i \in S\}}{|S|}\Bigr]

    With everybody honest it descends the expected honest loss :math:`E_S L_S = \sum_i w_i L_i`; the weights are equal
    where all clients are alike. In a cohort they are those of its clients, given that unusable rows' clients are bad.

    Tolerates: no bad rows.
    Sums: weights are public, so every client scales its update itself; clients that drop out change them.
    Cost: one weighted mean; the weights once per cohort.
    Constant: n sum w_i^2 - 1 without bad rows (0 where all weights are equal), else none.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: the posterior mean as beta -> 0 (posterior-mean).

    >>> from bezoar.priors import Explicit
    >>> rule = PriorMean(Explicit(3, bad=((), (0, 1)), p=(0.75, 0.25)))
    >>> rule(torch.tensor([[1.0], [1.0], [5.0]]))
    tensor([3.])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    needs: ClassVar[Needs] = Needs.NONE
    sums: ClassVar[Sums | None] = Sums.ONE
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)

    def withstands(self, n: int) -> int:
        return 0

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.prior is None or (self.prior.n is not None and self.prior.n != n) or q:
            return ()
        prior = about(self.name, self.prior, n)
        shares = weights_of(prior, tuple(range(n)), ())
        # The spread of the weights about 1/n, by Cauchy-Schwarz; rows that lie as the weights do attain it.
        spread = n * float((shares - 1 / n).square().sum())
        return (Constant(spread if spread > 1e-20 else 0.0, "n sum w^2 - 1 if q = 0", "exact"),)

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        weights = weights_of(prior, clients, hostile).to(rows.device)
        return Aggregate(rows.combine(weights), weights=weights)


@lru_cache(maxsize=64)
def _weights(prior: Candidates, clients: tuple[int, ...], hostile: tuple[int, ...]) -> tuple[float, ...]:
    if isinstance(prior, Family):
        family = prior
        if hostile:
            try:
                family = prior.without(hostile)
            except ConfigError:
                # The prior is wrong about these clients.
                family = prior
        return tuple(family.select(clients).weights().tolist())
    if hostile:
        # Where that is impossible, the prior is wrong about these clients.
        with contextlib.suppress(ConfigError):
            prior = prior.given_bad(hostile)
    part = prior if clients == tuple(range(prior.n or 0)) else prior.among(clients)
    return tuple(part.weights().tolist())


def weights_of(prior: Candidates, clients: tuple[int, ...], hostile: tuple[int, ...]) -> Tensor:
    """What ``clients`` weigh in the expected loss of the honest ones among them, ``hostile`` being bad [m] float64."""
    return torch.tensor(_weights(prior, clients, hostile), dtype=torch.float64)
