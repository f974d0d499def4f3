"""Momentum of every client, kept for clients that take part in every round."""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.updates.base import Updates
from bezoar.updates.dense import DenseUpdates


def check_memory(n: int, d: int, itemsize: int, max_bytes: int) -> None:
    """Raise unless the momentum of ``n`` clients of a model with ``d`` parameters fits ``max_bytes``."""
    size = n * d * itemsize
    if size > max_bytes:
        raise ConfigError(
            f"the momentum of {n} clients x {d} parameters takes {size:,} bytes, more than max_bytes={max_bytes:,}: "
            f"raise clients.max_bytes, take fewer clients or a smaller model, or leave momentum to the server"
        )


def accumulate(
    fresh: Updates, last: Tensor | None, momentum: float, n: int, known: Tensor | None = None
) -> tuple[DenseUpdates, Tensor]:
    r"""What the clients in ``fresh`` [m, d] send, and the momentum [n, d] of all n clients (row = client id).

    ``known`` [n], ascending, are the ids of these clients if they are not 0, 1, ..., n - 1.

    .. math:: m_i \leftarrow \beta m_i + (1 - \beta) g_i, \quad m_i = 0 \text{ at first}

    Clients that are not in ``fresh`` keep their momentum. A row that is not finite is sent as it is, so that the
    server can exclude it, and its client keeps its momentum. ``last`` is never changed.
    """
    ids = fresh.clients.to(fresh.device)
    if known is not None:
        ids = torch.searchsorted(known.to(ids.device), ids)
    everyone = torch.equal(ids, torch.arange(n, device=ids.device))
    rows = torch.empty(fresh.shape, dtype=fresh.dtype, device=fresh.device)
    for block in fresh.blocks():
        sent = rows[:, block.start : block.stop]
        torch.mul(block.values, 1 - momentum, out=sent)
        if last is not None:
            before = last[:, block.start : block.stop]
            sent += momentum * (before if everyone else before[ids])
    updates = DenseUpdates(rows, fresh.clients, fresh.layout)
    finite = updates.finite()
    if everyone and finite.all():
        return updates, rows
    memory = rows.new_zeros(n, rows.shape[1]) if last is None else last.clone()
    if finite.all():
        memory[ids] = rows
    else:
        memory[ids[finite]] = rows[finite]
    return updates, memory
