"""Rows that are all moved by one vector, without touching the n x d data until a question needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import NEAR
from bezoar.kernels.spread import Spread
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Updates, measure_from


class Shifted(Updates):
    """``vector`` [d] added to every row of another updates: what weight decay does to gradients.

    Distances are those of the rows as they were; norms and the Gram matrix take one product with ``vector`` more.

    >>> from bezoar.updates import DenseUpdates
    >>> Shifted(DenseUpdates(torch.eye(2)), torch.tensor([2.0, 0.0])).squared_norms()
    tensor([9., 5.], dtype=torch.float64)
    """

    def __init__(self, base: Updates, vector: Tensor) -> None:
        if vector.shape != base.shape[1:]:
            raise ConfigError(f"vector must be [{base.shape[1]}], got {list(vector.shape)}")
        self.base = base
        self.vector = vector.to(base.device, base.dtype)
        self.offers = base.offers

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def clients(self) -> Tensor:
        return self.base.clients

    @property
    def layout(self) -> Layout:
        return self.base.layout

    @property
    def flaws(self) -> Mapping[int, str]:
        return self.base.flaws

    @property
    def _square(self) -> Tensor:
        return self.vector.double().square().sum()

    def _squared_norms(self) -> Tensor:
        total = self.base.squared_norms() + self._square
        norms = (total + 2 * self.base.dot(self.vector)).clamp(min=0)
        # Where row and vector nearly cancel, the difference of large numbers has no digits left.
        measure_from(self.base, -self.vector, norms, norms < NEAR * total)
        return norms

    def _gram(self) -> Tensor:
        along = self.base.dot(self.vector)
        gram = self.base.gram() + along[:, None] + along + self._square
        gram.diagonal().copy_(self.squared_norms())
        return gram

    def _squared_distances(self) -> Tensor:
        return self.base.squared_distances()

    def dot(self, vector: Tensor) -> Tensor:
        return self.base.dot(vector) + self.vector.double() @ vector.to(self.device, torch.float64)

    def combine(self, weights: Tensor) -> Tensor:
        mass = weights.to(self.device, torch.float64).sum(-1, keepdim=True)
        return self.base.combine(weights) + (mass * self.vector.double()).to(self.dtype)

    def columns(self, index: Tensor) -> Tensor:
        return self.base.columns(index) + self.vector[index]

    @property
    def spread(self) -> Spread:
        return self.base.spread

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._moved(self.base.blocks(max_bytes))

    def share(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._moved(self.base.share(max_bytes))

    def _moved(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            yield Block(block.start, block.stop, block.values + self.vector[block.start : block.stop])

    def select(self, rows: Tensor) -> Updates:
        return Shifted(self.base.select(rows), self.vector)
