"""Posterior-mean aggregation: the honest mean, averaged over who is honest once the rows have been seen."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from bezoar import seeding
from bezoar.aggregation._candidates import Candidates, check_prior, present, prior_field, support
from bezoar.aggregation._gibbs import gibbs
from bezoar.aggregation._gram import normalised
from bezoar.aggregation._posterior import Model, Posterior, counted, posterior
from bezoar.aggregation.base import Aggregate, Context, Rule, State, check_count
from bezoar.errors import ConfigError
from bezoar.priors import Family, HonestPrior
from bezoar.priors.base import check_probability
from bezoar.priors.family import Floats, Masks
from bezoar.updates.base import Needs, Updates

#: Sets that are listed; where there are more, they are drawn.
MOST = 100_000


@dataclass(frozen=True)
class PosteriorMean(Rule):
    r"""The mean of the honest updates, expected over who is honest given a prior and what was received (PMA).

    .. math:: F(x) = \sum_S \pi(S \mid x)\, \bar x_S,\quad
        \pi(S \mid x) \propto \mu(S)\, e^{-\frac\beta2 (R_S / s^2 + c |B_S|)},\quad
        R_S = \sum_{i \in S} \|x_i - \bar x_S\|^2

    The model: honest updates are Gaussian about their mean with variance s^2 in each of beta effective coordinates, a
    bad one may be anything and costs ``exclusion`` (c) in units of s^2. s^2 is fitted in ``em_steps`` steps, from the
    least R_S/(|S|-1) of the sets that hold more than half of the rows or are likely by themselves. beta -> 0 gives the
    prior mean, beta -> infinity the likeliest set alone. The sets are those of ``prior`` (an experiment's own if left
    out) up to the probability ``delta`` and ``most`` in number; where there are more, ``sweeps`` Gibbs sweeps draw from
    all of them, seeded by the round, chains going on where they were. ``memory`` (gamma) averages log-likelihoods over
    rounds, l_t = gamma l_{t-1} + (1 - gamma) l(x_t): sharper, but lasting differences between honest clients add up,
    too, so 1 is refused. ``sybils`` is the cost of two rows that are closer than honest ones would be (equal ones in
    full, none from a tenth of the usual distance). The scores are the probabilities that clients are honest.

    Tolerates: nothing for certain. Bad rows that vary less than honest ones do are believed (docs/pma.md); put it into
        SIP, or take guarded-sip.
    Cost: one Gram matrix, O(n^2 d), and O(K n^2) for K sets.
    Constant: none; as beta -> infinity on sets of one size (sqrt rho_S + sqrt rho_T)^2 for the least varying set T
        (proved).
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: new to our knowledge for priors with correlations; with independent clients the mean-field form is RLVI
        (bayes-mean), and a marginal likelihood over who is honest is in arXiv 2505.02490.

    >>> from bezoar.priors import Explicit
    >>> rule = PosteriorMean(Explicit(5, bad=((), (4,)), p=(0.5, 0.5)))
    >>> rule(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    prior: Candidates | None = prior_field()  # noqa: RUF009
    beta: float = 8.0
    exclusion: float = 2.0
    em_steps: int = 5
    delta: float = 0.0
    memory: float = 0.0
    sybils: float = 0.0
    most: int = MOST
    sweeps: int = 200
    needs: ClassVar[Needs] = Needs.GRAM
    spare: ClassVar[bool] = True
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prior(self.name, self.prior)
        check_model(self.name, self.beta, self.exclusion, self.em_steps)
        check_probability(self.name, "delta", self.delta)
        check_count(self.name, "most", self.most, least=1)
        check_count(self.name, "sweeps", self.sweeps, least=1)
        if not (math.isfinite(self.sybils) and self.sybils >= 0):
            raise ConfigError(f"{self.name}: sybils must be finite and not negative, got {self.sybils}")
        if not 0 <= self.memory < 1:
            raise ConfigError(
                f"{self.name}: memory must be at least 0 and below 1, got {self.memory}: with 1 nothing is learnt, and "
                f"near it lasting differences between honest clients count as much as attacks"
            )

    @property
    def model(self) -> Model:
        """The likelihood's parameters."""
        return Model(self.beta, self.exclusion, self.em_steps, self.sybils)

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        prior, clients, hostile = present(self.name, self.prior, rows, context)
        distances = normalised(rows.squared_distances()).cpu().double().numpy()
        family = _listed(prior, self.delta, self.most)
        if family is None:
            weights, honest, after = self._drawn(distances, prior, clients, hostile, state, context, generator)
        else:
            weights, honest, after = self._enumerated(distances, family, clients, hostile, state)
        answer = torch.from_numpy(weights).to(rows.device)
        vector = rows.combine(answer)
        return Aggregate(vector, state=after, weights=answer, scores=torch.from_numpy(honest))

    def _enumerated(
        self,
        distances: Floats,
        family: Family,
        clients: tuple[int, ...],
        hostile: tuple[int, ...],
        state: State,
    ) -> tuple[Floats, Floats, State]:
        """Weights and probabilities of being honest of the rows [m], and the memory: one number for every set."""
        sets, possible = within(family, clients, hostile)
        known = None
        past = state.get("log_likelihood")
        if past is not None and past.shape != (len(family),) and self.prior is not None and self.prior.n is None:
            # The prior is about as many clients as there are, and another number came: who is who is not known.
            past = None
        if self.memory and past is not None:
            if past.shape != (len(family),):
                raise ConfigError(
                    f"{self.name}: its memory is of {len(past)} sets, but the prior has {len(family)}: it belongs to "
                    f"another prior"
                )
            known = past.numpy()[possible], self.memory
        sets = sets if possible.all() else sets[possible]
        found = posterior(distances, sets, family.log_prob[possible], self.model, known)
        after: State = {}
        if self.memory:
            # Sets that are out this round keep what was known of them.
            memory = np.zeros(len(family)) if past is None else past.numpy().copy()
            memory[possible] = found.log_likelihood - found.log_likelihood.max()
            after = {"log_likelihood": torch.from_numpy(memory)}
        weights, honest = mean_weights(found, sets)
        return weights, honest, after

    def _drawn(
        self,
        distances: Floats,
        prior: Candidates,
        clients: tuple[int, ...],
        hostile: tuple[int, ...],
        state: State,
        context: Context,
        generator: torch.Generator | None,
    ) -> tuple[Floats, Floats, State]:
        if self.memory or self.sybils:
            what = "memory" if self.memory else "sybils"
            raise ConfigError(
                f"{self.name}: {what} needs sets that can be listed, at most {self.most}: raise most, or delta"
            )
        assert isinstance(prior, HonestPrior)
        local, columns = _local(prior, clients, hostile)
        seed = seeding.derive(0, "posterior mean", context.round)
        if generator is not None:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        last = state.get("chains")
        start = None
        if last is not None and last.shape[1] == local.n:
            start = last.numpy().astype(np.bool_)
            start = start if np.isfinite(local._log_weight(start)).all() else None
        drawn = gibbs(distances, local, self.model, self.sweeps, np.random.default_rng(seed), start, columns)
        equal = Posterior(np.full(len(drawn.honest), 1 / len(drawn.honest)), drawn.scale, np.zeros(0))
        weights, honest = mean_weights(equal, drawn.honest)
        return weights, honest, {"chains": torch.from_numpy(drawn.last)}


def check_model(owner: str, beta: float, exclusion: float, steps: int) -> None:
    """Raise unless these are parameters of a likelihood."""
    for name, value in (("beta", beta), ("exclusion", exclusion)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{owner}: {name} must be finite and not negative, got {value!r}")
    check_count(owner, "em_steps", steps)


def mean_weights(found: Posterior, sets: Masks) -> tuple[Floats, Floats]:
    """What rows weigh in the posterior mean, and how likely they are to be honest: both [m]."""
    members = sets.astype(np.float64)
    weights = (found.p / counted(members)) @ members
    honest = found.p @ members
    return weights, honest


def within(family: Family, clients: tuple[int, ...], hostile: tuple[int, ...]) -> tuple[Masks, Masks]:
    """The sets' parts within ``clients`` [K, m], and which sets may be the honest one [K].

    Those with a hostile client may not, unless all have one; those without a client here say nothing.
    """
    if clients == tuple(range(family.n)):
        return family.honest, np.ones(len(family), dtype=np.bool_)
    sets = np.ascontiguousarray(family.honest[:, list(clients)])
    possible: Masks = np.asarray(sets.any(1))
    if hostile:
        clean: Masks = possible & ~family.honest[:, list(hostile)].any(1)
        possible = clean if clean.any() else possible
    if not possible.any():
        raise ConfigError("no candidate set holds a client of this round whose row can be used")
    return sets, possible


@lru_cache(maxsize=8)
def _listed(prior: Candidates, delta: float, most: int) -> Family | None:
    """The support, None if it is more than ``most`` sets or too many to list."""
    try:
        family = support(prior, delta)
    except ConfigError:
        return None
    return family if len(family) <= most or isinstance(prior, Family) else None


@lru_cache(maxsize=64)
def _local(
    prior: HonestPrior, clients: tuple[int, ...], hostile: tuple[int, ...]
) -> tuple[HonestPrior, tuple[int, ...]]:
    """The prior about the rows that are there, the hostile clients being bad, and the rows' columns in it.

    It is about all clients where the law of a part has no closed form: chains then draw the others as well.
    """
    everyone = tuple(range(prior.n or len(clients) + len(hostile)))
    if hostile:
        # Where that is impossible, the prior is wrong about these clients.
        with contextlib.suppress(ConfigError):
            prior = prior.given_bad(hostile)
    if clients != everyone:
        try:
            return prior.among(clients), tuple(range(len(clients)))
        except ConfigError:
            return prior, clients
    return prior, everyone
