"""Clients' count sketches as rows: what a server sees where clients send tables instead of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.count_sketch import CountSketch
from bezoar.kernels.gram import Tall, squared_norms
from bezoar.updates.base import BLOCK_BYTES, Block, Needs
from bezoar.updates.held import HeldUpdates

Norm = Literal["median", "max"]


class SketchUpdates(HeldUpdates):
    """Tables [n, r, c] of n clients, or [n, r c], as updates of r c parameters; never changed.

    Weighted sums are exact: the sketch of the clients' weighted sum. Norms are estimates of the norms of the vectors
    behind the tables: every row's squared norm is one (relative standard deviation at most sqrt(4 / c)), and the answer
    is their median, or with ``norm="max"`` the largest. So ``Clip(5) >> Mean()`` clips what it believes to be longer
    than 5. Clients make their own tables, and need not send the sketch of any vector: fewer than half of a table's rows
    can be of any size without an effect on the median. With ``"max"`` no row of a table exceeds the radius, at the
    price of clipping honest ones slightly more.

    Other questions are refused, because a cell is no parameter: it sums many, with signs. ``cells=True`` answers all of
    them about the plain matrix of cells, norms included; these are sqrt(r) times those of the vectors, and so is what a
    clipping radius means.

    >>> from bezoar.aggregation import Clip, Mean
    >>> sketch = CountSketch(d=6, rows=3, columns=500)
    >>> tables = torch.stack([sketch.insert(torch.eye(6)[i] * 10) for i in (1, 4)])
    >>> mean = (Clip(5.0) >> Mean())(SketchUpdates(tables, sketch))
    >>> sketch.heavy_hitters(mean.reshape(3, 500), k=2)
    (tensor([1, 4]), tensor([2.5000, 2.5000]))
    """

    def __init__(
        self,
        tables: Tensor,
        sketch: CountSketch,
        clients: Tensor | None = None,
        *,
        norm: Norm = "median",
        cells: bool = False,
    ) -> None:
        wanted = (sketch.rows, sketch.columns)
        fits = tables.ndim in (2, 3) and tuple(tables.shape[1:]) in (wanted, (sketch.cells,))
        if not fits or not len(tables) or not tables.is_floating_point():
            raise ConfigError(
                f"sketches must be floating point tables [n, {sketch.rows}, {sketch.columns}] of n >= 1 clients, "
                f"got {tables.dtype} {list(tables.shape)}"
            )
        if norm not in ("median", "max"):
            raise ConfigError(f"sketches: norm must be 'median' or 'max', got {norm!r}")
        super().__init__((len(tables), sketch.cells), tables.dtype, tables.device, clients, (), None)
        self.tables = tables.detach().reshape(len(tables), sketch.cells)
        self.sketch = sketch
        self._norm: Norm = norm
        self._cells = cells
        self.offers = ~Needs.LAYOUT if cells else Needs.NORMS

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        return self.tables[:, start:stop] if rows is None else self.tables[rows, start:stop]

    def row_norms(self) -> Tensor:
        """Squared norm of every row of every table: float64 [n, r]."""
        n, (rows, columns) = len(self), (self.sketch.rows, self.sketch.columns)
        return squared_norms(Tall(self.tables.reshape(n * rows, columns))).reshape(n, rows)

    def _squared_norms(self) -> Tensor:
        each = self.row_norms()
        if self._cells:
            return each.sum(1)
        found = each.max(1).values if self._norm == "max" else _median(each)
        # One cell that is not finite spoils the sum: no median may hide it.
        return torch.where(torch.isfinite(each).all(1), found, torch.inf)

    def _gram(self) -> Tensor:
        self.require(Needs.GRAM, "a rule on sketches")
        return super()._gram()

    def _squared_distances(self) -> Tensor:
        self.require(Needs.GRAM, "a rule on sketches")
        return super()._squared_distances()

    def dot(self, vector: Tensor) -> Tensor:
        self.require(Needs.DOT, "a rule on sketches")
        return super().dot(vector)

    def columns(self, index: Tensor) -> Tensor:
        self.require(Needs.COLUMNS, "a rule on sketches")
        return self.tables[:, index]

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        self.require(Needs.BLOCKS, "a rule on sketches")
        return super().blocks(max_bytes)

    def materialise(self) -> Tensor:
        return self.tables

    def select(self, rows: Tensor) -> SketchUpdates:
        clients = self.clients[rows.to(self.clients.device)]
        kept = self.tables[rows.to(self.device)]
        return SketchUpdates(kept, self.sketch, clients, norm=self._norm, cells=self._cells)


def _median(values: Tensor) -> Tensor:
    """The median of every row [n, r]; for even r, the mean of the middle two."""
    ordered = values.sort(1).values
    last = values.shape[1] - 1
    return (ordered[:, last // 2] + ordered[:, (last + 1) // 2]) / 2
