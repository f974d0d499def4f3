"""Client gradients of one step, asked for without being stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError
from bezoar.kernels.bits import checksum
from bezoar.kernels.gram import NEAR, between, widened
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Needs, Updates, row_norms
from bezoar.updates.ghost.cohort import Cohort
from bezoar.updates.ghost.layer import WORK_BYTES
from bezoar.updates.ghost.parts import Part

#: More weighted sums than this at once are formed from rows instead of one by one.
_ONE_BY_ONE = 2


class Watch:
    """Notices that parameters changed, also where they are views whose owner was changed behind their back."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)
        self.seen = self._look()

    def _look(self) -> tuple[tuple[int, ...], tuple[int, ...], Tensor]:
        values = [checksum(p.detach()) for p in self.parameters]
        return (
            tuple(p._version for p in self.parameters),
            tuple(p.data_ptr() for p in self.parameters),
            torch.stack(values),
        )

    def check(self) -> None:
        """Raise RuntimeError if a parameter changed."""
        versions, places, values = self._look()
        if versions != self.seen[0] or places != self.seen[1] or not torch.equal(values, self.seen[2]):
            raise RuntimeError(
                "the model's parameters changed after these client gradients were taken: "
                "ask for everything first (or call materialise()), then update the model"
            )


class GhostUpdates(Updates):
    """Gradients of n clients' mean losses, known through layer inputs and output gradients of one backward pass.

    Made by :func:`bezoar.updates.client_gradients`. Weights of some layers are held as inputs A and output
    gradients B; the others, small ones, as rows. The n x d matrix is never stored. A client is one sample: all
    products between its own samples count. Using it after the parameters changed is a RuntimeError.

    Bu, Wang, Zha, Karypis: Differentially Private Optimization on Large Model at Small Cost, ICML 2023
    (book-keeping), extended from samples to clients.
    """

    offers = ~Needs.NONE

    def __init__(self, parts: Sequence[Part], cohort: Cohort, layout: Layout, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._parts, self._cohort, self._layout = tuple(parts), cohort, layout
        self._dtype, self._device = parameters[0].dtype, parameters[0].device
        self._watch = Watch(parameters)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._cohort), self._layout[-1].stop

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def clients(self) -> Tensor:
        return self._cohort.ids

    @property
    def layout(self) -> Layout:
        return self._layout

    def _squared_norms(self) -> Tensor:
        self._watch.check()
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for part in self._parts:
            total += part.squared_norms()
        return self._cohort.to_rows(total)

    def _gram(self) -> Tensor:
        self._watch.check()
        total = torch.zeros(len(self), len(self), dtype=torch.float64, device=self.device)
        for part in self._parts:
            total += part.gram(BLOCK_BYTES)
        return self._cohort.to_rows(self._cohort.to_rows(total), dim=1)

    def _squared_distances(self) -> Tensor:
        """As in the base class, but all close pairs are measured in one pass over the columns."""
        distances, norms = between(self.gram()), self.squared_norms()
        near = distances < NEAR * (norms[:, None] + norms[None, :])
        first, second = torch.triu(near, diagonal=1).nonzero(as_tuple=True)
        if len(first):
            exact = torch.zeros(len(first), dtype=torch.float64, device=self.device)
            for block in self.blocks():
                step = max(1, WORK_BYTES // max(1, block.values[0].nbytes))
                for at in range(0, len(first), step):
                    i, j = first[at : at + step], second[at : at + step]
                    exact[at : at + step] += row_norms(widened(block.values[i]) - widened(block.values[j]))
            distances[first, second] = distances[second, first] = exact
        return distances

    def dot(self, vector: Tensor) -> Tensor:
        self._watch.check()
        if vector.shape != (self.shape[1],):
            raise ConfigError(f"vector must be [{self.shape[1]}], got {list(vector.shape)}")
        # A power of two keeps products with huge vectors finite.
        exponent = torch.frexp(torch.linalg.vector_norm(vector.double(), ord=torch.inf)).exponent
        scaled = torch.ldexp(vector.to(self.device, torch.float64), -exponent).to(self.dtype)
        total = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for part, segment in zip(self._parts, self._layout, strict=True):
            total += part.dot(scaled[segment.start : segment.stop])
        return self._cohort.to_rows(torch.ldexp(total, exponent))

    def combine(self, weights: Tensor) -> Tensor:
        return self.combine_without(weights, None)

    def combine_without(self, weights: Tensor, ignored: Tensor | None) -> Tensor:
        """``combine`` where the rows in ``ignored`` (bool [n], with weight zero) count as zero even if not finite."""
        self._watch.check()
        n, d = self.shape
        if weights.ndim not in (1, 2) or weights.shape[-1] != n:
            raise ConfigError(f"weights must be [{n}] or [k, {n}], got {list(weights.shape)}")
        weights = self._cohort.to_places(weights.to(self.device, torch.float64))
        if ignored is not None:
            ignored = self._cohort.to_places(ignored)
        rows = weights.reshape(-1, n)
        out = torch.empty(len(rows), d, dtype=self.dtype, device=self.device)
        for part, segment in zip(self._parts, self._layout, strict=True):
            target = out[:, segment.start : segment.stop]
            if len(rows) <= _ONE_BY_ONE:
                for i, row in enumerate(rows):
                    target[i] = part.combine(row, ignored)
                continue
            for start, stop, values in part.slices(BLOCK_BYTES):
                clean = values if ignored is None else values.masked_fill(ignored[:, None], 0)
                target[:, start:stop] = rows.to(widened(clean).dtype) @ widened(clean)
        return out.view(*weights.shape[:-1], d)

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        waiting: list[Tensor] = []
        start = stop = 0
        bytes_per_column = len(self) * self.dtype.itemsize
        # Only while somebody else has the word can parameters change: not for every one of hundreds of layers.
        self._watch.check()
        for part in self._parts:
            for _, _, values in part.slices(max_bytes):
                if waiting and (stop - start + values.shape[1]) * bytes_per_column > max_bytes:
                    yield self._block(start, stop, waiting)
                    self._watch.check()
                    waiting, start = [], stop
                waiting.append(values)
                stop += values.shape[1]
        if waiting:
            yield self._block(start, stop, waiting)

    def _block(self, start: int, stop: int, parts: list[Tensor]) -> Block:
        values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return Block(start, stop, self._cohort.to_rows(values))

    def select(self, rows: Tensor) -> Updates:
        return Selected(self, rows)


class Selected(Updates):
    """Some rows of a :class:`GhostUpdates`, by index; the others never influence an answer."""

    offers = ~Needs.NONE

    def __init__(self, base: GhostUpdates, rows: Tensor) -> None:
        self.base = base
        self.rows = rows.to(base.device)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.base.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def clients(self) -> Tensor:
        return self.base.clients[self.rows.to(self.base.clients.device)]

    @property
    def layout(self) -> Layout:
        return self.base.layout

    def _squared_norms(self) -> Tensor:
        return self.base.squared_norms()[self.rows]

    def _gram(self) -> Tensor:
        return self.base.gram()[self.rows][:, self.rows]

    def _squared_distances(self) -> Tensor:
        return self.base.squared_distances()[self.rows][:, self.rows]

    def dot(self, vector: Tensor) -> Tensor:
        return self.base.dot(vector)[self.rows]

    def combine(self, weights: Tensor) -> Tensor:
        if weights.ndim not in (1, 2) or weights.shape[-1] != len(self):
            raise ConfigError(f"weights must be [{len(self)}] or [k, {len(self)}], got {list(weights.shape)}")
        weights = weights.to(self.device, torch.float64)
        everyone = weights.new_zeros(*weights.shape[:-1], len(self.base)).index_add_(-1, self.rows, weights)
        # Zero times a finite row is zero; only rows that are not need to be masked, which copies.
        ignored = ~self.base.finite()
        ignored[self.rows] = False
        return self.base.combine_without(everyone, ignored if ignored.any() else None)

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        for block in self.base.blocks(max_bytes * len(self.base) // max(len(self), len(self.base))):
            yield Block(block.start, block.stop, block.values[self.rows])

    def select(self, rows: Tensor) -> Updates:
        return Selected(self.base, self.rows[rows.to(self.device)])
