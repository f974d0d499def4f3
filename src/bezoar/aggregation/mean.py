"""The mean: optimal without attackers, helpless against one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Weighting
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class Mean(Weighting):
    r"""The average of all updates.

    .. math:: \bar x = \frac1n \sum_i x_i

    Tolerates no bad client (kappa is infinite for f >= 1, 0 for f = 0). Cost: O(n d). Rows with NaN or infinity are
    excluded and reported.

    >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([2., 3.])
    """

    needs: ClassVar[Needs] = Needs.NONE
    spare: ClassVar[bool] = True

    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        n = len(rows)
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device=rows.device), None
