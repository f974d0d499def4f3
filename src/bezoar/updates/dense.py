"""Updates held in memory as one tensor (or memory-mapped)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.updates.base import Layout
from bezoar.updates.held import ChosenUpdates, HeldUpdates, weighted_sum


class DenseUpdates(HeldUpdates):
    """A matrix [n, d] of floating point numbers; never changed.

    >>> import torch
    >>> rows = DenseUpdates(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> rows.squared_norms()
    tensor([25.,  1.], dtype=torch.float64)
    """

    def __init__(
        self,
        values: Tensor,
        clients: Tensor | None = None,
        layout: Layout = (),
        flaws: Mapping[int, str] | None = None,
    ) -> None:
        if values.ndim != 2 or not values.is_floating_point():
            raise ConfigError(
                f"updates must be a floating point matrix [n, d], got {values.dtype} {list(values.shape)}"
            )
        n, d = values.shape
        super().__init__((n, d), values.dtype, values.device, clients, layout, flaws)
        self.values = values.detach()

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        return self.values[:, start:stop] if rows is None else self.values[rows, start:stop]

    def combine(self, weights: Tensor) -> Tensor:
        dense = int((weights != 0).sum()) * 2 > weights.numel()
        if dense and self.dtype.itemsize >= 4:
            return weighted_sum(weights.to(self.device, self.dtype), self.values)
        return super().combine(weights)

    def columns(self, index: Tensor) -> Tensor:
        return self.values[:, index]

    def select(self, rows: Tensor) -> ChosenUpdates:
        """The chosen rows without a copy."""
        return ChosenUpdates(self, rows)

    def materialise(self) -> Tensor:
        return self.values
