"""The columns of one trainable tensor, for all clients: kept as rows, or held as layer inputs and output gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bezoar.kernels.gram import Tall, gram, widened
from bezoar.updates.base import column_ranges, row_norms
from bezoar.updates.ghost.cohort import Cohort
from bezoar.updates.ghost.layer import WORK_BYTES, Matrix

Pair = tuple[Tensor, Tensor]


class Part(ABC):
    """n clients (in places) by ``width`` columns."""

    width: int

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """float64 [n]."""

    @abstractmethod
    def gram(self, max_bytes: int) -> Tensor:
        """float64 [n, n]."""

    @abstractmethod
    def dot(self, vector: Tensor) -> Tensor:
        """Inner products with ``vector`` [width]: float64 [n]."""

    @abstractmethod
    def combine(self, weights: Tensor, ignored: Tensor | None) -> Tensor:
        """Sum of the rows times ``weights`` [n]: [width]; rows in ``ignored`` (bool [n]) count as zero, even NaN."""

    @abstractmethod
    def slices(self, max_bytes: int) -> Iterator[tuple[int, int, Tensor]]:
        """Columns from the left: start, stop and values [n, stop - start]."""


class Rows(Part):
    """Kept in memory: ``values`` [n, width]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.width = values.shape[1]

    def squared_norms(self) -> Tensor:
        return row_norms(self.values)

    def gram(self, max_bytes: int) -> Tensor:
        return gram(Tall(self.values), self.squared_norms())

    def dot(self, vector: Tensor) -> Tensor:
        total = torch.zeros(len(self.values), dtype=torch.float64, device=self.values.device)
        for start, stop, values in self.slices(WORK_BYTES):
            total += values.double() @ vector[start:stop].double()
        return total

    def combine(self, weights: Tensor, ignored: Tensor | None) -> Tensor:
        values = self.values
        if ignored is not None:
            values, weights = values[~ignored], weights[~ignored]
        return (weights.to(widened(values).dtype) @ widened(values)).to(values.dtype)

    def slices(self, max_bytes: int) -> Iterator[tuple[int, int, Tensor]]:
        n, itemsize = len(self.values), self.values.element_size()
        for start, stop in column_ranges(n, self.width, itemsize, max_bytes):
            yield start, stop, self.values[:, start:stop]


class Held(Part):
    """Held as pairs of A and B, one for each time the layer was called (none: its output was not used)."""

    def __init__(self, layer: Matrix, pairs: Sequence[Pair], cohort: Cohort, like: Tensor) -> None:
        self.layer, self.pairs, self.cohort = layer, tuple(pairs), cohort
        self.width = layer.units * layer.width
        self.like = like

    def squared_norms(self) -> Tensor:
        if not self.pairs:
            return self.like.new_zeros(len(self.cohort), dtype=torch.float64)
        return torch.cat([self._norms(group_first) for group_first in range(len(self.cohort.groups))])

    def _norms(self, index: int) -> Tensor:
        group, layer = self.cohort.groups[index], self.layer
        if len(self.pairs) == 1:
            a, b = self.pairs[0]
            if layer.prefers_ghost(a, b, group.size):
                return layer.ghost_norms(a[group.samples], b[group.samples], group.size)
        bytes_per_client = self.width * self.like.element_size()
        norms = []
        for piece in group.pieces(bytes_per_client, 4 * WORK_BYTES):
            rows = [layer.rows(a[piece.samples], b[piece.samples], piece.size, 0, layer.units) for a, b in self.pairs]
            norms.append(row_norms(_sum(rows)))
        return torch.cat(norms)

    def gram(self, max_bytes: int) -> Tensor:
        n = len(self.cohort)
        if len(self.pairs) == 1:
            direct = self.layer.gram(*self.pairs[0], self.cohort)
            if direct is not None:
                return direct
        total = self.like.new_zeros(n, n, dtype=torch.float64)
        if self.pairs:
            for _, _, values in self.slices(max_bytes):
                total += gram(Tall(values), row_norms(values))
        return total

    def dot(self, vector: Tensor) -> Tensor:
        total = self.like.new_zeros(len(self.cohort), dtype=torch.float64)
        for a, b in self.pairs:
            total += self.cohort.gather(self.layer.inner(a, b, vector))
        return total

    def combine(self, weights: Tensor, ignored: Tensor | None) -> Tensor:
        if not self.pairs:
            return self.like.new_zeros(self.width)
        per_sample = self.cohort.spread(weights)
        parts = []
        for a, b in self.pairs:
            if ignored is not None:
                a, b = self._without(ignored, a), self._without(ignored, b)
            scaled = (widened(b) * _column(per_sample, b).to(widened(b).dtype)).to(b.dtype)
            parts.append(self.layer.total(a, scaled))
        return _sum(parts)

    def _without(self, ignored: Tensor, values: Tensor) -> Tensor:
        return values.masked_fill(_column(self.cohort.spread(ignored), values), 0)

    def slices(self, max_bytes: int) -> Iterator[tuple[int, int, Tensor]]:
        layer, n = self.layer, len(self.cohort)
        itemsize = self.like.element_size()
        units = max(1, max_bytes // max(1, n * layer.width * itemsize))
        for first in range(0, layer.units, units):
            last = min(first + units, layer.units)
            values = self._rows(first, last)
            # A single unit can be too wide for the caller, although not for us.
            for start, stop in column_ranges(n, values.shape[1], itemsize, max_bytes):
                yield first * layer.width + start, first * layer.width + stop, values[:, start:stop]

    def _rows(self, first: int, last: int) -> Tensor:
        if not self.pairs:
            return self.like.new_zeros(1, 1).expand(len(self.cohort), (last - first) * self.layer.width)
        return _sum([rows_of(self.layer, a, b, self.cohort, first, last) for a, b in self.pairs])


class Added(Part):
    """The columns of a tensor that several layers share: the sum of what each of them contributes.

    Cross terms between the layers count, so norms and inner products come from rows, some columns at a time.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.width = self.parts[0].width

    def squared_norms(self) -> Tensor:
        return _sum([row_norms(values) for _, _, values in self.slices(4 * WORK_BYTES)])

    def gram(self, max_bytes: int) -> Tensor:
        return _sum([gram(Tall(values), row_norms(values)) for _, _, values in self.slices(max_bytes)])

    def dot(self, vector: Tensor) -> Tensor:
        return _sum([part.dot(vector) for part in self.parts])

    def combine(self, weights: Tensor, ignored: Tensor | None) -> Tensor:
        return _sum([part.combine(weights, ignored) for part in self.parts])

    def slices(self, max_bytes: int) -> Iterator[tuple[int, int, Tensor]]:
        streams = [part.slices(max_bytes) for part in self.parts]
        held = [next(stream) for stream in streams]
        start = 0
        while True:
            stop = min(last for _, last, _ in held)
            yield start, stop, _sum([values[:, start - first : stop - first] for first, _, values in held])
            if stop == self.width:
                return
            start = stop
            held = [next(stream) if piece[1] == stop else piece for stream, piece in zip(streams, held, strict=True)]


def rows_of(layer: Matrix, a: Tensor, b: Tensor, cohort: Cohort, first: int = 0, last: int | None = None) -> Tensor:
    """Weight gradients of all clients, units ``first`` to ``last``: [n, ...]."""
    stop = layer.units if last is None else last
    parts = [layer.rows(a[g.samples], b[g.samples], g.size, first, stop) for g in cohort.groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.ndim - 1))
