"""Draws from Ising models that are too large to solve: heat bath and Swendsen-Wang, a chain for every draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from bezoar.priors.family import Floats, Masks


class Chains:
    """``times`` independent chains of spins [times, n], started at independent clients with the fields' own rates."""

    def __init__(
        self, fields: Floats, edges: tuple[tuple[int, int, float], ...], times: int, rng: np.random.Generator
    ) -> None:
        n = len(fields)
        self.rng = rng
        self.a = np.array([i for i, _, _ in edges], dtype=np.int64)
        self.b = np.array([j for _, j, _ in edges], dtype=np.int64)
        self.coupling = np.array([c for _, _, c in edges], dtype=np.float64)
        both = np.concatenate([self.a, self.b]), np.concatenate([self.b, self.a])
        self._matrix = csr_array(coo_array((np.tile(self.coupling, 2), both), shape=(n, n)))
        self._classes = colours(self._matrix)
        self._rows = [self._matrix[members] for members in self._classes]
        self.spins = np.where(rng.random((times, n)) < expit(2 * fields), 1.0, -1.0)

    @property
    def honest(self) -> Masks:
        return np.asarray(self.spins > 0)

    def heat_bath(self, fields: Floats) -> None:
        """Every client anew given its neighbours, clients without an edge between them at once."""
        for members, rows in zip(self._classes, self._rows, strict=True):
            pull = 2 * (fields[members] + np.asarray(rows @ self.spins.T).T)
            fresh = self.rng.random(pull.shape) < expit(pull)
            self.spins[:, members] = np.where(fresh, 1.0, -1.0)

    def swendsen_wang(self, fields: Floats) -> None:
        """Bonds between equal neighbours with probability 1 - exp(-2 J), then every cluster anew. Needs J >= 0."""
        times, n = self.spins.shape
        equal = self.spins[:, self.a] == self.spins[:, self.b]
        bond = equal & (self.rng.random(equal.shape) < -np.expm1(-2 * self.coupling))
        chain, edge = np.nonzero(bond)
        start, end = chain * n + self.a[edge], chain * n + self.b[edge]
        graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(times * n, times * n))
        count, cluster = connected_components(graph, directed=False)
        pull = np.bincount(cluster, np.tile(fields, times), count)
        fresh = self.rng.random(count) < expit(2 * pull)
        self.spins = np.where(fresh[cluster], 1.0, -1.0).reshape(times, n)


def colours(matrix: csr_array) -> list[NDArray[np.int64]]:
    """Classes of clients of whom no two are neighbours, greedily: those with most neighbours first."""
    degree = np.diff(matrix.indptr)
    colour = np.full(matrix.shape[0], -1, dtype=np.int64)
    for i in np.argsort(-degree, kind="stable"):
        taken = set(colour[matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]].tolist())
        colour[i] = next(c for c in range(len(taken) + 1) if c not in taken)
    return [np.flatnonzero(colour == c) for c in range(int(colour.max()) + 1)]
