"""FABA: drop the update farthest from the mean, f times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bezoar.aggregation._gram import rounding, uniform
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class FABA(Rule):
    r"""Drop the update farthest from the mean of those left, f times, and average the rest.

    .. math:: T \leftarrow T \setminus \{\arg\max_{i \in T} \|x_i - \bar x_T\|\} \quad f \text{ times},\quad
        F(x) = \bar x_T

    The farthest from the mean is the one with the largest sum of squared distances to the others, so no mean is ever
    formed. Of equally far rows the lowest is dropped; sums count as equal if they differ by less than 1e-12 of the
    largest, 1e-6 if the rows are not float64. With f = 0 it is the mean.

    Tolerates: f <= (n-1)/3.
    Cost: one Gram matrix, O(n^2 d), and O(f n^2).
    Constant: none known.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: Xia, Tao, Hao, Li: FABA: An Algorithm for Fast Aggregation against Byzantine Attacks in Distributed
        Neural Networks, IJCAI 2019.

    >>> FABA(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    needs: ClassVar[Needs] = Needs.GRAM

    def largest_f(self, n: int) -> int:
        return (n - 1) // 3

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        distances = rows.squared_distances()
        tie = rounding(rows.dtype)
        left = torch.ones(len(rows), dtype=torch.bool, device=distances.device)
        excluded: dict[int, str] = {}
        for place in range(self.f):
            # Added up anew every time: taking the dropped row's distances off again would leave their rounding.
            sums = (distances @ left.double()).masked_fill(~left, -1.0)
            farthest = int((left & (sums >= sums.max() * (1 - tie))).nonzero()[0])
            left[farthest] = False
            excluded[farthest] = f"farthest from the mean of {len(rows) - place} rows"
        weights = uniform(len(rows), left.nonzero().flatten())
        return Aggregate(rows.combine(weights), weights=weights, selected=left, excluded=excluded)
