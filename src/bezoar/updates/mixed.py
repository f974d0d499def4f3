"""Rows mixed by a matrix, without touching the n x d data until a question needs it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Updates


class Mixed(Updates):
    """``matrix`` applied to another updates: row i is the sum over j of matrix[i, j] times row j.

    ``matrix`` is [m, n], or [n] to scale every row by a number of its own; then norms need no Gram matrix. As many
    rows as before keep their client ids; fewer (buckets) are numbered anew unless ``clients`` [m] names them.

    >>> from bezoar.updates import DenseUpdates
    >>> Mixed(DenseUpdates(torch.eye(2)), torch.tensor([2.0, 3.0])).squared_norms()
    tensor([4., 9.], dtype=torch.float64)
    """

    def __init__(self, base: Updates, matrix: Tensor, clients: Tensor | None = None) -> None:
        if matrix.ndim not in (1, 2) or matrix.shape[-1] != len(base):
            raise ConfigError(f"matrix must be [{len(base)}] or [m, {len(base)}], got {list(matrix.shape)}")
        self.base = base
        self.matrix = matrix.to(base.device, torch.float64)
        self.offers = base.offers
        same = len(self.matrix) == len(base)
        self._clients = clients if clients is not None else base.clients if same else torch.arange(len(self.matrix))

    @property
    def scales_rows(self) -> bool:
        """Whether every row is only scaled."""
        return self.matrix.ndim == 1

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.matrix), self.base.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def clients(self) -> Tensor:
        return self._clients

    @property
    def layout(self) -> Layout:
        return self.base.layout

    def _squared_norms(self) -> Tensor:
        if self.scales_rows:
            return self.matrix.square() * self.base.squared_norms()
        return self.gram().diagonal().clamp(min=0)

    def _gram(self) -> Tensor:
        gram = self.base.gram()
        if self.scales_rows:
            return self.matrix[:, None] * gram * self.matrix
        return self.matrix @ gram @ self.matrix.T

    def dot(self, vector: Tensor) -> Tensor:
        dots = self.base.dot(vector)
        return self.matrix * dots if self.scales_rows else self.matrix @ dots

    def combine(self, weights: Tensor) -> Tensor:
        weights = weights.to(torch.float64)
        return self.base.combine(weights * self.matrix if self.scales_rows else weights @ self.matrix)

    def columns(self, index: Tensor) -> Tensor:
        return self._mix(self.base.columns(index))

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        for block in self.base.blocks(max_bytes * len(self.base) // max(len(self), len(self.base))):
            yield Block(block.start, block.stop, self._mix(block.values))

    def select(self, rows: Tensor) -> Updates:
        if self.scales_rows:
            return Mixed(self.base.select(rows), self.matrix[rows])
        return Mixed(self.base, self.matrix[rows], self._clients[rows.cpu()])

    def _mix(self, values: Tensor) -> Tensor:
        wide = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
        matrix = self.matrix.to(wide)
        mixed = matrix[:, None] * values.to(wide) if self.scales_rows else matrix @ values.to(wide)
        return mixed.to(values.dtype)
