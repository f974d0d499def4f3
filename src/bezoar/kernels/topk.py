"""The k entries of largest absolute value, exactly, several times faster than a full selection."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.errors import DivergedError
from bezoar.kernels.quiet import in_numpy, take
from bezoar.kernels.threads import Worker, in_threads

Array = NDArray[Any]

#: Entries looked at to guess the threshold.
SAMPLE = 32768

#: Entries compared at a time, while they are in the cache.
CHUNK = 32768

#: Computes the entries from start to stop, which nobody has read before.
Fill = Callable[[int, int], None]


def top_k(values: Tensor, k: int) -> Tensor:
    """Indices [k] (ascending) of the k entries of ``values`` [d] with the largest absolute value.

    Among equal values the lowest index wins.

    Raises:
        DivergedError: an entry is not finite.

    >>> top_k(torch.tensor([1.0, -3.0, 2.0, 3.0]), 2)
    tensor([1, 3])
    """
    return top_k_filled(values, k, lambda start, stop: None, lambda places: take(values, places))


def top_k_filled(values: Tensor, k: int, fill: Fill, at: Callable[[Tensor], Tensor]) -> Tensor:
    """``top_k`` of ``values`` [d] that ``fill`` is yet to compute: they are looked at while they are in the cache.

    ``fill`` is called once for every entry, from several threads. ``at`` says what it will write at some indices (to
    the last digit or nearly so).
    """
    d = len(values)
    if not 0 < k <= d:
        raise ValueError(f"k must be between 1 and {d}, got {k}")
    if not in_numpy(values):
        fill(0, d)
        return _selected(values.abs(), k)
    guess = -1.0
    if d >= 4 * SAMPLE:
        guess = _around(at(_places(d)).abs().numpy(), k / d)[0]
    array = values.detach().numpy()
    found = _above(array, guess, fill)
    size = np.abs(array[found])
    if not np.isfinite(size).all():
        raise DivergedError("top-k of a vector with NaN or infinity")
    if len(found) < k:
        ties = _equal(array, guess, k - len(found))
        if len(found) + len(ties) < k:
            found, size = np.arange(d), np.abs(array)
        else:
            # Two sorted runs, which a stable sort merges.
            return torch.from_numpy(np.sort(np.concatenate([found, ties]), kind="stable"))
    return torch.from_numpy(found[_largest(size, k)])


def _selected(size: Tensor, k: int) -> Tensor:
    if not torch.isfinite(size).all():
        raise DivergedError("top-k of a vector with NaN or infinity")
    least = size.topk(k).values[-1]
    above = (size > least).nonzero().flatten()
    ties = (size == least).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, ties]).sort().values


@lru_cache(maxsize=4)
def _places(d: int) -> Tensor:
    return torch.randint(d, (SAMPLE,), generator=torch.Generator().manual_seed(d))


def _around(sample: Array, share: float) -> tuple[float, float]:
    """Values between which the one surely lies that ``share`` of all exceed; NaN if the sample has one."""
    expected = share * len(sample)
    slack = 4 * expected**0.5 + 8
    ranks = (min(len(sample) - 1, int(expected + slack)), max(0, int(expected - slack)))
    low, high = (len(sample) - 1 - rank for rank in ranks)
    ordered = np.partition(sample, sorted({low, high, len(sample) - 1}))
    # NaN is sorted to the end.
    least = float(ordered[low]) if np.isfinite(ordered[-1]) else np.nan
    return (-1.0 if ranks[0] == len(sample) - 1 else least), float(ordered[high])


def _above(values: Array, threshold: float, fill: Fill) -> Array:
    """Indices (ascending) of entries that are larger than ``threshold`` in absolute value, or NaN."""
    parts: dict[int, Array] = {}

    def worker() -> Worker:
        size, small = np.empty(CHUNK, dtype=values.dtype), np.empty(CHUNK, dtype=bool)

        def work(start: int, stop: int) -> None:
            fill(start, stop)
            sizes, mask = size[: stop - start], small[: stop - start]
            np.abs(values[start:stop], out=sizes)
            # NaN is not small.
            np.less_equal(sizes, threshold, out=mask)
            np.logical_not(mask, out=mask)
            parts[start] = np.flatnonzero(mask) + start

        return work

    in_threads(worker, len(values), CHUNK)
    return np.concatenate([parts[start] for start in sorted(parts)])


def _equal(values: Array, size: float, count: int) -> Array:
    """The first ``count`` indices (or fewer) of entries of absolute value ``size``."""
    parts, found = [np.empty(0, dtype=np.int64)], 0
    for start in range(0, len(values), CHUNK):
        if found >= count:
            break
        parts.append(np.flatnonzero(np.abs(values[start : start + CHUNK]) == size) + start)
        found += len(parts[-1])
    return np.concatenate(parts)[:count]


def _largest(sizes: Array, k: int) -> Array:
    """Indices [k] (ascending) of the k largest, lowest indices first among equals."""
    if k == len(sizes):
        return np.arange(k)
    least = _kth(sizes, k)
    chosen = sizes > least
    ties = np.flatnonzero(sizes == least)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _kth(sizes: Array, k: int) -> float:
    """The k-th largest value, however many equal others."""
    n = len(sizes)
    if n > 4 * SAMPLE:
        # Equal values slow a partition down. They fill the sample as well, and are counted instead.
        low, high = _around(sizes[_places(n).numpy()], k / n)
        above = int(np.count_nonzero(sizes > high))
        up_to_high = above + int(np.count_nonzero(sizes == high))
        between = sizes[(sizes > low) & (sizes < high)]
        if above < k <= up_to_high:
            return high
        if up_to_high < k <= up_to_high + len(between):
            sizes, k = between, k - up_to_high
        elif low < high and 0 <= k - up_to_high - len(between) - 1 < np.count_nonzero(sizes == low):
            return low
    return float(np.partition(sizes, len(sizes) - k)[len(sizes) - k])
