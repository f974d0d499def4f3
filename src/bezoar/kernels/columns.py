"""Order statistics of columns.

On a CPU a slice of columns is copied to rows, which NumPy's vectorised sort orders in the cache, several slices at a
time. torch's sort is an order of magnitude slower there, sorting along the strided axis three times, and keeping the
sorted block instead of finishing it slice by slice twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bezoar.kernels.threads import in_threads

#: Entries sorted at a time by one thread.
SLICE = 2**18

#: Sorted columns as rows [c, n] -> one number each [c].
Finish = Callable[[Tensor], Tensor]


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def over_sorted(values: Tensor, finish: Finish) -> Tensor:
    """Apply ``finish`` to the sorted columns of ``values`` [n, b]: [b].

    ``finish`` gets slices of sorted columns as rows [c, n] (half precision as float32); it must not keep them.
    """
    n, b = values.shape
    if values.device.type != "cpu":
        return finish(widened(values).T.contiguous().sort(dim=1).values)
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    answer = torch.empty(b, dtype=wide)

    def work(start: int, stop: int) -> None:
        # A copy always: the caller's numbers may already lie as rows.
        ordered = torch.empty(stop - start, n, dtype=wide)
        ordered.numpy()[...] = widened(values[:, start:stop]).numpy().T
        ordered.numpy().sort(axis=1)
        answer[start:stop] = finish(ordered)

    in_threads(work, b, max(1, SLICE // n))
    return answer


def median_of_sorted(ordered: Tensor) -> Tensor:
    """Median of every row of ``ordered`` [c, n], whose rows are sorted; the midpoint of the middle two if n is even."""
    n = ordered.shape[1]
    if n % 2:
        return ordered[:, n // 2]
    return ordered[:, n // 2 - 1] * 0.5 + ordered[:, n // 2] * 0.5


def _trimmed(f: int, ordered: Tensor) -> Tensor:
    # A matrix product would be faster, but its bits depend on where a row lies and on the number of threads.
    kept = ordered[:, f : ordered.shape[1] - f]
    means = kept.mean(1)
    # The sum of legal numbers may be none.
    return means if torch.isfinite(means).all() else kept.mean(1, dtype=torch.float64).to(means.dtype)


def column_median(values: Tensor) -> Tensor:
    """Median of every column of ``values`` [n, b]: [b]; the midpoint of the middle two if n is even."""
    return over_sorted(values, median_of_sorted)


def column_trimmed_mean(values: Tensor, f: int) -> Tensor:
    """Mean of every column of ``values`` [n, b] without its f smallest and f largest entries: [b].

    Sorts and slices: subtracting the extremes from the sum would lose everything to one entry of 1e30.
    """
    if f == 0:
        wide = widened(values)
        means = wide.mean(0)
        return means if torch.isfinite(means).all() else wide.mean(0, dtype=torch.float64).to(wide.dtype)
    return over_sorted(values, partial(_trimmed, f))


def column_weighted_trimmed_mean(values: Tensor, shares: Tensor, trim: float) -> Tensor:
    """Weighted mean of every column of ``values`` [n, b] without the weight ``trim`` at each end: [b].

    ``shares`` [n] (float64) add up to one and ``trim`` is below a half. Where a row's weight is only partly trimmed,
    the rest of it counts. Half precision comes back as float32.
    """
    n, b = values.shape
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    answer = torch.empty(b, dtype=wide, device=values.device)

    def work(start: int, stop: int) -> None:
        part = widened(values[:, start:stop]).T.contiguous()
        if part.device.type == "cpu":
            order = torch.from_numpy(np.argsort(part.numpy(), axis=1, kind="stable"))
        else:
            order = part.argsort(dim=1, stable=True)
        weight = shares[order]
        upper = weight.cumsum(1)
        kept = (upper.clamp(max=1 - trim) - (upper - weight).clamp(min=trim)).clamp_(min=0)
        kept /= kept.sum(1, keepdim=True)
        answer[start:stop] = (part.gather(1, order).double() * kept).sum(1).to(wide)

    in_threads(work, b, max(1, SLICE // n))
    return answer
