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


@dataclass(frozen=True, eq=False)
class Group:
    """Sets that share a row.

    Attributes:
        pivot: that row's place in ``rows``.
        rows: the rows of these sets [r]; None for all.
        shares: 1/|S| on the rows of each set, float64 [k, r].
        reach: standard deviations to each side, float64 [k, 1].
    """

    pivot: int
    rows: Tensor | None
    shares: Tensor
    reach: Tensor

    def to(self, device: torch.device) -> Group:
        """The same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Group(self.pivot, rows, self.shares.to(device), self.reach.to(device))


@dataclass(frozen=True, eq=False)
class Intervals:
    r"""For every set S of rows the interval mean_S +- reach_S sd_S of each coordinate.

    Mean and variance are taken about a row of the set, its *pivot*: the squares to be subtracted are then at most
    1 + |S| times the variance, and no digits are lost, whatever the rows outside are. (A centre that all rows have a
    say in, such as their median, is 1e30 where most of them say so.) Sets share few pivots.

    Every interval is wider by what rounding can do to its ends, a multiple of its own sd. This is what keeps a set that
    holds hostile rows of 1e30 from cutting into the interval of the honest ones: the end that it turns towards them is
    a difference of two huge numbers.
    """

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, sets: NDArray[np.bool_], reach: NDArray[np.float64]) -> Intervals:
        """For the non-empty ``sets`` [K, n] and their ``reach`` [K]."""
        left = np.ones(len(sets), dtype=np.bool_)
        groups = []
        while left.any():
            pivot = int(sets[left].sum(0, dtype=np.int64).argmax())
            chosen = left & sets[:, pivot]
            left &= ~chosen
            rows = np.flatnonzero(sets[chosen].any(0))
            members = torch.from_numpy(sets[chosen][:, rows].astype(np.float64))
            sizes = members.sum(1, keepdim=True)
            slack = 2 * len(rows) * EPSILON
            wide = torch.from_numpy(reach[chosen].astype(np.float64))[:, None]
            wide = wide * (1 + slack * (1 + sizes)) + slack * (1 + sizes).sqrt()
            named = None if len(rows) == sets.shape[1] else torch.from_numpy(rows)
            groups.append(Group(int(np.searchsorted(rows, pivot)), named, members / sizes, wide))
        return cls(tuple(groups))

    @property
    def widest(self) -> int:
        """Sets in the largest group."""
        return max(len(group.shares) for group in self.groups)


def common_box(values: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
    """Largest lower and smallest upper end of the intervals of every column of ``values`` [n, b]: float64 [b] each.

    All is computed in float64. Where the intervals meet in one point, rounding of that number may swap the two ends.
    """
    n, b = values.shape
    groups = [group.to(values.device) for group in intervals.groups]
    low = torch.full((b,), -torch.inf, dtype=torch.float64, device=values.device)
    high = torch.full_like(low, torch.inf)
    width = max(1, SLICE // max(n, intervals.widest))

    for start in range(0, b, width):
        part, ends = values[:, start : start + width], (low[start : start + width], high[start : start + width])
        for group in groups:
            _narrow(part, group, *ends)
    return low, high


def _narrow(values: Tensor, group: Group, low: Tensor, high: Tensor) -> None:
    """Cut ``low`` and ``high`` [w] down to the intervals of one group."""
    about = (values if group.rows is None else values[group.rows]).to(torch.float64, copy=True)
    centre = about[group.pivot].clone()
    about -= centre
    mean = group.shares @ about
    about *= about
    spread = group.shares @ about
    spread.addcmul_(mean, mean, value=-1.0).clamp_(min=0.0).sqrt_().mul_(group.reach)
    torch.maximum(low, (mean - spread).amax(0).add_(centre), out=low)
    torch.minimum(high, mean.add_(spread).amin(0).add_(centre), out=high)
