"""Which rank computes which client."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def longest_first(sizes: Indices, ranks: int) -> Indices:
    """The rank [n] of every client, given how much work each is: the largest first, to whom has the least so far.

    No rank then has more than 4/3 of what the best placement's busiest has (Graham 1969). Ties go to the first client
    and to the lowest rank, so that all ranks find the same.

    >>> longest_first(np.array([5, 1, 4, 4]), 2)
    array([0, 0, 1, 1])
    """
    rank_of = np.zeros(len(sizes), dtype=np.int64)
    loads = [(0, rank) for rank in range(ranks)]
    for client in np.argsort(-sizes, kind="stable").tolist():
        load, rank = heapq.heappop(loads)
        rank_of[client] = rank
        heapq.heappush(loads, (load + int(sizes[client]), rank))
    return rank_of
