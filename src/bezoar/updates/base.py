"""The matrix of client updates as an interface that answers questions (rows are clients, columns parameters)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property

import torch
from torch import Tensor

from bezoar.errors import UnsupportedError
from bezoar.kernels.gram import NEAR, Tall, between, squared_norms, widened
from bezoar.kernels.spread import WHOLE, Spread

#: Size of a column block unless the caller says otherwise.
BLOCK_BYTES = 64 * 2**20


class Needs(Flag):
    """What a rule asks of the updates, and what an ``Updates`` can answer."""

    NONE = 0
    NORMS = auto()
    GRAM = auto()
    DOT = auto()
    COLUMNS = auto()
    BLOCKS = auto()
    LAYOUT = auto()


@dataclass(frozen=True)
class Segment:
    """Where one named parameter lives in the flat vector: columns ``start`` to ``stop``, reshaped to ``shape``."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]


Layout = tuple[Segment, ...]


@dataclass(frozen=True)
class Block:
    """Columns ``start`` to ``stop`` of the updates, all rows: ``values`` [n, stop - start]."""

    start: int
    stop: int
    values: Tensor


class Updates(ABC):
    """n client updates of d parameters, in descent sign (global minus local).

    Norms, Gram matrix and dot products are float64; ``combine``, ``columns`` and ``blocks`` have the ``dtype`` of
    the updates. Rows of norm 1e150 or more can not be squared safely and count as not finite.
    """

    #: Which questions can be answered; norms, dot products and combinations always can.
    offers: Needs = ~Needs.LAYOUT

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, d)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the update's entries."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where answers are computed."""

    @property
    @abstractmethod
    def clients(self) -> Tensor:
        """Client ids [n] (int64), one a row."""

    @property
    def layout(self) -> Layout:
        """Parameter names and their columns; empty if unknown."""
        return ()

    @abstractmethod
    def _squared_norms(self) -> Tensor: ...

    @abstractmethod
    def _gram(self) -> Tensor: ...

    @abstractmethod
    def dot(self, vector: Tensor) -> Tensor:
        """Inner product of every row with ``vector`` [d]: float64 [n]."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Weighted sums of rows: ``weights`` [n] gives [d], [k, n] gives [k, d]."""

    @abstractmethod
    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        """All columns, block by block from the left, each at most ``max_bytes`` (but at least one column)."""

    @abstractmethod
    def select(self, rows: Tensor) -> Updates:
        """The updates of the given row indices [m] (int64), in that order. Rows left out are never read again."""

    @property
    def spread(self) -> Spread:
        """How what is made of ``share`` becomes an answer about all columns."""
        return WHOLE

    def share(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        """As ``blocks``, but only the columns that this process is to work on: all, unless rows are spread over many.

        What is made of them goes through ``spread``: sums over columns through ``total``, a number a column through
        ``join``. Whoever reads ``blocks`` instead is right as well, but every process then does all the work.
        """
        return self.blocks(max_bytes)

    def distances_from(self, vector: Tensor, chosen: Tensor) -> Tensor:
        """Squared distances [m] of the rows ``chosen`` (indices [m]) from ``vector`` [d], from their difference."""
        pick = torch.zeros(len(chosen), len(self), dtype=torch.float64, device=self.device)
        pick[torch.arange(len(chosen), device=self.device), chosen.to(self.device)] = 1.0
        return row_norms(self.combine(pick) - vector)

    def columns(self, index: Tensor) -> Tensor:
        """The columns at ``index`` [b] (any order): [n, b]."""
        n, _ = self.shape
        out = torch.empty(n, len(index), dtype=self.dtype, device=self.device)
        for block in self.blocks():
            inside = (index >= block.start) & (index < block.stop)
            if inside.any():
                out[:, inside] = block.values[:, index[inside] - block.start]
        return out

    @cached_property
    def _norms_once(self) -> Tensor:
        return self._squared_norms()

    @cached_property
    def _gram_once(self) -> Tensor:
        return self._gram()

    @cached_property
    def _distances_once(self) -> Tensor:
        return self._squared_distances()

    def squared_norms(self) -> Tensor:
        """Squared l2 norm of every row: float64 [n], computed once."""
        return self._norms_once

    def gram(self) -> Tensor:
        """Inner products of all pairs of rows: float64 [n, n], computed once."""
        return self._gram_once

    def squared_distances(self) -> Tensor:
        """Squared l2 distances of all pairs of rows: float64 [n, n], zero diagonal, computed once."""
        return self._distances_once

    @property
    def flaws(self) -> Mapping[int, str]:
        """Row index -> what is wrong with a row, where more is known than that it is not finite."""
        return {}

    def finite(self) -> Tensor:
        """Which rows hold finite numbers only, of a norm below 1e150: bool [n]."""
        return self.squared_norms() < 1e300

    def materialise(self) -> Tensor:
        """The whole matrix [n, d] in memory."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for block in self.blocks():
            out[:, block.start : block.stop] = block.values
        return out

    def require(self, needs: Needs, who: str) -> None:
        """Raise unless the questions in ``needs`` can be answered; ``who`` is named in the message."""
        missing = needs & ~self.offers
        if missing:
            raise UnsupportedError(
                f"{who} needs {_names(missing)}, which {type(self).__name__} can not answer "
                f"(it offers {_names(self.offers)})"
            )

    def _squared_distances(self) -> Tensor:
        return refine_distances(between(self.gram()), self.squared_norms(), self)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        n, d = self.shape
        return f"{type(self).__name__}(n={n}, d={d}, dtype={self.dtype}, device={self.device})"


def _names(needs: Needs) -> str:
    return ", ".join(str(flag.name).lower() for flag in Needs if flag in needs and flag.value) or "nothing"


def refine_distances(distances: Tensor, norms: Tensor, rows: Updates, max_bytes: int = BLOCK_BYTES) -> Tensor:
    """Measure nearly coinciding pairs exactly, as the norm of the difference of the two rows."""
    n, d = rows.shape
    near = distances < NEAR * (norms[:, None] + norms[None, :])
    first, second = torch.triu(near, diagonal=1).nonzero(as_tuple=True)
    if rows.spread is not WHOLE:
        # Every process measures on its own columns: no rows have to be made anywhere.
        exact = torch.zeros(len(first), dtype=torch.float64, device=distances.device)
        for block in rows.share(max_bytes) if len(first) else ():
            step = max(1, max_bytes // max(1, 2 * block.values[0].nbytes))
            for low in range(0, len(first), step):
                i, j = first[low : low + step], second[low : low + step]
                exact[low : low + step] += row_norms(widened(block.values[i]) - widened(block.values[j]))
        exact = rows.spread.total(exact) if len(first) else exact
        distances[first, second] = distances[second, first] = exact
        return distances
    chunk = max(1, max_bytes // max(1, d * rows.dtype.itemsize))
    for start in range(0, len(first), chunk):
        i, j = first[start : start + chunk], second[start : start + chunk]
        difference = torch.zeros(len(i), n, dtype=torch.float64, device=distances.device)
        at = torch.arange(len(i), device=distances.device)
        difference[at, i], difference[at, j] = 1.0, -1.0
        exact = row_norms(rows.combine(difference))
        distances[i, j] = distances[j, i] = exact
    return distances


def measure_from(rows: Updates, vector: Tensor, distances: Tensor, near: Tensor, max_bytes: int = BLOCK_BYTES) -> None:
    """Measure ``distances`` [n] from ``vector`` [d] again, in place, for the rows ``near`` (bool [n]) to it."""
    chosen = near.nonzero().flatten()
    if not len(chosen):
        return
    for some in torch.split(chosen, max(1, max_bytes // max(1, vector.nbytes))):
        distances[some] = rows.distances_from(vector, some)


def row_norms(values: Tensor) -> Tensor:
    """Squared l2 norms of the rows of a tensor [m, d], exact to about seven digits: float64 [m]."""
    return squared_norms(Tall(values))


def column_ranges(n: int, d: int, itemsize: int, max_bytes: int) -> Sequence[tuple[int, int]]:
    """Cut d columns of n rows into ranges of at most ``max_bytes``, at least one column each."""
    width = max(1, max_bytes // max(1, n * itemsize))
    return [(start, min(start + width, d)) for start in range(0, d, width)]
