"""What rules need of the n x n matrix of squared distances, without touching the n x d data again.

Everything is computed from distances, never from uncentred inner products: those lose all digits where rows of norm
1e3 differ by 1e-4, and they change when all rows are moved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation.base import check_count
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates, measure_from

#: Values that differ by less than this share are equal up to rounding; the first of them wins.
TIE = 1e-12

#: The same for what comes from float32 products (also those of narrower rows).
TIE_SINGLE = 1e-6

#: Rows closer to a vector than this share of the squared norms are measured from their difference.
NEAR = 1e-2

#: Numbers held at a time where subsets are enumerated: 32 MB of float64 with the temporaries.
CHUNK = 2**20


def normalised(distances: Tensor) -> Tensor:
    """Squared distances over their median positive one, so that squares of them neither overflow nor vanish.

    The factor is a power of two, so that nothing is rounded; the median, so that an outlier does not drown the rest.
    """
    positive = distances[distances > 0]
    if not len(positive):
        return distances
    exponent = math.frexp(float(positive.median()))[1]
    # Twice half the exponent: the factor itself may be no legal number.
    half = torch.tensor(-(exponent // 2))
    rest = torch.tensor(-(exponent - exponent // 2))
    return torch.ldexp(torch.ldexp(distances, half), rest)


def rounding(dtype: torch.dtype) -> float:
    """The share by which values from rows of ``dtype`` may differ by rounding alone."""
    return TIE if dtype == torch.float64 else TIE_SINGLE


def typical_row(distances: Tensor) -> int:
    """The row with the least median distance to all rows, the first of several: fewer than half can not spoil it."""
    return int(distances.median(dim=1).values.argmin())


def distances_from_sum(products: Tensor, weights: Tensor) -> Tensor:
    """Squared distances [n] of all rows from the weighted sum of rows with ``weights`` [n] that add up to one."""
    at = products @ weights
    return (products.diagonal() - 2 * at + weights @ at).clamp(min=0)


def distances_from_vector(rows: Updates, vector: Tensor) -> Tensor:
    """Squared distances [n] of all rows from ``vector`` [d], with all digits also where they nearly coincide."""
    vector = vector.to(rows.device, rows.dtype)
    norms = rows.squared_norms()
    total = norms + vector.double().square().sum()
    distances = (total - 2 * rows.dot(vector)).clamp(min=0)
    measure_from(rows, vector, distances, distances < NEAR * total)
    return distances


def uniform(n: int, chosen: Tensor) -> Tensor:
    """Weights [n] of the mean of the rows ``chosen`` (indices)."""
    weights = torch.zeros(n, dtype=torch.float64, device=chosen.device)
    weights[chosen] = 1.0 / len(chosen)
    return weights


def mask(n: int, chosen: Tensor) -> Tensor:
    """Which of n rows are among ``chosen`` (indices): bool [n]."""
    answer = torch.zeros(n, dtype=torch.bool, device=chosen.device)
    answer[chosen] = True
    return answer


def subsets(n: int, k: int) -> Iterator[Tensor]:
    """All k-subsets of n rows in lexicographic order, as chunks of index rows [m, k]."""
    size = max(1, CHUNK // (n * n))
    every = itertools.combinations(range(n), k)
    while True:
        chunk = list(itertools.islice(every, size))
        if not chunk:
            return
        flat = np.fromiter(itertools.chain.from_iterable(chunk), dtype=np.int64, count=len(chunk) * k)
        yield torch.from_numpy(flat.reshape(-1, k))


def centred_products(distances: Tensor) -> Tensor:
    """Inner products [..., k, k] of rows minus their mean, from their squared distances [..., k, k]."""
    by_row = distances.mean(-1, keepdim=True)
    return (by_row + by_row.mT - distances - by_row.mean(-2, keepdim=True)) * 0.5


def check_stopping(owner: str, tolerance: float, iterations: int) -> None:
    """Raise unless ``tolerance`` is a number >= 0 and ``iterations`` a whole number >= 1."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ConfigError(f"{owner}: tolerance must be a number from 0 to below 1, got {tolerance!r}")
    check_count(owner, "max_iterations", iterations, least=1)
