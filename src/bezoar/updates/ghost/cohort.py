"""Which samples of a batch belong to which client, arranged so that clients of equal size are plain slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Clients ``first`` to ``last`` (places), each with ``size`` samples, from sample ``start`` on."""

    first: int
    last: int
    size: int
    start: int

    @property
    def samples(self) -> slice:
        """The group's samples in the arranged batch."""
        return slice(self.start, self.start + (self.last - self.first) * self.size)

    def pieces(self, bytes_per_client: int, max_bytes: int) -> Iterator[Group]:
        """Cut into groups of at most ``max_bytes`` (at least one client)."""
        step = max(1, max_bytes // max(1, bytes_per_client))
        for first in range(self.first, self.last, step):
            last = min(first + step, self.last)
            yield Group(first, last, self.size, self.start + (first - self.first) * self.size)


class Cohort:
    """Clients in *places*: by sample count, then by id; their samples follow each other.

    Rows of the answer are in the order of ids. Where all clients have equally many samples, places are rows.

    ``ids`` [n] sorted client ids, ``counts`` [n] samples by place, ``order`` [N] the sample at each arranged
    position (None if the batch is arranged already), ``groups`` clients of equal count.
    """

    def __init__(self, clients: Tensor) -> None:
        clients = clients.cpu()
        ids, inverse, counts = torch.unique(clients, return_inverse=True, return_counts=True)
        self.ids: Tensor = ids
        by_count = torch.argsort(counts, stable=True)
        place = torch.empty_like(by_count)
        place[by_count] = torch.arange(len(by_count))
        order = torch.argsort(place[inverse], stable=True)
        same = bool((order[1:] > order[:-1]).all())
        self.order: Tensor | None = None if same else order
        self._row_to_place = None if bool((by_count[1:] > by_count[:-1]).all()) else place
        self._place_to_row = None if self._row_to_place is None else by_count
        self.counts = counts[by_count]
        self.groups = tuple(_groups(self.counts))

    @property
    def size(self) -> int:
        """Number of samples N."""
        last = self.groups[-1]
        return last.start + (last.last - last.first) * last.size

    def __len__(self) -> int:
        return len(self.ids)

    def arrange(self, samples: Tensor) -> Tensor:
        """Bring ``samples`` [N, ...] into the cohort's order."""
        return samples if self.order is None else samples[self.order.to(samples.device)]

    def to_rows(self, values: Tensor, dim: int = 0) -> Tensor:
        """From places to rows along ``dim``."""
        if self._row_to_place is None:
            return values
        return values.index_select(dim, self._row_to_place.to(values.device))

    def to_places(self, values: Tensor, dim: int = -1) -> Tensor:
        """From rows to places along ``dim``."""
        if self._place_to_row is None:
            return values
        return values.index_select(dim, self._place_to_row.to(values.device))

    def spread(self, values: Tensor) -> Tensor:
        """A value per place [n] as a value per sample [N]."""
        parts = [values[g.first : g.last].repeat_interleave(g.size) for g in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gather(self, samples: Tensor) -> Tensor:
        """Sums over each client's samples: [N, ...] gives [n, ...]."""
        parts = [samples[g.samples].reshape(-1, g.size, *samples.shape[1:]).sum(1) for g in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _groups(counts: Tensor) -> Iterator[Group]:
    sizes, lengths = torch.unique_consecutive(counts, return_counts=True)
    first = start = 0
    for size, length in zip(sizes.tolist(), lengths.tolist(), strict=True):
        yield Group(first, first + length, size, start)
        first, start = first + length, start + size * length
