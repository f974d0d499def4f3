"""The posterior over honest sets where they are too many to be listed: many Markov chains over who is honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.aggregation._posterior import TINY, Model, normalised_exp, scatter
from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior
from bezoar.priors.family import Floats, Masks

#: Chains that run side by side.
CHAINS = 20
#: Sums are computed anew where no more than this share of the largest one since the last time is left.
LOST = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """Honest sets drawn from the posterior, bool [draws, m], the scale s^2 that was fitted, and where chains ended."""

    honest: Masks
    scale: float
    last: Masks


def tight_halves(distances: Floats) -> tuple[Masks, float]:
    """Each row and its nearest ones, more than half of all in all [m, m], the tightest first, and its R_S/(|S|-1).

    The scale is the least positive one, 0 if there is none.
    """
    m = len(distances)
    size = m // 2 + 1
    near = np.argsort(distances, axis=1, kind="stable")[:, :size]
    sets = np.zeros((m, m), dtype=np.bool_)
    np.put_along_axis(sets, near, True, axis=1)
    r = scatter(distances, sets)
    positive = r[r > 0]
    scale = float(positive.min()) / (size - 1) if len(positive) and size > 1 else 0.0
    return sets[np.argsort(r, kind="stable")], scale


def gibbs(
    distances: Floats,
    prior: HonestPrior,
    model: Model,
    sweeps: int,
    rng: np.random.Generator,
    start: Masks | None = None,
    clients: Sequence[int] | None = None,
) -> Drawn:
    r"""Draw honest sets of the m rows from their posterior under ``prior``, which is about the n clients of the chains.

    The rows are those of ``clients`` [m], all n if left out; nothing was received from the others.

    A sweep visits all clients in random order: each becomes honest or bad with its conditional probability, which takes
    O(n) a chain, as R_S changes by a rank-one term. Besides, each sweep proposes to every chain a fresh draw from the
    prior (a Metropolis step), which reaches sets that differ by more than one client, such as whole groups. There are
    :data:`CHAINS` chains and ``sweeps`` sweeps over all of them, after one from as many draws from the prior and as
    many tight sets, of which the likelier go on: flips alone may not find the way from where everybody is honest. A
    third, or half if it takes more, is thrown away, and in the first of these sweeps s^2 is fitted as often as the
    model says. ``start`` are the sets that chains were in before.
    """
    n = len(distances) if clients is None else int(prior.n or 0)
    here = np.arange(n) if clients is None else np.asarray(clients)
    rounds = max(2, -(-sweeps // CHAINS))
    burn = max(1, rounds // 3, min(model.steps, rounds // 2))
    halves, scale = tight_halves(distances)
    known = np.zeros((n, n))
    known[np.ix_(here, here)] = distances
    present = np.isin(np.arange(n), here)
    start = prior._draw_some(CHAINS, rng) if start is None else start
    tight = start[np.arange(min(len(halves), CHAINS)) % len(start)]
    tight[:, here] = halves[: len(tight)]
    chain = _Chains(known, present, prior, model, np.concatenate([start, tight[prior._log_weight(tight) > -np.inf]]))
    for i in rng.permutation(n):
        chain.flip(int(i), scale, rng)
    chain.choose(CHAINS, scale, rng)
    kept = []
    for sweep in range(rounds):
        if scale > TINY:
            chain.propose(prior._draw_some(len(chain.honest), rng), scale, rng)
        for i in rng.permutation(n):
            chain.flip(int(i), scale, rng)
        if sweep >= burn:
            kept.append(chain.honest[:, here])
        elif sweep < model.steps:
            r, sizes = chain.scatter(), chain.sizes()
            degrees = float((sizes - 1).sum())
            fitted = float(r.sum()) / degrees if degrees > 0 else scale
            scale = fitted if fitted > TINY else scale
    honest = np.concatenate(kept)
    honest = honest[honest.any(1)]
    if not len(honest):
        raise ConfigError("no honest set that the prior allows holds a client of this round whose row can be used")
    return Drawn(honest, scale, chain.honest.copy())


class _Chains:
    """Honest sets [c, n], and for each of them the sums of distances within it and from each row to it.

    ``present`` [n] are the clients that have a row; distances of others are zero.
    """

    def __init__(
        self, distances: Floats, present: NDArray[np.bool_], prior: HonestPrior, model: Model, honest: Masks
    ) -> None:
        self.distances, self.present, self.prior, self.model = distances, present, prior, model
        self._hold(honest)

    def _hold(self, honest: Masks) -> None:
        self.honest, self.towards = honest.copy(), np.empty(honest.shape)
        self.within, self.largest = np.empty(len(honest)), np.empty(len(honest))
        self._measure(np.ones(len(honest), dtype=np.bool_))

    def _measure(self, chains: NDArray[np.bool_]) -> None:
        """Compute the sums of some chains [c] from their sets."""
        members = self.honest[chains].astype(np.float64)
        self.towards[chains] = members @ self.distances
        self.within[chains] = np.einsum("ci,ci->c", self.towards[chains], members) / 2
        self.largest[chains] = self.within[chains]

    def sizes(self) -> NDArray[np.int64]:
        """How many rows each set holds [c]."""
        return np.asarray((self.honest & self.present).sum(1))

    def scatter(self) -> Floats:
        return np.asarray(self.within / np.maximum(self.sizes(), 1))

    def _cost(self, within: Floats, sizes: NDArray[np.int64], scale: float) -> Floats:
        """Minus the log-likelihood; infinite for empty sets."""
        left = self.present.sum() - sizes
        r = within / np.maximum(sizes, 1) / scale if scale > TINY else np.zeros(len(within))
        cost = 0.5 * self.model.beta * (r + self.model.exclusion * left)
        return np.asarray(np.where(sizes > 0, cost, np.inf))

    def choose(self, count: int, scale: float, rng: np.random.Generator) -> None:
        """Go on with ``count`` of the chains, drawn with their sets' probabilities."""
        logs = self.prior._log_weight(self.honest) - self._cost(self.within, self.sizes(), scale)
        p = normalised_exp(logs) if np.isfinite(logs).any() else np.full(len(logs), 1 / len(logs))
        self._hold(self.honest[rng.choice(len(p), count, p=p)])

    def flip(self, i: int, scale: float, rng: np.random.Generator) -> None:
        """Draw whether client i is honest, given the others."""
        inside = self.honest[:, i]
        row = int(self.present[i])
        sizes = self.sizes() - inside * row
        without = self.within - inside * self.towards[:, i]
        with_it = np.where(inside, self.within, without + self.towards[:, i])
        sets = np.concatenate([self.honest, self.honest])
        sets[: len(inside), i] = True
        sets[len(inside) :, i] = False
        masses = self.prior._log_weight(sets)
        yes, no = masses[: len(inside)], masses[len(inside) :]
        with np.errstate(invalid="ignore"):
            odds = (yes - self._cost(with_it, sizes + row, scale)) - (no - self._cost(without, sizes, scale))
        # Where both are impossible the chain stays; that can not happen within the prior's support.
        odds = np.where(np.isnan(odds), np.where(inside, np.inf, -np.inf), odds)
        now = rng.random(len(odds)) < 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
        change = now.astype(np.float64) - inside
        self.within = np.where(now, with_it, without)
        self.towards += change[:, None] * self.distances[i]
        self.honest[:, i] = now
        self.largest = np.maximum(self.largest, self.within)
        # A row far from the others has left: what the sums hold now is rounding of what they held.
        lost = (self.within <= LOST * self.largest) & (self.largest > 0)
        if lost.any():
            self._measure(lost)

    def propose(self, fresh: Masks, scale: float, rng: np.random.Generator) -> None:
        """A Metropolis step to draws from the prior: what decides is the likelihood alone."""
        before = self._cost(self.within, self.sizes(), scale)
        members = fresh.astype(np.float64)
        within = np.einsum("ci,ci->c", members @ self.distances, members) / 2
        after = self._cost(within, np.asarray((fresh & self.present).sum(1)), scale)
        bar = np.log(rng.random(len(before)))
        taken = np.isfinite(after) & ~(bar >= before - np.where(np.isfinite(after), after, 0.0))
        if taken.any():
            self.honest[taken] = fresh[taken]
            self._measure(taken)
