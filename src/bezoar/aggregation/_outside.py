"""Honest sets outside of a prior: which of them explain the rows, of far more than could be listed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bezoar.priors.family import Floats, Masks

#: Sets of few bad clients are all visited as long as they are no more than this.
LISTED = 2000
#: Sets that are kept for every larger number of bad clients.
BEAM = 64


@dataclass(frozen=True, eq=False)
class Minority:
    r"""m clients, each bad with probability ``p0``, given that at most ``most`` are: :math:`\nu(S)`."""

    m: int
    p0: float
    most: int

    def log_prob(self, bad: np.ndarray) -> Floats:
        """Log probability of one set with ``bad`` [K] bad clients."""
        q = np.arange(self.most + 1)
        chance = np.array([math.log(math.comb(self.m, k)) for k in q]) + self._log(q)
        total = float(np.logaddexp.reduce(chance))
        return np.asarray(np.where(bad <= self.most, self._log(bad) - total, -np.inf))

    def _log(self, bad: np.ndarray) -> Floats:
        return np.asarray(bad * math.log(self.p0) + (self.m - bad) * math.log1p(-self.p0))


@dataclass(frozen=True, eq=False)
class Visited:
    """Sets bool [K, m], all of them up to ``listed`` bad clients."""

    honest: Masks
    listed: int


def tight_sets(distances: Floats, most: int) -> Visited:
    """Sets of at most ``most`` bad clients: all with few, and of more those of small scatter, found by beam search.

    From the :data:`BEAM` tightest sets of a size the next smaller ones are made by leaving one client out.
    """
    m = len(distances)
    most = min(most, m - 1)
    listed, honest = _few_bad(m, most)
    found = [honest]
    beam = honest[(~honest).sum(1) == listed]
    for _ in range(listed, most):
        beam = _smaller(distances, beam)
        found.append(beam)
    return Visited(np.concatenate(found), listed)


@lru_cache(maxsize=8)
def _few_bad(m: int, most: int) -> tuple[int, Masks]:
    """The largest number q <= most such that all sets of at most q bad clients are few, and these sets."""
    listed, total = 0, 1
    while listed < most and total + math.comb(m, listed + 1) <= LISTED:
        listed += 1
        total += math.comb(m, listed)
    honest = np.ones((total, m), dtype=np.bool_)
    row = 0
    for q in range(1, listed + 1):
        row += math.comb(m, q - 1)
        out = np.array(list(itertools.combinations(range(m), q)))
        honest[np.arange(row, row + len(out))[:, None], out] = False
    return listed, honest


def _smaller(distances: Floats, sets: Masks) -> Masks:
    """The tightest different sets that are one of the tightest of ``sets``, all of one size, without a client."""
    members = sets.astype(np.float64)
    towards = members @ distances
    inside = np.einsum("ki,ki->k", towards, members) / 2
    if len(sets) > BEAM:
        best = np.argpartition(inside, BEAM)[:BEAM]
        sets, towards, inside = sets[best], towards[best], inside[best]
    left = np.where(sets, inside[:, None] - towards, np.inf).ravel()
    # A set may come from as many parents as clients are out of it; a few times as many are enough to fill the beam.
    count = min(len(left), 6 * BEAM)
    order = np.argpartition(left, count - 1)[:count]
    order = order[np.isfinite(left[order])]
    order = order[np.argsort(left[order], kind="stable")]
    parents, gone = np.divmod(order, sets.shape[1])
    smaller = sets[parents]
    smaller[np.arange(len(order)), gone] = False
    _, first = np.unique(codes(smaller), return_index=True)
    return np.asarray(smaller[np.sort(first)[:BEAM]])


def codes(sets: Masks) -> NDArray[Any]:
    """One key for each of ``sets`` [K, m]: equal for equal sets."""
    if sets.shape[1] <= 62:
        return np.asarray(sets @ (1 << np.arange(sets.shape[1], dtype=np.int64)))
    packed = np.ascontiguousarray(np.packbits(sets, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()


def missed(distances: Floats, visited: Visited, law: Minority, cost: tuple[float, float, float]) -> float:
    r"""Log of at most how much nu(S) exp(-beta/2 (R_S/s^2 + c |B|)) the sets hold that were not visited.

    ``cost`` is (beta, c, s^2). A set of m - q rows has at least the scatter
    :math:`\frac{1}{2(m-q)} \sum` of the m - q least sums of a row's m - q - 1 least distances.
    """
    m = law.m
    beta, exclusion, scale = cost
    off = np.sort(distances + np.diag(np.full(m, np.inf)), axis=1)[:, : m - 1]
    sums = np.cumsum(off, axis=1)
    sizes = visited.honest.sum(1)
    logs = [-math.inf]
    for q in range(visited.listed + 1, min(law.most, m - 1) + 1):
        size = m - q
        left = math.comb(m, q) - int((sizes == size).sum())
        if left <= 0:
            continue
        least = float(np.sort(sums[:, size - 2])[:size].sum()) / (2 * size) if size > 1 else 0.0
        spread = least / scale if scale > 0 else 0.0
        chance = float(law.log_prob(np.array([q]))[0])
        logs.append(math.log(left) + chance - beta / 2 * (spread + exclusion * q))
    return float(np.logaddexp.reduce(logs))
