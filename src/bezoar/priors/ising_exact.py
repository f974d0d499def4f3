"""Connected pieces of an Ising model, solved exactly: by enumeration up to 22 clients, by sum-product on trees.

Spins s_i = +1 (honest) and -1; a state's weight is exp(sum h_i s_i + sum J_ij s_i s_j). Throughout, Z(t) is the sum of
weights times t^(number of honest clients), i.e. Z with all fields shifted by log(t)/2, times t^(m/2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bezoar.priors.family import Floats, Masks

#: States of a piece that are enumerated: 2^22.
ENUMERABLE = 22


@dataclass(frozen=True, eq=False)
class Piece:
    """Clients ``columns`` [m] with ``fields`` [m] and couplings ``edges`` between places 0..m-1, a connected graph."""

    columns: NDArray[np.int64]
    fields: Floats
    edges: tuple[tuple[int, int, float], ...]

    @property
    def m(self) -> int:
        return len(self.columns)

    def tilted(self, t: Floats) -> tuple[Floats, Floats]:
        """Log Z(t) [k] and the probability that each client is honest under the law tilted by t^|S|: [k, m]."""
        raise NotImplementedError

    def counts(self) -> Floats:
        """P(j clients are honest), j = 0..m."""
        raise NotImplementedError

    def draw(self, times: int, rng: np.random.Generator) -> Masks:
        """Exact draws [times, m]."""
        raise NotImplementedError

    @cached_property
    def log_z(self) -> float:
        return float(self.tilted(np.ones(1))[0][0])

    def honest_rates(self) -> Floats:
        return np.asarray(self.tilted(np.ones(1))[1][0])


class Enumerated(Piece):
    """All 2^m states; bit i of a state's number says whether client i is honest."""

    @cached_property
    def energies(self) -> Floats:
        """Log weights of all states [2^m], built client by client: O(2^m)."""
        found = np.zeros(1)
        for i in range(self.m):
            pull = np.full(1, self.fields[i])
            coupled = {a + b - i: c for a, b, c in self.edges if i in (a, b)}
            for j in range(i):
                c = coupled.get(j, 0.0)
                pull = np.concatenate([pull - c, pull + c])
            found = np.concatenate([found - pull, found + pull])
        return found

    @cached_property
    def chances(self) -> Floats:
        """Probabilities of all states [2^m]."""
        p = np.exp(self.energies - self.energies.max())
        return np.asarray(p / p.sum())

    def honest_rates(self) -> Floats:
        return np.array([self.chances.reshape(-1, 2, 2**i)[:, 1].sum() for i in range(self.m)])

    @cached_property
    def log_z(self) -> float:
        top = self.energies.max()
        return float(top + np.log(np.exp(self.energies - top).sum()))

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        sizes = np.zeros(1, dtype=np.int64)
        for _ in range(self.m):
            sizes = np.concatenate([sizes, sizes + 1])
        return sizes

    @cached_property
    def _by_size(self) -> tuple[Floats, Floats]:
        """P(|S| = j) [m + 1] and P(|S| = j, i in S) [m, m + 1]."""
        whole = np.bincount(self._sizes, self.chances, self.m + 1)
        honest = []
        for i in range(self.m):
            with_i = (slice(None), 1)
            sizes, p = self._sizes.reshape(-1, 2, 2**i)[with_i], self.chances.reshape(-1, 2, 2**i)[with_i]
            honest.append(np.bincount(sizes.ravel(), p.ravel(), self.m + 1))
        return np.asarray(whole, dtype=np.float64), np.array(honest, dtype=np.float64)

    def counts(self) -> Floats:
        return self._by_size[0]

    def tilted(self, t: Floats) -> tuple[Floats, Floats]:
        whole, honest = self._by_size
        with np.errstate(divide="ignore"):
            powers = np.log(whole) + np.multiply.outer(np.log(t), np.arange(self.m + 1))
            log_sum = np.logaddexp.reduce(powers, axis=1)
            share = np.exp(powers - log_sum[:, None]) @ np.where(whole > 0, honest / np.where(whole > 0, whole, 1), 0).T
        return log_sum + self.log_z, share

    def draw(self, times: int, rng: np.random.Generator) -> Masks:
        codes = np.searchsorted(np.cumsum(self.chances), rng.random(times), side="right").clip(0, 2**self.m - 1)
        return self.states(codes)

    def states(self, codes: NDArray[np.int64]) -> Masks:
        return np.asarray(codes[:, None] >> np.arange(self.m) & 1 == 1)


