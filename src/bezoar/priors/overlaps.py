"""How candidate honest sets overlap: what that costs any rule, and which sets no rule can serve together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError

if TYPE_CHECKING:
    from bezoar.priors.family import Family, Masks

#: Overlaps are counted in blocks of this many numbers.
BLOCK = 2**22


def least_overlaps(honest: Masks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    r"""The least number of clients that each set of ``honest`` [K, n] shares with any, and with which: two int64 [K].

    Of several sets the first. Never more than about ``BLOCK`` overlaps are held at a time.
    """
    # Products of float32 run through BLAS, and count exactly below 2^24.
    sets: NDArray[np.float32] = honest.astype(np.float32)
    least, rival = np.empty(len(sets), dtype=np.int64), np.empty(len(sets), dtype=np.int64)
    step = max(1, BLOCK // len(sets))
    for start in range(0, len(sets), step):
        shared = sets[start : start + step] @ sets.T
        rival[start : start + step] = found = shared.argmin(1)
        least[start : start + step] = np.take_along_axis(shared, found[:, None], 1)[:, 0]
    return least, rival


def rho_of(family: Family) -> NDArray[np.float64]:
    """See :meth:`bezoar.priors.Family.rho`."""
    least = family.overlaps[0]
    if not least.all():
        first = int((least == 0).argmax())
        second = int(family.overlaps[1][first])
        pair = " and ".join(f"{k} (bad: {_named(family, k)})" for k in sorted((first, second)))
        raise ConfigError(
            f"the candidate sets number {pair} are disjoint: no rule can serve both. A trusted client in every set "
            "would make it possible, and so would dropping the less likely set of each such pair"
        )
    return np.asarray(family.sizes / least - 1.0)


def _named(family: Family, k: int) -> str:
    bad = np.flatnonzero(~family.honest[k]).tolist()
    return ", ".join(map(str, bad[:20])) + (f" and {len(bad) - 20} more" if len(bad) > 20 else "")


def intersecting(family: Family) -> NDArray[np.int64]:
    """Places of the sets that remain [K'] if, the likeliest first, a set is dropped that is disjoint from one kept."""
    doubtful = family.overlaps[0] == 0
    kept = ~doubtful
    places = np.flatnonzero(doubtful)
    # Sets that meet all others drop nothing and are dropped by nothing.
    order = places[np.argsort(-family.log_prob[places], kind="stable")]
    sets = family.honest[order].astype(np.float32)
    alive = np.ones(len(order), dtype=np.bool_)
    for i in range(len(order)):
        if alive[i]:
            kept[order[i]] = True
            alive[i + 1 :] &= sets[i + 1 :] @ sets[i] > 0
    return np.flatnonzero(kept)
