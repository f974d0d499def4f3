"""Which sample belongs to which client, as two index arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bezoar.data.dataset import Dataset, Indices
from bezoar.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Federation:
    """The train samples of ``dataset``, divided over n clients.

    Client i holds the train rows ``indices[offsets[i]:offsets[i + 1]]``; ``offsets`` is int64 [n + 1], ``indices``
    int64 [total]. Samples that belong to nobody are allowed, a sample that belongs to two clients is not.
    Raises ConfigError if the arrays do not describe that.
    """

    dataset: Dataset
    offsets: Indices
    indices: Indices

    def __post_init__(self) -> None:
        offsets, indices, size = self.offsets, self.indices, len(self.dataset.train)
        if offsets.dtype != np.int64 or indices.dtype != np.int64 or offsets.ndim != 1 or indices.ndim != 1:
            raise ConfigError("offsets and indices must be one-dimensional int64 arrays")
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(indices) or (np.diff(offsets) < 0).any():
            raise ConfigError(f"offsets must rise from 0 to the number of indices ({len(indices)})")
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            raise ConfigError(f"indices must be rows of the {size} train samples")
        if len(indices) and np.bincount(indices, minlength=size).max() > 1:
            raise ConfigError("a sample may belong to one client only")

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    def counts(self) -> Indices:
        """Samples held by each client, int64 [n]."""
        return np.diff(self.offsets)

    def client(self, i: int) -> Indices:
        """The train rows of client ``i`` (a view). Raises ConfigError if there is no such client."""
        if not 0 <= i < self.n:
            raise ConfigError(f"client {i} does not exist: clients are 0..{self.n - 1}")
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    def subset(self, clients: ArrayLike) -> Federation:
        """The federation of these clients alone, renumbered 0, 1, ... in the order given, on the same data set.

        Raises ConfigError for no client, an unknown one, or one that is named twice.
        """
        ids = np.asarray(clients, dtype=np.int64).reshape(-1)
        if not len(ids) or len(np.unique(ids)) < len(ids):
            raise ConfigError(f"a subset needs different clients, at least one, got {ids.tolist()}")
        rows, _ = self.samples_of(ids)
        offsets = np.concatenate([[0], np.cumsum(self.counts()[ids])]).astype(np.int64)
        return Federation(self.dataset, offsets, rows)

    def samples_of(self, clients: ArrayLike) -> tuple[Indices, Indices]:
        """All train rows of ``clients``, client by client in the order given, and the client of each row.

        Both int64 [N]. A client without samples contributes nothing. Raises ConfigError for an unknown client.
        """
        ids = np.asarray(clients, dtype=np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.n):
            wrong = ids[(ids < 0) | (ids >= self.n)][0]
            raise ConfigError(f"client {wrong} does not exist: clients are 0..{self.n - 1}")
        starts = self.offsets[ids]
        counts = self.offsets[ids + 1] - starts
        before = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(starts - before, counts)
        return self.indices[positions], np.repeat(ids, counts)
