"""Updates whose entries can be read again and again: a matrix in memory, or rows each somewhere else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import CHUNK, SAFE, gram, ranges, squared_distances, squared_norms, wide_type
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Needs, Updates, column_ranges

#: So many rows are added up in float32 at most.
ROWS = 256


class HeldUpdates(Updates):
    """All answers from reading ranges of columns; subclasses say how to read one."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        clients: Tensor | None,
        layout: Layout,
        flaws: Mapping[int, str] | None,
    ) -> None:
        n, _ = shape
        if clients is not None and clients.shape != (n,):
            raise ConfigError(f"clients must hold one id a row [{n}], got {list(clients.shape)}")
        self._shape, self._dtype, self._device = shape, dtype, device
        self._clients = torch.arange(n) if clients is None else clients
        self._layout = layout
        self._flaws = dict(flaws or {})
        self.offers = ~Needs.NONE if layout else ~Needs.LAYOUT

    @abstractmethod
    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        """Columns ``start`` to ``stop`` of all rows, or of ``rows`` [m]: [n or m, stop - start], not to be changed."""

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

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
        return squared_norms(self)

    def _gram(self) -> Tensor:
        return gram(self, self.squared_norms())

    def _squared_distances(self) -> Tensor:
        return squared_distances(self, self.squared_norms())

    def dot(self, vector: Tensor) -> Tensor:
        norms, size = self.squared_norms(), vector.double().square().sum()
        low, high = SAFE
        legal = bool(((norms < high) | ~torch.isfinite(norms)).all()) and bool((norms.min() > low) & (size > low))
        wide = torch.float32 if self.dtype != torch.float64 and legal and bool(size < high) else torch.float64
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for start, stop in ranges(self.shape[1], CHUNK):
            total += self.part(start, stop).to(wide) @ vector[start:stop].to(wide)
        return total

    def combine(self, weights: Tensor) -> Tensor:
        wide = wide_type(self.dtype)
        weights = weights.to(self.device, wide)
        used = weights.reshape(-1, len(self)).any(0)
        # Selections read what they select only, and keep its bits.
        rows = used.nonzero().flatten() if 2 * int(used.sum()) <= len(self) else None
        if rows is not None:
            weights = weights[..., rows]
        d = self.shape[1]
        answer = torch.empty(*weights.shape[:-1], d, dtype=self.dtype, device=self.device)
        for start, stop in ranges(d, CHUNK):
            answer[..., start:stop] = weighted_sum(weights, self.part(start, stop, rows).to(wide))
        return answer

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        n, d = self.shape
        for start, stop in column_ranges(n, d, self.dtype.itemsize, max_bytes):
            yield Block(start, stop, self.part(start, stop))


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """``weights`` [n] or [k, n] times ``values`` [n, w]; the sums of many rows are added up in float64."""
    if values.dtype == torch.float64 or len(values) <= ROWS:
        return weights @ values
    total: Tensor | float = 0.0
    for some, part in zip(torch.split(weights, ROWS, dim=-1), torch.split(values, ROWS), strict=True):
        total = total + (some @ part).double()
    return torch.as_tensor(total).to(values.dtype)


class ChosenUpdates(HeldUpdates):
    """Some rows of other updates, in a given order; the others are never read and nothing is copied."""

    def __init__(self, base: HeldUpdates, rows: Tensor) -> None:
        clients = base.clients[rows.to(base.clients.device)]
        flaws = {new: base.flaws[old] for new, old in enumerate(rows.tolist()) if old in base.flaws}
        super().__init__((len(rows), base.shape[1]), base.dtype, base.device, clients, base.layout, flaws)
        self._base, self._rows = base, rows.to(base.device)

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        return self._base.part(start, stop, self._rows if rows is None else self._rows[rows.to(self._rows.device)])

    def columns(self, index: Tensor) -> Tensor:
        return self._base.columns(index)[self._rows]

    def select(self, rows: Tensor) -> ChosenUpdates:
        return ChosenUpdates(self._base, self._rows[rows.to(self._rows.device)])


class RowUpdates(HeldUpdates):
    """Rows that lie anywhere, each in pieces: memory-mapped files, a client's named parameters; nothing is copied.

    ``rows[i]`` holds the pieces of row i, flat tensors whose lengths are ``lengths``; None is a missing row, which
    counts as not finite.

    >>> RowUpdates([[torch.tensor([3.0]), torch.tensor([4.0])], [torch.ones(1), torch.zeros(1)]]).squared_norms()
    tensor([25.,  1.], dtype=torch.float64)
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Tensor] | None],
        dtype: torch.dtype | None = None,
        clients: Tensor | None = None,
        layout: Layout = (),
        flaws: Mapping[int, str] | None = None,
    ) -> None:
        like = next((row for row in rows if row is not None), None)
        if like is None or sum(map(len, like)) == 0:
            raise ConfigError("updates hold no parameters: at least one row and d >= 1 are needed")
        self._lengths = [len(piece) for piece in like]
        for i, row in enumerate(rows):
            if row is not None and [len(piece) for piece in row] != self._lengths:
                raise ConfigError(f"row {i} has pieces of other lengths than the first row")
        self._rows = [None if row is None else [piece.detach() for piece in row] for row in rows]
        shape = len(rows), sum(self._lengths)
        super().__init__(shape, dtype or like[0].dtype, like[0].device, clients, layout, flaws)

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        chosen = self._rows if rows is None else [self._rows[i] for i in rows.tolist()]
        values = torch.empty(len(chosen), stop - start, dtype=self.dtype, device=self.device)
        at = 0
        for k, length in enumerate(self._lengths):
            low, high = max(start, at), min(stop, at + length)
            if low < high:
                for i, row in enumerate(chosen):
                    values[i, low - start : high - start] = torch.nan if row is None else row[k][low - at : high - at]
            at += length
        return values

    def columns(self, index: Tensor) -> Tensor:
        values = torch.empty(len(self), len(index), dtype=self.dtype, device=self.device)
        at = 0
        for k, length in enumerate(self._lengths):
            inside = (index >= at) & (index < at + length)
            if inside.any():
                for i, row in enumerate(self._rows):
                    values[i, inside] = torch.nan if row is None else row[k][index[inside] - at].to(self.dtype)
            at += length
        return values

    def select(self, rows: Tensor) -> RowUpdates:
        chosen = rows.tolist()
        clients = self._clients[rows.to(self._clients.device)]
        flaws = {new: self._flaws[old] for new, old in enumerate(chosen) if old in self._flaws}
        return RowUpdates([self._rows[i] for i in chosen], self.dtype, clients, self._layout, flaws)
