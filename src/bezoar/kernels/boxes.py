"""The box that the intervals of many subsets of rows have in common, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Numbers in a slice of columns: enough for torch to share its work out, little beside the rows themselves.
SLICE = 2**20

#: Relative rounding of float64.
EPSILON = float(np.finfo(np.float64).eps)


#: A set that lacks the first pivot is seen from it as long as its variance is not less than this share of the squares.
NEAR = 1e-4


@dataclass(frozen=True, eq=False)
class Intervals:
    r"""For every set S of rows the interval mean_S +- reach_S sd_S of each coordinate.

    Mean and variance are taken about a row of the set, its *pivot*: the squares to be subtracted are then at most
    1 + |S| times the variance, and no digits are lost, whatever the rows outside are. (A centre that all rows have a
    say in, such as their median, is 1e30 where most of them say so.) Sets share few pivots; those that lack the first
    one are seen from it as well, and from their own only where the first is far off.

    Every interval is wider by what rounding can do to its ends, a multiple of its own sd. This is what keeps a set that
    holds hostile rows of 1e30 from cutting into the interval of the honest ones: the end that it turns towards them is
    a difference of two huge numbers.

    Attributes:
        shares: 1/|S| on the rows of each set, float64 [K, n].
        reach: standard deviations to each side, float64 [K, 1].
        pivots: (row, start, stop): the sets from start to stop share the row.
    """

    shares: Tensor
    reach: Tensor
    pivots: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, sets: NDArray[np.bool_], reach: NDArray[np.float64]) -> Intervals:
        """For the non-empty ``sets`` [K, n] and their ``reach`` [K]."""
        left = np.ones(len(sets), dtype=np.bool_)
        order: list[int] = []
        pivots = []
        while left.any():
            pivot = int(sets[left].sum(0, dtype=np.int64).argmax())
            chosen = left & sets[:, pivot]
            left &= ~chosen
            pivots.append((pivot, len(order), len(order) + int(chosen.sum())))
            order.extend(np.flatnonzero(chosen).tolist())
        members = torch.from_numpy(sets[order].astype(np.float64))
        sizes = members.sum(1, keepdim=True)
        squares = 1 + sizes
        squares[pivots[0][2] :].clamp_(min=1 / NEAR)
        slack = 2 * sets.shape[1] * EPSILON
        wide = torch.from_numpy(reach[order].astype(np.float64))[:, None]
        return cls(members / sizes, wide * (1 + slack * squares) + slack * squares.sqrt(), tuple(pivots))


def common_box(values: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
    """Largest lower and smallest upper end of the intervals of every column of ``values`` [n, b]: float64 [b] each.

    All is computed in float64. Where the intervals meet in one point, rounding of that number may swap the two ends.
    """
    n, b = values.shape
    shares, reach = intervals.shares.to(values.device), intervals.reach.to(values.device)
    low = torch.full((b,), -torch.inf, dtype=torch.float64, device=values.device)
    high = torch.full_like(low, torch.inf)
    width = max(1, SLICE // max(n, len(shares)))
    for start in range(0, b, width):
        ends = low[start : start + width], high[start : start + width]
        _narrow(values[:, start : start + width], shares, reach, intervals.pivots, ends)
    return low, high


def _narrow(
    values: Tensor, shares: Tensor, reach: Tensor, pivots: tuple[tuple[int, int, int], ...], ends: tuple[Tensor, Tensor]
) -> None:
    """Cut ``ends`` [w] down to the intervals of all sets."""
    about = values.to(torch.float64, copy=True)
    centre = about[pivots[0][0]].clone()
    about -= centre
    mean = shares @ about
    about *= about
    squares = shares @ about
    variance = torch.addcmul(squares, mean, mean, value=-1.0)
    far = [
        (pivot, start, stop)
        for pivot, start, stop in pivots[1:]
        if bool((variance[start:stop] < NEAR * squares[start:stop]).any())
    ]
    if far:
        seen = torch.ones(len(shares), dtype=torch.bool, device=shares.device)
        for _, start, stop in far:
            seen[start:stop] = False
        mean, variance = mean[seen], variance[seen]
        _cut(mean, variance, reach[seen], centre, ends)
    else:
        _cut(mean, variance, reach, centre, ends)
    for pivot, start, stop in far:
        _narrow(values, shares[start:stop], reach[start:stop], ((pivot, 0, stop - start),), ends)


def _cut(mean: Tensor, variance: Tensor, reach: Tensor, centre: Tensor, ends: tuple[Tensor, Tensor]) -> None:
    """Cut ``ends`` [w] down to ``centre + mean +- reach sqrt(variance)`` [k, w]; the first two are used up."""
    spread = variance.clamp_(min=0.0).sqrt_().mul_(reach)
    torch.maximum(ends[0], (mean - spread).amax(0).add_(centre), out=ends[0])
    torch.minimum(ends[1], mean.add_(spread).amin(0).add_(centre), out=ends[1])
