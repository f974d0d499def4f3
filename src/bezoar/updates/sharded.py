"""Rows that lie on several processes: each holds those of its own clients, and all of them ask the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.gram import CHUNK, gram, squared_distances, wide_type
from bezoar.kernels.spread import Spread
from bezoar.ranks import Ranks
from bezoar.updates.base import BLOCK_BYTES, Block, Layout, Needs, Updates, column_ranges
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.held import HeldUpdates

#: With at least so many stripes a rank, columns are dealt in stripes as wide as the Gram kernel's chunks.
_STRIPES = 8


class Stripes(Spread):
    """d columns dealt to ranks in stripes of equal width: stripe i is rank i modulo the number of ranks'.

    So every stretch of columns is everybody's, and rows can be handed on while they are computed from the left.
    """

    def __init__(self, ranks: Ranks, d: int) -> None:
        self.ranks, self.d = ranks, d
        share = -(-d // ranks.size)
        self.width = CHUNK if share >= _STRIPES * CHUNK else share
        #: Stripes of each rank; the last ones may lie beyond the last column and are then zero.
        self.count = -(-share // self.width)

    def dealt(self, values: Tensor) -> Tensor:
        """``values`` [..., columns], a whole number of rounds, as [ranks, ..., their columns]."""
        rounds = values.shape[-1] // (self.ranks.size * self.width)
        return values.view(*values.shape[:-1], rounds, self.ranks.size, self.width).movedim(-2, 0).flatten(-2)

    @property
    def own(self) -> list[tuple[int, int]]:
        """Where this rank's stripes start and stop, among all columns."""
        starts = (self.width * (i * self.ranks.size + self.ranks.rank) for i in range(self.count))
        return [(start, min(start + self.width, self.d)) for start in starts if start < self.d]

    def total(self, values: Tensor) -> Tensor:
        return self.ranks.total(values)

    def largest(self, values: Tensor) -> Tensor:
        return self.ranks.largest(values)

    def join(self, vector: Tensor) -> Tensor:
        whole = vector.new_zeros(self.count * self.ranks.size * self.width)
        whole[: self.d] = vector
        found = self.ranks.gather(self.dealt(whole)[self.ranks.rank].contiguous()[None])
        return found.view(self.ranks.size, self.count, self.width).transpose(0, 1).reshape(-1)[: self.d]


