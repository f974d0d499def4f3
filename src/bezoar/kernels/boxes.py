"""The box that the intervals of many subsets of rows have in common, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Numbers that one slice of columns holds at a time: it stays in the cache.
SLICE = 2**17


@dataclass(frozen=True, eq=False)
class Intervals:
    r"""For every set S of rows the interval mean_S +- reach_S sd_S of each coordinate.

    Mean and variance are taken about a row of the set, its *pivot*: then the squares to be subtracted are at most
    1 + |S| times the variance, and no digits are lost, whatever rows outside the set are (a centre that all rows have
    a say in, such as their median, may be 1e30 where most of them are bad). Sets share few pivots.

    Attributes:
        pivots: a row for every group of sets.
        shares: 1/|S| on the rows of each set of the group, float64 [k, n].
        reach: standard deviations to each side, float64 [k, 1].
    """

    pivots: tuple[int, ...]
    shares: tuple[Tensor, ...]
    reach: tuple[Tensor, ...]

    @classmethod
    def of(cls, sets: NDArray[np.bool_], reach: NDArray[np.float64]) -> Intervals:
        """For the non-empty ``sets`` [K, n] and their ``reach`` [K]."""
        left = np.ones(len(sets), dtype=np.bool_)
        pivots, shares, reaches = [], [], []
        while left.any():
            pivot = int(sets[left].sum(0, dtype=np.int64).argmax())
            chosen = left & sets[:, pivot]
            left &= ~chosen
            group = torch.from_numpy(sets[chosen].astype(np.float64))
            pivots.append(pivot)
            shares.append(group / group.sum(1, keepdim=True))
            reaches.append(torch.from_numpy(reach[chosen].astype(np.float64))[:, None])
        return cls(tuple(pivots), tuple(shares), tuple(reaches))

    @property
    def widest(self) -> int:
        """Sets in the largest group."""
        return max(map(len, self.shares))


def common_box(values: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
    """Largest lower and smallest upper end of the intervals of every column of ``values`` [n, b]: float64 [b] each.

    All is computed in float64. Where the intervals meet in one point, rounding may have swapped the two ends.
    """
    n, b = values.shape
    low = torch.empty(b, dtype=torch.float64, device=values.device)
    high = torch.empty_like(low)
    groups = [
        (pivot, shares.to(values.device), reach.to(values.device))
        for pivot, shares, reach in zip(intervals.pivots, intervals.shares, intervals.reach, strict=True)
    ]
    width = max(1, SLICE // max(n, intervals.widest))
    for start in range(0, b, width):
        part = values[:, start : start + width].double()
        ends = low[start : start + width], high[start : start + width]
        for i, (pivot, shares, reach) in enumerate(groups):
            centre = part[pivot].clone()
            part -= centre
            mean, spread = shares @ part, shares @ part.square()
            spread.addcmul_(mean, mean, value=-1.0).clamp_(min=0.0).sqrt_().mul_(reach)
            lower, upper = (mean - spread).amax(0).add_(centre), mean.add_(spread).amin(0).add_(centre)
            if i:
                torch.maximum(ends[0], lower, out=ends[0])
                torch.minimum(ends[1], upper, out=ends[1])
            else:
                ends[0].copy_(lower)
                ends[1].copy_(upper)
            if i + 1 < len(groups):
                part = values[:, start : start + width].double()
    return low, high