class Tree(Piece):
    """A tree: messages from the leaves to the root and back, O(m) for each t."""

    @cached_property
    def _order(self) -> list[tuple[int, int, float]]:
        """(client, its parent or -1, coupling), parents first."""
        near: list[list[tuple[int, float]]] = [[] for _ in range(self.m)]
        for a, b, c in self.edges:
            near[a].append((b, c))
            near[b].append((a, c))
        order = [(0, -1, 0.0)]
        for i, parent, _ in order:
            order.extend((j, i, c) for j, c in near[i] if j != parent)
        return order

    def _up(self, t: Floats) -> tuple[Floats, Floats]:
        """Log weight of every client's branch, and what it tells its parent, by the state (-, +): [m, 2, k] each."""
        branch = np.stack([-self.fields[:, None] + 0 * t, self.fields[:, None] + np.log(t)], 1)
        told = np.zeros_like(branch)
        for i, parent, c in reversed(self._order):
            bad, honest = branch[i]
            told[i, 0], told[i, 1] = np.logaddexp(bad + c, honest - c), np.logaddexp(bad - c, honest + c)
            if parent >= 0:
                branch[parent] += told[i]
        return branch, told

    def tilted(self, t: Floats) -> tuple[Floats, Floats]:
        branch, told = self._up(t)
        whole = branch.copy()
        for i, parent, c in self._order[1:]:
            bad, honest = whole[parent] - told[i]
            whole[i, 0] += np.logaddexp(bad + c, honest - c)
            whole[i, 1] += np.logaddexp(bad - c, honest + c)
        return np.logaddexp(branch[0, 0], branch[0, 1]), _expit(whole[:, 1] - whole[:, 0]).T

    def counts(self) -> Floats:
        # Polynomials in the number of honest clients, by the state of the branch's root, scaled as they grow.
        sums = [[np.array([w]), np.array([0.0, v])] for w, v in np.exp(_pairs(self.fields))]
        for i, parent, c in reversed(self._order):
            if parent < 0:
                continue
            bad, honest = sums[i][0], sums[i][1]
            bad = np.concatenate([bad, np.zeros(len(honest) - len(bad))])
            alike, unlike = np.exp(c - abs(c)), np.exp(-c - abs(c))
            for state, told in enumerate((alike * bad + unlike * honest, unlike * bad + alike * honest)):
                sums[parent][state] = np.convolve(sums[parent][state], told)
            top = max(sums[parent][0].max(), sums[parent][1].max())
            sums[parent] = [part / top for part in sums[parent]]
            sums[i] = []
        bad, honest = sums[0]
        total = honest + np.concatenate([bad, np.zeros(len(honest) - len(bad))])
        return np.asarray(total / total.sum())

    def draw(self, times: int, rng: np.random.Generator) -> Masks:
        branch = self._up(np.ones(1))[0][:, :, 0]
        odds = branch[:, 1] - branch[:, 0]
        honest = np.empty((times, self.m), dtype=np.bool_)
        for i, parent, c in self._order:
            pull = odds[i] if parent < 0 else odds[i] + np.where(honest[:, parent], 2 * c, -2 * c)
            honest[:, i] = rng.random(times) < _expit(pull)
        return honest


def _pairs(fields: Floats) -> Floats:
    """Log weights of (bad, honest) up to a factor that makes the larger one 1: [m, 2]."""
    both = np.stack([-fields, fields], 1)
    return np.asarray(both - both.max(1, keepdims=True))


def _expit(x: Floats) -> Floats:
    """1/(1 + exp(-x)) to full relative precision."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))
