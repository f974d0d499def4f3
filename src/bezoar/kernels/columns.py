"""Order statistics of columns. On a CPU NumPy's vectorised sort is several times faster than torch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sort_columns(values: Tensor) -> Tensor:
    """Sort every column of ``values`` [n, b] in ascending order; half precision comes back as float32."""
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=0))
    return values.sort(dim=0).values


def column_median(values: Tensor) -> Tensor:
    """Median of every column of ``values`` [n, b]: [b]; the midpoint of the middle two if n is even."""
    ordered = sort_columns(values)
    n = len(ordered)
    if n % 2:
        return ordered[n // 2]
    return ordered[n // 2 - 1] * 0.5 + ordered[n // 2] * 0.5


def column_trimmed_mean(values: Tensor, f: int) -> Tensor:
    """Mean of every column of ``values`` [n, b] without its f smallest and f largest entries: [b].

    Sorts and slices: subtracting the extremes from the sum would lose everything to one entry of 1e30.
    """
    if f == 0:
        return _mean(values)
    ordered = sort_columns(values)
    return _mean(ordered[f : len(ordered) - f])


def _mean(values: Tensor) -> Tensor:
    """Mean of every column, summed in float64: legal numbers must not overflow on the way."""
    wide = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    return values.mean(0, dtype=torch.float64).to(wide)
