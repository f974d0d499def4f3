"""The mean of the values nearest the median, column by column."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bezoar.kernels.columns import median_of_sorted, over_sorted


def column_mean_around_median(values: Tensor, keep: int) -> Tensor:
    """Mean of the ``keep`` entries nearest the median of every column of ``values`` [m, b]: [b].

    The median of an even number of entries is the midpoint of the middle two. Of two entries at the same distance
    below and above, the lower one is nearer: the answer depends on no order of the rows. Half precision comes back as
    float32.

    >>> column_mean_around_median(torch.tensor([[0.0], [1.0], [2.0], [100.0]]), 2)
    tensor([1.5000])
    """
    if not 1 <= keep <= len(values):
        raise ValueError(f"keep must be between 1 and the {len(values)} rows, got {keep}")
    return over_sorted(values, partial(_around_median, keep))


def _around_median(keep: int, ordered: Tensor) -> Tensor:
    """The same for sorted rows [c, m]: the nearest entries are neighbours, so only where they begin is sought."""
    m = ordered.shape[1]
    spare = m - keep
    # In float64 no difference of float32 numbers overflows or is rounded into a tie; halves keep float64 finite.
    half = median_of_sorted(ordered.double() * 0.5)[:, None]
    below = half - ordered[:, :spare].double() * 0.5
    above = ordered[:, keep:].double() * 0.5 - half
    # The window moves up while the entry it loses is farther away than the one it gains.
    start = (below > above).sum(1, keepdim=True)
    place = torch.arange(m, device=ordered.device)
    outside = (place < start) | (place >= start + keep)
    # Dividing before adding: legal numbers must not overflow on the way.
    return (ordered.masked_fill(outside, 0.0) / keep).sum(1)
