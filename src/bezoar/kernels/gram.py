"""Inner products and distances of all pairs of rows, exact where it matters and safe from overflow.

Chunks of columns are multiplied in the rows' own precision and summed in float64. Rows are first scaled by powers
of two (exact), so that 1e30 neither overflows float32 nor drowns its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Columns multiplied at a time: products of this many float32 terms keep about six digits.
CHUNK = 16384

#: Pairs closer than this share of their squared norms are measured again from their difference.
NEAR = 1e-4


def _scales(values: Tensor) -> Tensor:
    """A power of two per row that brings its largest entry to about one (one for zero or non-finite rows)."""
    largest = torch.linalg.vector_norm(values, ord=torch.inf, dim=1).double()
    usable = torch.isfinite(largest) & (largest > 0)
    exponent = torch.frexp(torch.where(usable, largest, torch.ones_like(largest))).exponent
    return torch.ldexp(torch.ones_like(largest), -exponent.clamp(min=-1000))


def _multiply(values: Tensor, scales: Tensor, centre: int | None) -> Tensor:
    """Inner products of the rows (minus row ``centre`` if given), times scales_i * scales_j: float64 [n, n]."""
    n, d = values.shape
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    total = torch.zeros(n, n, dtype=torch.float64, device=values.device)
    for start in range(0, d, CHUNK):
        part = values[:, start : start + CHUNK].to(wide)
        if centre is not None:
            # Halving first keeps the difference of two huge numbers of opposite sign finite.
            part = part * 0.5 - part[centre] * 0.5
        part = (part.double() * scales[:, None]).to(wide)
        total += part @ part.T
    return total


def gram(values: Tensor) -> Tensor:
    """Inner products of all pairs of rows of ``values`` [n, d]: float64 [n, n]."""
    scales = _scales(values)
    return _multiply(values, scales, None) / scales[:, None] / scales[None, :]


def squared_distances(values: Tensor) -> Tensor:
    """Squared distances of all pairs of rows of ``values`` [n, d]: float64 [n, n].

    The rows are centred on a row of median norm (never on the mean, which one huge row ruins), and pairs that
    nearly coincide are measured from their difference in float64.
    """
    n, _ = values.shape
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
    centre = int(torch.argsort(norms, stable=True)[n // 2])
    half_spread = torch.stack(
        [torch.linalg.vector_norm(row.double() * 0.5 - values[centre].double() * 0.5, ord=torch.inf) for row in values]
    )
    usable = torch.isfinite(half_spread) & (half_spread > 0)
    exponent = torch.frexp(torch.where(usable, half_spread, torch.ones_like(half_spread))).exponent
    scales = torch.ldexp(torch.ones_like(half_spread), -exponent.clamp(min=-1000))
    products = _multiply(values, scales, centre) / scales[:, None] / scales[None, :] * 4
    size = products.diagonal()
    distances = (size[:, None] + size[None, :] - 2 * products).clamp_(min=0).fill_diagonal_(0)
    near = distances < NEAR * (size[:, None] + size[None, :])
    for i, j in torch.triu(near, diagonal=1).nonzero().tolist():
        exact = (values[i].double() - values[j].double()).square().sum()
        distances[i, j] = distances[j, i] = exact
    return distances
