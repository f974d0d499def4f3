"""Honest sets in the order of their probability, where a prior consists of independent blocks of clients."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.family import Family, Floats, Masks

if TYPE_CHECKING:
    from bezoar.priors.base import HonestPrior

#: So many sets are made at once, and (times n) so many bytes.
_AT_ONCE, _BYTES = 2**22, 2**28
#: Up to so many sets that are needed, a search is faster than making all.
_FEW = 2**14
#: So many sets are searched for one by one.
_ONE_BY_ONE = 2**18


@dataclass(frozen=True, eq=False)
class Block:
    """Clients ``columns`` [m] with what may become of them: ``honest`` [o, m] bool, ``log_prob`` [o].

    Sorted: the likeliest option comes first, impossible ones are left out.
    """

    columns: NDArray[np.int64]
    honest: Masks
    log_prob: Floats

    @classmethod
    def sorted(cls, columns: NDArray[np.int64], honest: Masks, log_prob: Floats) -> Block:
        """A block of options in any order."""
        order = np.argsort(-log_prob, kind="stable")
        order = order[log_prob[order] > -np.inf]
        return cls(columns, honest[order], log_prob[order])


def likeliest_sets(prior: HonestPrior, blocks: list[Block], delta: float) -> Family:
    """The smallest family with at least 1 - delta of the prior's mass."""
    from bezoar.priors.base import likeliest, ordered

    n = sum(len(block.columns) for block in blocks)
    options = math.prod(len(block.log_prob) for block in blocks)
    needed = _needed(prior, delta) if delta and options > _FEW else 0.0
    few = delta and options > _FEW and needed <= _FEW
    if options <= _AT_ONCE and options * n <= _BYTES and not few:
        honest = _product(blocks, n)
        honest = honest[prior._possible(honest)]
        if not len(honest):
            raise ConfigError("no honest set is possible: there is nothing to be learnt under this prior")
        honest = honest[np.lexsort(np.packbits(honest, axis=1).T[::-1])]
        return likeliest(ordered(honest, np.asarray(prior.log_prob(honest))), delta)
    if delta == 0:
        raise ConfigError(f"{options:.3g} sets are possible, too many to enumerate them: ask for support(delta > 0)")
    if needed > 2 * _ONE_BY_ONE:
        raise ConfigError(
            f"about {needed:.2g} sets are needed for a probability of {1 - delta:.6g}, at most {_ONE_BY_ONE} are "
            "enumerated: raise delta, or use draws"
        )
    found, log_prob, mass = [], [], 0.0
    for batch in _batches(best_first(blocks, n)):
        possible = batch[prior._possible(batch)]
        found.append(possible)
        log_prob.append(np.asarray(prior.log_prob(possible)))
        mass += float(np.exp(log_prob[-1]).sum())
        if mass >= (1 - delta) * (1 - 1e-12):
            break
        if sum(map(len, found)) > _ONE_BY_ONE:
            raise ConfigError(
                f"more than {_ONE_BY_ONE} sets are needed for a probability of {1 - delta:.6g}; the likeliest "
                f"{_ONE_BY_ONE} have {mass:.6g}: raise delta, or use draws"
            )
    family = Family(np.concatenate(found), np.concatenate(log_prob))
    reached = np.cumsum(np.exp(family.log_prob))
    count = min(len(family), int(np.searchsorted(reached, (1 - delta) * (1 - 1e-12))) + 1)
    return Family(family.honest[:count], family.log_prob[:count])


def best_first(blocks: list[Block], n: int) -> Iterator[Masks]:
    """All sets [n], the likeliest first (the empty one as well), equal ones in a fixed order.

    A set is the blocks' best options but for some. Blocks stand in the order of what their second best costs. From a
    set whose last change is option r of block i come at most three: option r + 1 there; a first change of block i + 1
    besides; that instead of the change here, if r = 1. So every set comes from one other, which is no less likely.
    """
    costs = [block.log_prob[0] - block.log_prob for block in blocks]
    order = sorted((i for i in range(len(blocks)) if len(costs[i]) > 1), key=lambda i: (costs[i][1], i))
    best = np.zeros(n, dtype=np.bool_)
    for block in blocks:
        best[block.columns] = block.honest[0]
    yield best
    heap: list[tuple[float, tuple[tuple[int, int], ...]]] = []
    if order:
        heap.append((float(costs[order[0]][1]), ((0, 1),)))
    while heap:
        cost, changes = heapq.heappop(heap)
        honest = best.copy()
        for i, r in changes:
            block = blocks[order[i]]
            honest[block.columns] = block.honest[r]
        yield honest
        (i, r), before = changes[-1], changes[:-1]
        here = costs[order[i]]
        if r + 1 < len(here):
            heapq.heappush(heap, (cost + float(here[r + 1] - here[r]), (*before, (i, r + 1))))
        if i + 1 < len(order):
            further = float(costs[order[i + 1]][1])
            heapq.heappush(heap, (cost + further, (*changes, (i + 1, 1))))
            if r == 1:
                heapq.heappush(heap, (cost + further - float(here[1]), (*before, (i + 1, 1))))


def _batches(sets: Iterator[Masks]) -> Iterator[Masks]:
    size = 64
    while batch := list(islice(sets, size)):
        yield np.array(batch)
        size = min(2 * size, 8192)


def _product(blocks: list[Block], n: int) -> Masks:
    """Every combination of the blocks' options: [K, n]."""
    total = math.prod(len(block.log_prob) for block in blocks)
    honest = np.empty((total, n), dtype=np.bool_)
    period = 1
    for block in blocks:
        honest[:, block.columns] = block.honest[np.arange(total) // period % len(block.log_prob)]
        period *= len(block.log_prob)
    return honest


def _needed(prior: HonestPrior, delta: float) -> float:
    """About how many sets hold 1 - delta of the mass: E[1 / P(S)] over the likelier draws."""
    log_prob = np.sort(np.asarray(prior.log_prob(prior.sample(1000, 0))))[round(1000 * delta) :]
    # Beyond 1e300 it does not matter how many they are.
    return float(np.exp(np.minimum(-log_prob, 690)).sum() / 1000)
