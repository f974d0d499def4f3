"""Linear layers with any number of positions between the sample and the feature dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.kernels.gram import powers, widened
from bezoar.updates.ghost.cohort import Cohort
from bezoar.updates.ghost.layer import Matrix, by_client, paired_norms

#: Beyond this many rows of A, products of all pairs take too much memory.
_MOST_POSITIONS = 4096


class LinearLayer(Matrix):
    """A is [N, T, D], B is [N, T, P]; a client's gradient is B^T A over its stacked samples and positions."""

    kind = nn.Linear
    mergeable = True

    def __init__(self, module: nn.Linear) -> None:
        self.units, self.width = module.out_features, module.in_features

    def inputs(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), -1, self.width)

    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        return b.reshape(len(a), -1, self.units)

    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        return _stacked(b, size).sum(1)

    def rows(self, a: Tensor, b: Tensor, size: int, first: int, last: int) -> Tensor:
        left = _stacked(b[..., first:last], size)
        return torch.bmm(left.transpose(1, 2), _stacked(a, size)).flatten(1)

    def total(self, a: Tensor, b: Tensor) -> Tensor:
        return (b.reshape(-1, self.units).T @ a.reshape(-1, self.width)).reshape(-1)

    def inner(self, a: Tensor, b: Tensor, vector: Tensor) -> Tensor:
        image = a @ vector.view(self.units, self.width).T
        return (image.double() * b.double()).sum((1, 2))

    def prefers_ghost(self, a: Tensor, b: Tensor, size: int) -> bool:
        return bool(2 * (size * a.shape[1]) ** 2 <= self.units * self.width)

    def ghost_norms(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        left, right = _stacked(a, size), _stacked(b, size)
        norms, doubt = paired_norms(_own_gram(left), _own_gram(right))
        if doubt.any():
            norms[doubt], _ = paired_norms(_own_gram(left[doubt].double()), _own_gram(right[doubt].double()))
        return norms

    def gram(self, a: Tensor, b: Tensor, cohort: Cohort) -> Tensor | None:
        n, positions = len(cohort), a.shape[0] * a.shape[1]
        from_rows = (positions + n**2) * self.units * self.width
        if positions > _MOST_POSITIONS or positions**2 * (self.units + self.width) > from_rows:
            return None
        (left, left_scales), (right, right_scales) = _scaled(a.flatten(0, 1)), _scaled(b.flatten(0, 1))
        scales = left_scales * right_scales
        products = (left @ left.T).double() * (right @ right.T).double() * scales[:, None] * scales
        # Sums over stretches, not products with an indicator matrix, which would spread a NaN to all clients.
        half = cohort.gather(by_client(products, a.shape[1]).sum(1))
        return cohort.gather(by_client(half.T, a.shape[1]).sum(1)).T


def _stacked(values: Tensor, size: int) -> Tensor:
    """[g * size, T, D] as [g, size * T, D]."""
    return values.reshape(-1, size * values.shape[1], values.shape[2])


def _own_gram(values: Tensor) -> Tensor:
    values = widened(values)
    return torch.bmm(values, values.transpose(1, 2))


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by powers of two near their largest entries, and these (float64)."""
    rows = widened(rows)
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1).double()
    scales = powers(largest)
    return (rows.double() * scales[:, None]).to(rows.dtype), 1 / scales
