"""Order statistics of columns.

On a CPU a slice of columns is copied to rows, which NumPy's vectorised sort orders in the cache, several slices at a
time. torch's sort is an order of magnitude slower there, sorting along the strided axis three times, and keeping the
sorted block instead of finishing it slice by slice twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
        ordered = widened(values[:, start:stop]).T.contiguous()
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
    kept = ordered[:, f : ordered.shape[1] - f]
    # Dividing before adding: legal numbers must not overflow on the way.
    return kept @ torch.full((kept.shape[1],), 1 / kept.shape[1], dtype=kept.dtype, device=kept.device)


def column_median(values: Tensor) -> Tensor:
    """Median of every column of ``values`` [n, b]: [b]; the midpoint of the middle two if n is even."""
    return over_sorted(values, median_of_sorted)


def column_trimmed_mean(values: Tensor, f: int) -> Tensor:
    """Mean of every column of ``values`` [n, b] without its f smallest and f largest entries: [b].

    Sorts and slices: subtracting the extremes from the sum would lose everything to one entry of 1e30.
    """
    if f == 0:
        wide = widened(values)
        return torch.full((len(wide),), 1 / len(wide), dtype=wide.dtype, device=wide.device) @ wide
    return over_sorted(values, partial(_trimmed, f))