class Sharded(Updates):
    """n rows of which this rank holds some: ``local``, the rows of the clients that ``owners`` [n] gives it (or None).

    All ranks make it with the same ``clients`` [n] and ``owners``, and ask the same questions in the same order; the
    answers are the same on all of them, bit by bit. Norms, dot products and columns are gathered, weighted sums added
    up. For everything that looks at pairs of rows or at columns, rows are handed on once, so that every rank holds d /
    ranks columns of all n rows (:class:`Stripes`); the Gram matrix is the sum of theirs. ``share`` gives these columns;
    ``blocks`` gives all columns to everybody, for whoever does not know of shares, and is dear.

    ``like`` [d] has the rows' length, type and device. What is known to be wrong with a row of ``local`` beside that it
    is not finite (``flaws``) is not passed on.

    Raises:
        ConfigError: ``local`` does not hold the rows that it should.
    """

    def __init__(
        self,
        local: Updates | None,
        clients: Tensor,
        owners: Tensor,
        ranks: Ranks,
        like: Tensor,
        layout: Layout = (),
    ) -> None:
        if owners.shape != clients.shape or clients.ndim != 1:
            raise ConfigError(f"owners must give each of the {len(clients)} clients a rank, got {list(owners.shape)}")
        self.local, self.ranks = local, ranks
        self._clients, self._owners, self._like, self._layout = clients.cpu(), owners.cpu(), like, layout
        self._mine = (self._owners == ranks.rank).nonzero().flatten()
        expected = self._clients[self._mine]
        held = expected[:0] if local is None else local.clients.cpu()
        if not torch.equal(held, expected):
            raise ConfigError(f"rank {ranks.rank} should hold clients {expected.tolist()}, not {held.tolist()}")
        if local is not None and (local.shape[1], local.dtype) != (like.numel(), like.dtype):
            raise ConfigError(
                f"rows must be [{like.numel()}] {like.dtype}, got [{local.shape[1]}] {local.dtype} on rank {ranks.rank}"
            )
        self._lengths: list[int] = torch.bincount(self._owners, minlength=ranks.size).tolist()
        by_rank = torch.argsort(self._owners, stable=True)
        self._back = torch.empty_like(by_rank)
        self._back[by_rank] = torch.arange(len(by_rank))
        offered = local.offers if local is not None else ~Needs.NONE
        self.offers = offered | Needs.LAYOUT if layout else offered & ~Needs.LAYOUT

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._clients), self._like.numel()

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

    @property
    def spread(self) -> Spread:
        return self._stripes

    @cached_property
    def _stripes(self) -> Stripes:
        return Stripes(self.ranks, self.shape[1])

    def _gathered(self, mine: Tensor) -> Tensor:
        """A number or vector for each of this rank's rows [m, ...] as one for each of all rows [n, ...]."""
        return self.ranks.gather(mine, self._lengths)[self._back.to(mine.device)]

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self.dtype, device=self.device)

    def _squared_norms(self) -> Tensor:
        mine = self.local.squared_norms() if self.local is not None else self._empty(0, dtype=torch.float64)
        return self._gathered(mine)

    def _gram(self) -> Tensor:
        return gram(self._held, self.squared_norms(), self.spread)

    def _squared_distances(self) -> Tensor:
        return squared_distances(self._held, self.squared_norms(), self.spread)

    def dot(self, vector: Tensor) -> Tensor:
        return self._gathered(self.local.dot(vector) if self.local is not None else self._empty(0, dtype=torch.float64))

    def distances_from(self, vector: Tensor, chosen: Tensor) -> Tensor:
        wanted = torch.zeros(len(self), dtype=torch.bool)
        wanted[chosen.cpu()] = True
        mine = wanted[self._mine].nonzero().flatten()
        found = self._empty(len(self._mine), dtype=torch.float64)
        if self.local is not None and len(mine):
            at = mine.to(self.device)
            found[at] = self.local.distances_from(vector, at)
        return self._gathered(found)[chosen]

    def combine(self, weights: Tensor) -> Tensor:
        mine = weights[..., self._mine.to(weights.device)]
        wide = wide_type(self.dtype)
        if self.local is None or not bool((mine != 0).any()):
            part = self._empty(*weights.shape[:-1], self.shape[1], dtype=wide)
        else:
            part = self.local.combine(mine).to(wide)
        return self.ranks.total(part).to(self.dtype)

    def columns(self, index: Tensor) -> Tensor:
        mine = self.local.columns(index) if self.local is not None else self._empty(0, len(index))
        return self._gathered(mine)

    def materialise(self) -> Tensor:
        mine = self.local.materialise() if self.local is not None else self._empty(0, self.shape[1])
        return self._gathered(mine)

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        n, d = self.shape
        edges = [stop for _, stop in column_ranges(n, d, self.dtype.itemsize, max_bytes)]
        start = 0
        for stop, values in zip(edges, self._windows(edges), strict=True):
            yield Block(start, stop, self._gathered(values))
            start = stop

    def share(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        # Also by ranks that have no columns: the others wait for their rows.
        held, n, itemsize, width = self._held, len(self), self.dtype.itemsize, self._stripes.width
        for i, (start, stop) in enumerate(self._stripes.own):
            for low, high in column_ranges(n, stop - start, itemsize, max_bytes):
                values = held.part(i * width + low, i * width + high)
                yield Block(start + low, start + high, values)

    def select(self, rows: Tensor) -> Updates:
        rows = rows.cpu()
        place = torch.full((len(self),), -1)
        place[self._mine] = torch.arange(len(self._mine))
        mine = place[rows[self._owners[rows] == self.ranks.rank]]
        local = self.local.select(mine.to(self.device)) if self.local is not None and len(mine) else None
        chosen = Sharded(local, self._clients[rows], self._owners[rows], self.ranks, self._like, self._layout)
        chosen.offers = self.offers
        # What is known of all rows is known of some.
        at = rows.to(self.device)
        if "_held" in self.__dict__:
            chosen.__dict__["_held"] = self._held.select(at)
        if "_norms_once" in self.__dict__:
            chosen.__dict__["_norms_once"] = self._norms_once[at]
        for pairs in ("_gram_once", "_distances_once"):
            if pairs in self.__dict__:
                chosen.__dict__[pairs] = self.__dict__[pairs][at][:, at]
        return chosen

    @cached_property
    def _held(self) -> HeldUpdates:
        """This rank's columns of all rows, its stripes one after the other (the last ones filled up with zeros)."""
        stripes, n = self._stripes, len(self)
        held = self._empty(n, stripes.count * stripes.width)
        turn = stripes.width * self.ranks.size
        step = max(1, BLOCK_BYTES // max(1, max(self._lengths) * turn * self.dtype.itemsize))
        ends = [*range(step, stripes.count, step), stripes.count]
        edges = [min(end * turn, self.shape[1]) for end in ends]
        order, first = torch.argsort(self._owners, stable=True).to(self.device), 0
        for end, values in zip(ends, self._windows(edges), strict=True):
            missing = (end - first) * turn - values.shape[1]
            whole = torch.nn.functional.pad(values, (0, missing)) if missing else values.contiguous()
            own = (end - first) * stripes.width
            found = self.ranks.exchange(list(stripes.dealt(whole)), [(length, own) for length in self._lengths])
            held[order, first * stripes.width : end * stripes.width] = torch.cat(found)
            first = end
        return DenseUpdates(held, self._clients)

    def _windows(self, edges: Sequence[int]) -> Iterator[Tensor]:
        """This rank's rows [m, ...], cut at the columns ``edges``, which ascend and end with d."""
        if self.local is None:
            for start, stop in zip([0, *edges], edges, strict=False):
                yield self._empty(0, stop - start)
            return
        if isinstance(self.local, HeldUpdates):
            for start, stop in zip([0, *edges], edges, strict=False):
                yield self.local.part(start, stop)
            return
        waiting: list[Tensor] = []
        left = list(edges)
        for block in self.local.blocks():
            at = block.start
            while left and left[0] <= block.stop:
                waiting.append(block.values[:, at - block.start : left[0] - block.start])
                at = left.pop(0)
                yield waiting[0] if len(waiting) == 1 else torch.cat(waiting, 1)
                waiting = []
            if at < block.stop:
                waiting.append(block.values[:, at - block.start :])
