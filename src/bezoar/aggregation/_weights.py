"""Weights that clients claim for themselves, and how much of the whole one client may have."""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.errors import ConfigError


def check_cap(owner: str, weighted: bool, cap: float | None) -> None:
    """Raise unless ``weighted`` is a truth value and ``cap`` None or, with weights, a share in (0, 1]."""
    if not isinstance(weighted, bool):
        raise ConfigError(f"{owner}: weighted must be true or false, got {weighted!r}")
    if cap is None:
        return
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 < cap <= 1:
        raise ConfigError(f"{owner}: cap is a share of all weight, above 0 and at most 1, got {cap!r}")
    if not weighted:
        raise ConfigError(f"{owner}: cap={cap} limits client weights, which need weighted=True")


def client_shares(weights: Tensor, cap: float | None) -> Tensor:
    """Weights [n] (not negative, not all zero) as shares that add up to one, none above ``cap``: float64 [n].

    What is cut from the largest goes to the others in proportion to their weights. If too few clients have any
    weight to stay below the cap, those that have share equally.

    >>> client_shares(torch.tensor([8.0, 1.0, 1.0]), 0.5)
    tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    shares = weights.detach().double()
    shares = shares / shares.max()
    # Nothing can be divided by what is smaller.
    shares = shares.masked_fill(shares < 1e-250, 0.0)
    shares = shares / shares.sum()
    if cap is None:
        return shares
    held = torch.zeros_like(shares, dtype=torch.bool)
    positive = shares > 0
    if cap * int(positive.sum()) <= 1:
        return positive.double() / positive.sum()
    while (shares > cap * (1 + 1e-12)).any():
        held |= shares > cap * (1 + 1e-12)
        rest = shares.masked_fill(held, 0.0)
        shares = (rest * ((1 - cap * int(held.sum())) / rest.sum())).masked_fill(held, cap)
    return shares
