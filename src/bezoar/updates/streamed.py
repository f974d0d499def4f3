"""Updates too large to keep: every row is computed again when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bezoar.errors import UnsupportedError
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Needs, Updates, row_norms


class StreamedUpdates(Updates):
    """Rows from a function, one at a time; norms, dot products and weighted sums only.

    ``row(i)`` must give the same vector [d] at every call. Peak memory is a few rows; norms and the weighted sum
    each cost one pass over all clients.
    """

    offers = Needs.NORMS | Needs.DOT

    def __init__(self, row: Callable[[int], Tensor], like: Tensor, clients: Tensor, layout: Layout = ()) -> None:
        self._row = row
        self._like = like
        self._clients = clients
        self._layout = layout

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._clients), len(self._like)

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def clients(self) -> Tensor:
        return self._clients

    @property
    def layout(self) -> Layout:
        return self._layout

    def _squared_norms(self) -> Tensor:
        return torch.cat([row_norms(self._row(i)[None]) for i in range(len(self))])

    def _gram(self) -> Tensor:
        raise UnsupportedError("streamed updates have no Gram matrix; allow more memory to keep the rows")

    def dot(self, vector: Tensor) -> Tensor:
        wide = vector.double()
        return torch.stack([self._row(i).double() @ wide for i in range(len(self))])

    def combine(self, weights: Tensor) -> Tensor:
        weights = weights.to(self.device, self.dtype)
        total = torch.zeros((*weights.shape[:-1], self.shape[1]), dtype=self.dtype, device=self.device)
        for i in range(len(self)):
            if (weights[..., i] != 0).any():
                total += weights[..., i, None] * self._row(i)
        return total

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        raise UnsupportedError("streamed updates have no column blocks; allow more memory to keep the rows")

    def select(self, rows: Tensor) -> StreamedUpdates:
        chosen = rows.tolist()
        row = self._row
        kept = StreamedUpdates(lambda i: row(chosen[i]), self._like, self._clients[rows.cpu()], self._layout)
        return kept
