"""What processes that play one run together say to each other; how they say it is a subclass's business."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bezoar.errors import BezoarError, ElsewhereError

T = TypeVar("T")

#: What torchrun tells every process.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Sum = Literal["sum", "max"]


def many_asked_for() -> bool:
    """Whether this process is one of several that torchrun, or whoever sets its variables, has started."""
    return all(name in os.environ for name in VARIABLES) and os.environ["WORLD_SIZE"] != "1"


class Ranks(ABC):
    """``size`` processes that all call the same things in the same order; this one is number ``rank``.

    Every answer is the same on all ranks, bit by bit, unless it says otherwise. ``sent`` counts the bytes that leave
    this rank: for a sum of B bytes 2 B (size - 1) / size, as a ring needs, for the rest what is handed to others.
    """

    rank: int
    size: int

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: Counter[str] = Counter()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which keeps the records."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @abstractmethod
    def _all_reduce(self, values: Tensor, kind: Sum) -> Tensor:
        """Entry by entry over all ranks; ``values`` is contiguous and may be overwritten."""

    @abstractmethod
    def _all_gather(self, values: Tensor) -> Tensor:
        """[size, ...] from contiguous ``values`` [...] of one shape on all ranks."""

    @abstractmethod
    def _all_to_all(self, values: Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Tensor:
        """Consecutive pieces of ``values`` [sum of sending] to ranks 0, 1, ...; what they sent [sum of receiving]."""

    @abstractmethod
    def _broadcast(self, values: Tensor) -> Tensor:
        """``values`` of rank 0; those of other ranks have their shape and type, and may be overwritten."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks; ``values`` may be overwritten."""
        if self.alone:
            return values
        self.sent["sum"] += 2 * values.nbytes * (self.size - 1) // self.size
        return self._all_reduce(values.contiguous(), "sum")

    def largest(self, values: Tensor) -> Tensor:
        """The largest entries over all ranks; ``values`` may be overwritten."""
        if self.alone:
            return values
        self.sent["sum"] += 2 * values.nbytes * (self.size - 1) // self.size
        return self._all_reduce(values.contiguous(), "max")

    def gather(self, values: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks, one rank's after the other's; ``lengths`` [size] are their numbers if they differ.

        Shorter pieces are filled up to the longest on the way.
        """
        if self.alone:
            return values
        longest = len(values) if lengths is None else max(lengths)
        whole = values
        if len(values) < longest:
            whole = values.new_zeros(longest, *values.shape[1:])
            whole[: len(values)] = values
        self.sent["gather"] += whole.nbytes * (self.size - 1)
        found = self._all_gather(whole.contiguous())
        if lengths is None or all(length == longest for length in lengths):
            return found.flatten(0, 1)
        return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Hand ``pieces[r]`` to rank r; answers what the ranks handed to this one, of these ``shapes``."""
        if self.alone:
            return list(pieces)
        sending = [piece.numel() for piece in pieces]
        receiving = [torch.Size(shape).numel() for shape in shapes]
        flat = torch.cat([piece.reshape(-1) for piece in pieces])
        self.sent["exchange"] += (flat.numel() - sending[self.rank]) * flat.element_size()
        found = self._all_to_all(flat, sending, receiving)
        return [part.view(shape) for part, shape in zip(torch.split(found, receiving), shapes, strict=True)]

    def told(self, values: Tensor) -> Tensor:
        """``values`` of rank 0, of one shape and type on all ranks; those of other ranks may be overwritten."""
        if self.alone:
            return values
        if self.first:
            self.sent["told"] += values.nbytes * (self.size - 1)
        # As bytes: not every backend has every type.
        flat = values.contiguous().reshape(-1).view(torch.uint8)
        return self._broadcast(flat).view(values.dtype).reshape(values.shape) if values.numel() else values

    def said(self, value: Any) -> Any:
        """What rank 0 has to say, of what JSON can hold; ``value`` is ignored on the others."""
        if self.alone:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = self.told(torch.tensor(len(text)))
        return json.loads(
            bytes(self.told(text if self.first else torch.empty(int(length), dtype=torch.uint8)).tolist())
        )

    def texts(self, mine: str) -> list[str]:
        """What every rank has to say."""
        if self.alone:
            return [mine]
        piece = torch.tensor(list(mine.encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(piece)])).tolist()
        whole = bytes(self.gather(piece, lengths).tolist())
        ends = [sum(lengths[: i + 1]) for i in range(self.size)]
        return [whole[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]

    def together(self, action: Callable[[], T]) -> T:
        """What ``action`` answers here, if it fails on no rank; else an error on all of them.

        Raises:
            BezoarError: on rank 0, its own or that of the first rank that failed, which it names.
            ElsewhereError: on the others.
        """
        result, error = None, None
        try:
            result = action()
        except BezoarError as failed:
            if self.alone:
                raise
            error = failed
        except OSError as failed:
            if self.alone:
                raise
            error = BezoarError(f"{failed.filename or ''}: {failed.strerror}".lstrip(": "))
        whys = self.texts("" if error is None else str(error) or type(error).__name__)
        failed_ranks = [rank for rank, why in enumerate(whys) if why]
        if not failed_ranks:
            return result  # type: ignore[return-value]
        if not self.first:
            raise ElsewhereError(whys[failed_ranks[0]])
        if error is not None:
            raise error
        raise BezoarError(f"rank {failed_ranks[0]}: {whys[failed_ranks[0]]}")

    def on_first(self, action: Callable[[], T]) -> T | None:
        """What ``action`` answers on rank 0, None on the others; its error is an error on all of them."""
        return self.together(lambda: action() if self.first else None)


class _Alone(Ranks):
    """One process: nobody to talk to."""

    def _all_reduce(self, values: Tensor, kind: Sum) -> Tensor:
        return values

    def _all_gather(self, values: Tensor) -> Tensor:
        return values[None]

    def _all_to_all(self, values: Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Tensor:
        return values

    def _broadcast(self, values: Tensor) -> Tensor:
        return values


#: A run in one process.
ALONE: Ranks = _Alone(0, 1)
