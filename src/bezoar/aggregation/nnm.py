"""Nearest-neighbour mixing: every update becomes the mean of its neighbourhood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Constant, Context, Mixing
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class NNM(Mixing):
    r"""Replace every update by the mean of the n-f updates nearest to it.

    .. math:: y_i = \frac{1}{n-f} \sum_{j \in N_i} x_j,\quad |N_i| = n - f,\quad i \in N_i

    The row itself is always among its neighbours, also where f copies of it come before it; other ties go to the
    lowest row. Mixing alone is no defence: followed by the mean, one bad row moves the answer without limit.

    Tolerates: f <= (n-1)/2, followed by a rule that tolerates as many.
    Cost: one Gram matrix, O(n^2 d); no mixed row is ever stored.
    Constant: 8f/(n-f) (kappa + 1) after a rule with kappa, proved; it ranks worst cases and is larger than that of
        the trimmed mean alone, whatever mixing gains on benchmarks.
    Peers: ByzFL the same; Blades and FLPoison have none.
    Reference: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing, AISTATS 2023.

    >>> NNM(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))[[0, 4]]
    tensor([[  2.0000,   2.0000],
            [ 26.7500, -23.5000]])
    """

    f: int
    needs: ClassVar[Needs] = Needs.GRAM

    def constants(self, inner: Constant, n: int, f: int, q: int) -> tuple[Constant, ...]:
        value = inner.value if math.isinf(inner.value) else 8 * f / (n - f) * (inner.value + 1)
        source = "proved" if inner.source == "exact" else inner.source
        return (Constant(value, f"8f/(n-f) (kappa + 1), kappa = {inner.formula}", source),)

    def matrix(self, rows: Updates, context: Context, generator: torch.Generator | None) -> Tensor:
        # A negative distance puts the row itself before its copies.
        distances = rows.squared_distances().clone().fill_diagonal_(-1.0)
        nearest = distances.sort(dim=1, stable=True).indices[:, : len(distances) - self.f]
        return torch.zeros_like(distances).scatter_(1, nearest, 1.0 / nearest.shape[1])
