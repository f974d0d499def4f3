"""The posterior over honest sets where they are too many to be listed: many Markov chains over who is honest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.aggregation._posterior import TINY, Model
from bezoar.priors.base import HonestPrior
from bezoar.priors.family import Floats, Masks

#: Chains that run side by side.
CHAINS = 20
#: Sums are computed anew where no more than this share of the largest one since the last time is left.
LOST = 1e-6


@dataclass(frozen=True, eq=False)
class Drawn:
    """Honest sets drawn from the posterior, bool [draws, m], and the scale s^2 that was fitted."""

    honest: Masks
    scale: float
    last: Masks


def half_scale(distances: Floats) -> float:
    """R_S/(|S|-1) of the tightest set that consists of a row and its nearest ones, more than half of all in all."""
    m = len(distances)
    size = m // 2 + 1
    if size < 2:
        return 0.0
    found = []
    for row in distances:
        near = np.argsort(row, kind="stable")[:size]
        found.append(distances[np.ix_(near, near)].sum() / (2 * size) / (size - 1))
    positive = [value for value in found if value > 0]
    return float(min(positive)) if positive else 0.0


def gibbs(
    distances: Floats,
    prior: HonestPrior,
    model: Model,
    sweeps: int,
    rng: np.random.Generator,
    start: Masks | None = None,
) -> Drawn:
    r"""Draw honest sets of the m rows from their posterior under ``prior``, which is about m clients.

    A sweep visits all rows in random order: each becomes honest or bad with its conditional probability, which takes
    O(m) a chain, as R_S changes by a rank-one term. Besides, each sweep proposes to every chain a fresh draw from the
    prior (a Metropolis step), which reaches sets that differ by more than one client, such as whole groups. There are
    :data:`CHAINS` chains and ``sweeps`` sweeps over all of them: a third, or half if it takes more, is thrown away, and
    in the first of these sweeps s^2 is fitted as often as the model says. ``start`` are the sets that chains were in
    before.
    """
    m = len(distances)
    rounds = max(2, -(-sweeps // CHAINS))
    burn = max(1, rounds // 3, min(model.steps, rounds // 2))
    scale = half_scale(distances)
    chain = _Chains(distances, prior, model, start if start is not None else prior._draw_some(CHAINS, rng))
    kept = []
    for sweep in range(rounds):
        if scale > TINY:
            chain.propose(prior._draw_some(len(chain.honest), rng), scale, rng)
        for i in rng.permutation(m):
            chain.flip(int(i), scale, rng)
        if sweep >= burn:
            kept.append(chain.honest.copy())
        elif sweep < model.steps:
            r, sizes = chain.scatter(), chain.honest.sum(1)
            degrees = float((sizes - 1).sum())
            fitted = float(r.sum()) / degrees if degrees > 0 else scale
            scale = fitted if fitted > TINY else scale
    return Drawn(np.concatenate(kept), scale, chain.honest.copy())


class _Chains:
    """Honest sets [c, m], and for each of them the sums of distances within it and from each row to it."""

    def __init__(self, distances: Floats, prior: HonestPrior, model: Model, honest: Masks) -> None:
        self.distances, self.prior, self.model = distances, prior, model
        self.honest = honest.copy()
        self.towards = np.empty(honest.shape)
        self.within, self.largest = np.empty(len(honest)), np.empty(len(honest))
        self._measure(np.ones(len(honest), dtype=np.bool_))

    def _measure(self, chains: NDArray[np.bool_]) -> None:
        """Compute the sums of some chains [c] from their sets."""
        members = self.honest[chains].astype(np.float64)
        self.towards[chains] = members @ self.distances
        self.within[chains] = np.einsum("ci,ci->c", self.towards[chains], members) / 2
        self.largest[chains] = self.within[chains]

    def scatter(self) -> Floats:
        return np.asarray(self.within / np.maximum(self.honest.sum(1), 1))

    def _cost(self, within: Floats, sizes: NDArray[np.int64], scale: float) -> Floats:
        """Minus the log-likelihood; infinite for empty sets."""
        left = self.distances.shape[0] - sizes
        r = within / np.maximum(sizes, 1) / scale if scale > TINY else np.zeros(len(within))
        cost = 0.5 * self.model.beta * (r + self.model.exclusion * left)
        return np.asarray(np.where(sizes > 0, cost, np.inf))

    def flip(self, i: int, scale: float, rng: np.random.Generator) -> None:
        """Draw whether client i is honest, given the others."""
        inside = self.honest[:, i]
        sizes = self.honest.sum(1) - inside
        without = self.within - inside * self.towards[:, i]
        with_it = np.where(inside, self.within, without + self.towards[:, i])
        sets = np.concatenate([self.honest, self.honest])
        sets[: len(inside), i] = True
        sets[len(inside) :, i] = False
        masses = self.prior._log_mass(sets)
        yes, no = masses[: len(inside)], masses[len(inside) :]
        with np.errstate(invalid="ignore"):
            odds = (yes - self._cost(with_it, sizes + 1, scale)) - (no - self._cost(without, sizes, scale))
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
        before = self._cost(self.within, self.honest.sum(1), scale)
        members = fresh.astype(np.float64)
        within = np.einsum("ci,ci->c", members @ self.distances, members) / 2
        after = self._cost(within, fresh.sum(1), scale)
        taken = np.log(rng.random(len(before))) < before - after
        if taken.any():
            self.honest[taken] = fresh[taken]
            self._measure(taken)
