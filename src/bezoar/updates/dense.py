"""Updates held in memory as one tensor (or memory-mapped)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import gram, squared_distances
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Needs, Updates, column_ranges, row_norms


class DenseUpdates(Updates):
    """A matrix [n, d] of floating point numbers; never changed.

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
        n = len(values)
        if clients is not None and clients.shape != (n,):
            raise ConfigError(f"clients must hold one id a row [{n}], got {list(clients.shape)}")
        self.values = values.detach()
        self._clients = torch.arange(n) if clients is None else clients
        self._layout = layout
        self._flaws = dict(flaws or {})
        self.offers = ~Needs.NONE if layout else ~Needs.LAYOUT

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.values.shape
        return n, d

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def clients(self) -> Tensor:
        return self._clients

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def flaws(self) -> Mapping[int, str]:
        return self._flaws

    def _squared_norms(self) -> Tensor:
        return row_norms(self.values)

    def _gram(self) -> Tensor:
        return gram(self.values)

    def _squared_distances(self) -> Tensor:
        return squared_distances(self.values)

    def dot(self, vector: Tensor) -> Tensor:
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for block in self.blocks():
            total += block.values.double() @ vector[block.start : block.stop].double()
        return total

    def combine(self, weights: Tensor) -> Tensor:
        wide = torch.float32 if self.dtype in (torch.float16, torch.bfloat16) else self.dtype
        if wide != self.dtype:
            parts = [weights.to(wide) @ block.values.to(wide) for block in self.blocks()]
            return torch.cat(parts, dim=-1).to(self.dtype)
        return weights.to(wide) @ self.values

    def columns(self, index: Tensor) -> Tensor:
        return self.values[:, index]

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        n, d = self.shape
        for start, stop in column_ranges(n, d, self.dtype.itemsize, max_bytes):
            yield Block(start, stop, self.values[:, start:stop])

    def select(self, rows: Tensor) -> DenseUpdates:
        return DenseUpdates(self.values[rows], self._clients[rows.to(self._clients.device)], self._layout)

    def materialise(self) -> Tensor:
        return self.values
