"""Ranks that are threads of one process: what ranks compute can be tested without starting any."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from bezoar.ranks import Ranks
from bezoar.updates import Sharded, Updates

# Before Python 3.12 only one thread at a time may be inside a cached property, of whatever object: they would wait for
# each other there.
for _kind in (Updates, Sharded):
    for _property in vars(_kind).values():
        if isinstance(_property, functools.cached_property):
            _property.lock = contextlib.nullcontext()  # type: ignore[attr-defined]

T = TypeVar("T")


class _Table:
    """Where the threads lay what they have to say."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.laid: list[Any] = [None] * size


class ThreadRanks(Ranks):
    def __init__(self, rank: int, size: int, table: _Table) -> None:
        super().__init__(rank, size)
        self._table = table

    def _swap(self, mine: Any) -> list[Any]:
        self._table.laid[self.rank] = mine
        self._table.barrier.wait()
        found = list(self._table.laid)
        self._table.barrier.wait()
        return found

    def _all_reduce(self, values: Tensor, kind: str) -> Tensor:
        found = torch.stack(self._swap(values.clone()))
        return found.sum(0) if kind == "sum" else found.amax(0)

    def _all_gather(self, values: Tensor) -> Tensor:
        return torch.stack(self._swap(values.clone()))

    def _all_to_all(self, values: Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Tensor:
        found = self._swap(torch.split(values.clone(), list(sending)))
        pieces = [parts[self.rank] for parts in found]
        assert [len(piece) for piece in pieces] == list(receiving)
        return torch.cat(pieces)

    def _broadcast(self, values: Tensor) -> Tensor:
        return self._swap(values.clone())[0].clone()

    def leave(self) -> None:
        self._table.barrier.abort()


def in_ranks(size: int, action: Callable[[Ranks], T]) -> list[T]:
    """What ``action`` answers on each of ``size`` ranks; the first error of any of them is raised."""
    table = _Table(size)

    def play(rank: int) -> T:
        ranks = ThreadRanks(rank, size, table)
        try:
            return action(ranks)
        except BaseException:
            ranks.leave()
            raise

    with ThreadPoolExecutor(size) as pool:
        done = [pool.submit(play, rank) for rank in range(size)]
        errors = [error for future in done if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        for error in errors:
            raise error
        return [future.result() for future in done]
