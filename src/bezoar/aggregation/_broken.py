"""What two revisions of the authors' code of SparseFed run under the names of robust rules. For reproduction only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bezoar.aggregation.base import Constant
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates

#: Variants that are broken, by the revisions that have them.
BROKEN = ("code-2021-05", "code-2021-06")

#: Equal rows are moved: no multiple of their variance, which is zero, bounds that.
NO_PROMISE = Constant(math.inf, "none: broken", "exact")


def check_broken(owner: str, variant: str, f: int) -> None:
    """Raise for a broken ``variant`` with f = 0, whose answer is NaN there."""
    if variant in BROKEN and f == 0:
        raise ConfigError(f"{owner}: variant={variant!r} divides by nothing for f=0 (that code gives NaN); f >= 1")


def one_number(rows: Updates, kept: Tensor) -> Tensor:
    """The mean of all entries of the rows ``kept`` (indices [m]), in every coordinate: [d].

    ``torch.stack(rows).sort()[0][f:-f].mean()`` sorts every row along its coordinates, which changes no mean, and then
    drops rows by their place.
    """
    _, d = rows.shape
    ones = torch.ones(d, dtype=rows.dtype, device=rows.device)
    mean = float(rows.dot(ones)[kept.to(rows.device)].mean()) / d
    return ones * mean
