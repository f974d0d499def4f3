"""The trimmed mean whose client weights and trimmed share come from a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation._candidates import Candidates, about, check_prior, needed, present, prior_field
from bezoar.aggregation.base import Aggregate, Context, Rule, State, check_count, reduce_columns
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.kernels.columns import column_weighted_trimmed_mean
from bezoar.priors import Explicit, Family
from bezoar.priors.cvar import cvar_weights, quantile
from bezoar.priors.family import Floats, merged
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class PriorTrimmedMean(Rule):
    r"""The trimmed mean with client weights that a prior makes safe, and the share that it says to trim.

    .. math:: \min_{w \in \Delta, t} t + \frac1\delta E(w(B) - t)_+ + \eta \|w - 1/n\|^2,\quad
        \varphi = \min\{v: P(w(B) > v) \le \delta\}

    For priors with too many sets for SIP. The weights w are those of least conditional value at risk of what the bad
    clients B hold together: clients of large groups that fall together get less. Then every coordinate loses the weight
    phi at each end, cutting through a row where need be. ``eta`` keeps weights near equal ones; with 0 all may go to
    one client that is surely honest. B are the prior's cases where it is a list of them, else ``draws`` draws, seeded
    with ``seed``; phi then is taken from as many fresh draws, which the weights were not fitted to. If phi is a half or
    more there is no answer, but an error. An unusable row uses up the weight that it held of phi. In a cohort weights
    and phi are those of its clients; they are remembered.

    Tolerates: bad clients that hold at most phi of the weight, which all do with probability about 1 - delta.
    Cost: a linear program per cohort, then a sort of every column, O(d n log n).
    Constant: phi/(w(S) - phi) relative to the w-weighted honest mean and variance (proved); for the plain ones see
        bezoar.certify.family_constants.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: the combination is new to our knowledge. Yin, Chen, Kannan, Bartlett, ICML 2018 (trimmed mean);
        Rockafellar, Uryasev: Optimization of Conditional Value-at-Risk, Journal of Risk 2000.

    >>> from bezoar.priors import Explicit
    >>> rule = PriorTrimmedMean(Explicit(5, bad=((), (3, 4)), p=(0.5, 0.5)), eta=0.0)
    >>> rule(torch.tensor([[1.0], [1.0], [1.0], [70.0], [90.0]]))
    tensor([1.])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    delta: float = 0.05
    eta: float = 1.0
    draws: int = 1000
    seed: int = 0
    needs: ClassVar[Needs] = Needs.BLOCKS
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        if isinstance(self.delta, bool) or not 0 < self.delta < 1:
            raise ConfigError(f"PriorTrimmedMean: delta must be a number between 0 and 1, got {self.delta!r}")
        if isinstance(self.eta, bool) or not (self.eta >= 0 and math.isfinite(self.eta)):
            raise ConfigError(f"PriorTrimmedMean: eta must be a number >= 0, got {self.eta!r}")
        check_count(self.name, "draws", self.draws, 1)

    def check(self, n: int) -> None:
        if self.prior is not None and self.prior.n in (None, n):
            self._check_share(self.weighting(n)[1])

    def _check_share(self, phi: float) -> None:
        if phi >= 0.5:
            raise ConfigError(
                f"PriorTrimmedMean: bad clients hold {phi:.3g} of the weight with probability > {self.delta:g}, and "
                "half of it or more can not be trimmed: raise delta, lower eta (weights further from equal ones), or "
                "name a client that is never bad"
            )

    def weighting(self, n: int) -> tuple[Floats, float]:
        """Weights of n clients that all take part [n], and the share phi trimmed at each end."""
        prior = about(self.name, needed(self.name, self.prior), n)
        return _weighting(prior, tuple(range(n)), self.delta, self.eta, self.draws, self.seed)

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        whole = tuple(sorted(clients + hostile))
        weights, phi = _weighting(prior, whole, self.delta, self.eta, self.draws, self.seed)
        self._check_share(phi)
        held = dict(zip(whole, weights.tolist(), strict=True))
        left = np.array([held[client] for client in clients])
        gone = sum(held[client] for client in hostile)
        if gone > phi + 1e-9 or left.sum() <= 0:
            raise HostileRowsError(
                f"PriorTrimmedMean: the unusable rows of clients {list(context.hostile[:20])} hold {gone:.3g} of the "
                f"weight, more than phi = {phi:.3g}",
                context.hostile,
            )
        shares = torch.from_numpy(left / left.sum()).to(rows.device)
        trim = max(0.0, (phi - gone) / float(left.sum()))

        def reduced(values: Tensor) -> Tensor:
            return column_weighted_trimmed_mean(values, shares, trim)

        return Aggregate(reduce_columns(rows, reduced))


@lru_cache(maxsize=64)
def _weighting(
    prior: Candidates, clients: tuple[int, ...], delta: float, eta: float, draws: int, seed: int
) -> tuple[Floats, float]:
    """Weights [m] of the clients (columns of the prior), and phi."""

    def cases(seed: int) -> Family:
        if isinstance(prior, Family):
            return prior.select(clients)
        if isinstance(prior, Explicit):
            return prior.support().select(clients)
        drawn = prior.sample(draws, seed)[:, list(clients)]
        return merged(drawn, np.full(draws, -math.log(draws)))

    weights = cvar_weights(cases(2 * seed), delta, eta)
    fresh = cases(2 * seed + 1)
    p = np.exp(fresh.log_prob)
    return weights, quantile(~fresh.honest @ weights, p / p.sum(), delta)
