"""Checks that all priors share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError


def check_probability(owner: str, name: str, value: float) -> None:
    """Raise unless 0 <= value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{owner}: {name} must be a number from 0 to 1, got {value!r}")


def check_law(owner: str, p: Sequence[float]) -> None:
    """Raise unless p are probabilities that add up to one."""
    if not p:
        raise ConfigError(f"{owner}: p must hold at least one probability")
    for value in p:
        check_probability(owner, "p", value)
    if abs(sum(p) - 1) > 1e-9:
        raise ConfigError(f"{owner}: p must add up to 1, got {sum(p):.12g}")


def check_clients(owner: str, clients: int | None) -> None:
    """Raise unless ``clients`` is a number of clients, or None."""
    if clients is not None and (isinstance(clients, bool) or not isinstance(clients, int) or clients < 1):
        raise ConfigError(f"{owner}: clients must be a whole number >= 1, got {clients!r}")


def ids_within(owner: str, clients: Sequence[int], n: int, some: bool = True) -> list[int]:
    """Different client ids from 0 to n - 1, as a list; at least one if ``some``, else fewer than n."""
    ids = [int(i) for i in clients if isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < n]
    if len(ids) < len(clients) or len(set(ids)) < len(ids):
        raise ConfigError(f"{owner}: clients must be different ids from 0 to {n - 1}, got {list(clients)}")
    if some and not ids:
        raise ConfigError(f"{owner}: needs at least one client")
    if not some and len(ids) == n:
        raise ConfigError(f"{owner}: all {n} clients would be bad: there is nothing to be learnt")
    return ids


def each(value: float | tuple[float, ...], n: int) -> NDArray[np.float64]:
    """One number for each of n, from one for all or a list."""
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (n,))
