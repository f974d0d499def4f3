"""Order statistics of columns.

On a CPU a slice of columns is copied to rows, which NumPy's vectorised sort orders in the cache, several slices at a
time. torch's sort is an order of magnitude slower there, sorting along the strided axis three times. What is made of
the sorted values is NumPy's work as well: torch's own threads, once started, keep a core busy waiting for more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.kernels.gram import Matrix, wide_type, widened
from bezoar.kernels.threads import Worker, in_threads

#: Entries sorted at a time by one thread.
SLICE = 2**19

#: More entries than this are added up in float64.
MANY = 1024

#: Makes one number of every sorted column: [c, n] -> [c]. Gets a NumPy array on a CPU and a tensor elsewhere, so it
#: must use what both have; it must not keep or change it.
Finish = Callable[[Any], Any]


class NotFiniteError(Exception):
    """An entry is NaN, infinite, or too large to be squared in float64."""


def over_sorted(matrix: Matrix, finish: Finish, rows: Tensor | None = None) -> Tensor:
    """Apply ``finish`` to the sorted columns of ``matrix`` (of ``rows`` [m] only, if given): [d].

    Half precision is sorted and comes back as float32. Where an answer is no legal number because a sum on the way was
    none, everything is done again in float64.

    Raises:
        NotFiniteError: an entry is not finite; seen where sorting has put it, at the ends.
    """
    wide = wide_type(matrix.dtype)
    answer = _sorted_in(wide, matrix, finish, rows)
    if wide == torch.float32 and not _finite(answer):
        return _sorted_in(torch.float64, matrix, finish, rows).to(wide)
    return answer


def _finite(vector: Tensor) -> bool:
    """Whether all entries of ``vector`` [d] are finite, without another vector of its size."""
    return all(bool(torch.isfinite(part).all()) for part in torch.split(vector, SLICE))


def _legal(ordered: Any) -> bool:
    """Whether all entries of sorted rows are finite, and small enough to be squared."""
    limit = 1.1e150 if ordered.dtype in (np.float64, torch.float64) else math.inf
    # NaN is sorted to the upper end, and no comparison with it is true.
    return bool(-limit < ordered[:, 0].min()) and bool(ordered[:, -1].max() < limit)


def _sorted_in(wide: torch.dtype, matrix: Matrix, finish: Finish, rows: Tensor | None) -> Tensor:
    n, d = matrix.shape
    m = n if rows is None else len(rows)
    answer = torch.empty(d, dtype=wide, device=matrix.device)
    width = min(d, max(1, SLICE // n))
    if matrix.device.type != "cpu":
        for start in range(0, d, 64 * width):
            stop = min(start + 64 * width, d)
            values = matrix.part(start, stop, rows).to(wide).T.contiguous().sort(dim=1).values
            if not _legal(values):
                raise NotFiniteError
            answer[start:stop] = finish(values)
        return answer
    # Written through NumPy: a thread does not inherit torch's inference mode.
    target = answer.numpy()

    def worker() -> Worker:
        # Fresh memory for every slice would cost more in page faults than the sort.
        scratch = np.empty((width, m), dtype=np.float64 if wide == torch.float64 else np.float32)

        def work(start: int, stop: int) -> None:
            # A copy always: the caller's numbers may already lie as rows.
            ordered = scratch[: stop - start]
            ordered[...] = widened(matrix.part(start, stop, rows)).numpy().T
            ordered.sort(axis=1)
            if not _legal(ordered):
                raise NotFiniteError
            with np.errstate(over="ignore", invalid="ignore"):
                target[start:stop] = finish(ordered)

        return work

    in_threads(worker, d, width)
    return answer


def median_of_sorted(ordered: Any) -> Any:
    """Median of every row of ``ordered`` [c, n], whose rows are sorted; the midpoint of the middle two if n is even."""
    n = ordered.shape[1]
    if n % 2:
        return ordered[:, n // 2]
    return (ordered[:, n // 2 - 1] + ordered[:, n // 2]) * 0.5


def trimmed_mean_of_sorted(f: int) -> Finish:
    """Mean of every sorted row without its f smallest and f largest entries.

    Sorting and slicing: subtracting the extremes from the sum would lose everything to one entry of 1e30.
    """
    return partial(_trimmed, f)


def _trimmed(f: int, ordered: Any) -> Any:
    kept = ordered[:, f : ordered.shape[1] - f]
    return _sums(kept) / kept.shape[1]


def _sums(values: Any) -> Any:
    """Sums of rows. A matrix product's bits depend on the number of threads, and ``sum`` is slow on short rows."""
    if values.shape[1] > MANY:
        return _double(values).sum(1)
    library: Any = np if isinstance(values, np.ndarray) else torch
    return library.einsum("ij->i", values)


def mean_around_median(keep: int) -> Finish:
    """Mean of the ``keep`` entries nearest the median of every sorted row.

    The median of an even number of entries is the midpoint of the middle two. Of two entries at the same distance
    below and above, the lower one is nearer: the answer depends on no order of the rows.
    """
    return partial(_around_median, keep)


def _around_median(keep: int, ordered: Any) -> Any:
    m = ordered.shape[1]
    if not 1 <= keep <= m:
        raise ValueError(f"keep must be between 1 and the {m} rows, got {keep}")
    library: Any = np if isinstance(ordered, np.ndarray) else torch
    spare = m - keep
    low, high = ordered[:, :spare], ordered[:, keep:]
    # The nearest entries are neighbours. Of the entries j and j + keep exactly one is among them: the upper one if the
    # lower lies farther from the median than it, that is if low + high < 2 median.
    wide = _double(ordered)
    twice = wide[:, (m - 1) // 2] + wide[:, m // 2]
    farther = twice[:, None] > wide[:, :spare] + wide[:, keep:]
    if spare <= keep:
        return (_sums(ordered[:, spare:keep]) + _sums(library.where(farther, high, low))) / keep
    start = farther.sum(1)[:, None]
    place = library.arange(m)
    place = place if library is np else place.to(ordered.device)
    inside = (place >= start) & (place < start + keep)
    return _sums(library.where(inside, ordered, ordered * 0)) / keep


def _double(values: Any) -> Any:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values.double()


def column_weighted_trimmed_mean(values: Tensor, shares: Tensor, trim: float) -> Tensor:
    """Weighted mean of every column of ``values`` [n, b] without the weight ``trim`` at each end: [b].

    ``shares`` [n] (float64) add up to one and ``trim`` is below a half. Where a row's weight is only partly trimmed,
    the rest of it counts. Half precision comes back as float32.
    """
    n, b = values.shape
    wide = wide_type(values.dtype)
    parts = []
    for start in range(0, b, max(1, SLICE // n)):
        part = widened(values[:, start : start + max(1, SLICE // n)]).T.contiguous()
        if part.device.type == "cpu":
            order = torch.from_numpy(np.argsort(part.numpy(), axis=1, kind="stable"))
        else:
            order = part.argsort(dim=1, stable=True)
        weight = shares[order]
        upper = weight.cumsum(1)
        kept = upper.clamp(max=1 - trim) - (upper - weight).clamp(min=trim)
        # What rounding leaves of a row that is trimmed whole would let 1e30 through.
        kept = kept.masked_fill(kept <= 1e-12 + 1e-9 * weight, 0.0)
        kept /= kept.sum(1, keepdim=True)
        parts.append((part.gather(1, order).double() * kept).sum(1).to(wide))
    return torch.cat(parts)
