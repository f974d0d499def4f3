"""Rows mixed by a matrix, without touching the n x d data until a question needs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import NEAR, SPREAD, between, measure_again, products_about, typical, widened
from bezoar.kernels.spread import Spread
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Updates, refine_distances
from bezoar.updates.held import HeldUpdates


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

    @cached_property
    def _flat(self) -> tuple[Updates, Tensor]:
        """The rows that are not mixed themselves, and all mixings of them in one matrix."""
        if not isinstance(self.base, Mixed):
            return self.base, self.matrix
        root, inner = self.base._flat
        if inner.ndim == 1:
            return root, self.matrix * inner
        return root, self.matrix[:, None] * inner if self.scales_rows else self.matrix @ inner

    def _squared_norms(self) -> Tensor:
        if self.scales_rows:
            return self.matrix.square() * self.base.squared_norms()
        return self.gram().diagonal().clamp(min=0)

    def _gram(self) -> Tensor:
        root, matrix = self._flat
        gram = root.gram()
        return matrix[:, None] * gram * matrix if matrix.ndim == 1 else matrix @ gram @ matrix.T

    def _squared_distances(self) -> Tensor:
        """From the root's distances, so that rows far from zero but close together keep their digits."""
        root, matrix = self._flat
        norms = root.squared_norms()
        c = typical(norms)
        if not norms.max() <= SPREAD**2 * norms[c]:
            return refine_distances(between(self.gram()), self.squared_norms(), self)
        matrix = matrix.diag() if matrix.ndim == 1 else matrix
        distances = root.squared_distances()
        # Equal rows count as one, so that what is mixed alike from them stays exactly equal.
        first = (distances == 0).to(torch.int8).argmax(1)
        matrix = torch.zeros_like(matrix).index_add(1, first, matrix)
        # Inner products of the root's rows minus row c, with row c, and row c's own.
        products = products_about(distances, c)
        along = (norms - products.diagonal() - norms[c]) * 0.5
        # Mixed rows minus a multiple of row c, the same for all: what is left of row c is their difference in mass.
        mass = matrix.sum(1)
        mass = mass - mass.sort().values[len(mass) // 2]
        mixed = matrix @ along
        products = matrix @ products @ matrix.T + mass[:, None] * mixed + mixed[:, None] * mass
        products += norms[c] * mass[:, None] * mass
        distances, size = between(products), products.diagonal().abs()
        _, kind = torch.unique(matrix, dim=0, return_inverse=True)
        same = kind[:, None] == kind
        # Norms of float32 rows have seven digits, and differences in mass multiply what they lack.
        error = 1e-6 * norms[c] * (mass[:, None] - mass).abs() * matrix.abs().sum(1).max()
        near = (distances < NEAR * (size[:, None] + size[None, :]) + 1e2 * error) & ~same
        distances = distances.masked_fill(same, 0.0)
        if isinstance(root, HeldUpdates):
            measure_again(_Differences(root, matrix), root.shape[1], distances, near)
        elif near.any():
            distances = refine_distances(distances, size, self)
        return distances

    def dot(self, vector: Tensor) -> Tensor:
        dots = self.base.dot(vector)
        return self.matrix * dots if self.scales_rows else self.matrix @ dots

    def combine(self, weights: Tensor) -> Tensor:
        root, matrix = self._flat
        weights = weights.to(matrix.device, torch.float64)
        return root.combine(weights * matrix if matrix.ndim == 1 else weights @ matrix)

    def columns(self, index: Tensor) -> Tensor:
        root, matrix = self._flat
        return _mix(matrix, root.columns(index))

    @property
    def spread(self) -> Spread:
        return self.base.spread

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._mixed(self._flat[0].blocks(self._room(max_bytes)))

    def share(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        return self._mixed(self._flat[0].share(self._room(max_bytes)))

    def _room(self, max_bytes: int) -> int:
        """How large the root's blocks may be for ours not to exceed ``max_bytes``."""
        root = self._flat[0]
        return max_bytes * len(root) // max(len(self), len(root))

    def _mixed(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            yield Block(block.start, block.stop, _mix(self._flat[1], block.values))

    def select(self, rows: Tensor) -> Updates:
        if self.scales_rows:
            return Mixed(self.base.select(rows), self.matrix[rows], self._clients[rows.cpu()])
        return Mixed(self.base, self.matrix[rows], self._clients[rows.cpu()])


def _mix(matrix: Tensor, values: Tensor) -> Tensor:
    wide = widened(values)
    matrix = matrix.to(wide.dtype)
    mixed = matrix[:, None] * wide if matrix.ndim == 1 else matrix @ wide
    return mixed.to(values.dtype)


@dataclass(frozen=True)
class _Differences:
    """Mixed rows minus the first of them, from the root's rows minus the one that is heaviest in the first.

    Rows far from zero but close together differ in digits that a product with rounded weights would lose.
    """

    root: HeldUpdates
    matrix: Tensor

    def __call__(self, start: int, stop: int, rows: Tensor) -> Tensor:
        values = widened(self.root.part(start, stop))
        weights = self.matrix[rows] - self.matrix[rows[0]]
        common = values[int(self.matrix[rows[0]].abs().argmax())]
        return weights.to(values.dtype) @ (values - common) + weights.sum(1).to(values.dtype)[:, None] * common
