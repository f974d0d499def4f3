"""Communication: what clients send and fetch in a round, in bytes.

Values travel as float32 and the places of a sparse vector as int32, 8 bytes a coordinate; from half of all coordinates
on the dense vector is shorter. What a client fetches depends on when it last took part: it holds the model of that
round, and every coordinate that has moved since then must be sent, once, however often it moved. A client that takes
part for the first time fetches the dense model.

Of that the simulator keeps a *ledger*, tensors by name: ``moved`` [d] int32, the round of every coordinate's last move
(0: never), ``counts`` [T + 1] int64, how many coordinates moved last in each round, and ``seen`` [n] int32, the round
in which every client last took part (0: never). A round of k moves costs O(k + T + cohort). A ledger changes in place,
as the model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: Bytes of a value (float32).
VALUE = 4

#: Bytes of a value and its place (int32).
PAIR = 8


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client in one round.

    Attributes:
        up: what it sends.
        down: what it fetches, at least, once the model has moved: if it took part in the round before. Servers whose
            steps are sparse say less than the dense model here; clients that were away longer fetch more.
    """

    up: int
    down: int


def dense(d: int) -> int:
    """Bytes of a vector of d values.

    >>> dense(1000)
    4000
    """
    return VALUE * d


def sparse(k: int, d: int) -> int:
    """Bytes of k of d coordinates: pairs of place and value, or the dense vector where that is shorter.

    >>> sparse(100, 1000), sparse(900, 1000)
    (800, 4000)
    """
    return min(PAIR * k, dense(d))


def open_ledger(d: int, clients: int, rounds: int, device: torch.device | None = None) -> dict[str, Tensor]:
    """The ledger before the first of ``rounds``: no coordinate has moved and no client has taken part."""
    counts = torch.zeros(rounds + 1, dtype=torch.int64, device=device)
    counts[0] = d
    return {
        "moved": torch.zeros(d, dtype=torch.int32, device=device),
        "counts": counts,
        "seen": torch.zeros(clients, dtype=torch.int32, device=device),
    }


def fetch_(ledger: Mapping[str, Tensor], cohort: Tensor, round: int) -> Tensor:
    """Bytes that the clients ``cohort`` [m] (different ids) fetch at the start of ``round``, [m] int64.

    The ledger notes that they have taken part.
    """
    seen, d = ledger["seen"], len(ledger["moved"])
    last = seen[cohort].long()
    # A client of round s holds the model before that round's step: it misses what moved in s or later.
    missed = ledger["counts"].flip(0).cumsum(0).flip(0)[last]
    seen[cohort] = round
    return (PAIR * missed).clamp(max=dense(d)).where(last > 0, torch.full_like(missed, dense(d)))


def move_(ledger: Mapping[str, Tensor], index: Tensor | None, round: int) -> None:
    """Note that the coordinates ``index`` [k] (all different; None: all coordinates) moved in ``round``."""
    moved, counts = ledger["moved"], ledger["counts"]
    if index is None:
        moved.fill_(round)
        counts.zero_()
        counts[round] = len(moved)
        return
    counts.index_add_(0, moved[index].long(), torch.full((len(index),), -1, dtype=torch.int64, device=counts.device))
    counts[round] += len(index)
    moved[index] = round
