"""The mean around the median, a coordinate at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bezoar.aggregation.base import Constant, Ordered
from bezoar.aggregation.median import Median
from bezoar.kernels.columns import mean_around_median


@dataclass(frozen=True)
class MeaMed(Ordered):
    r"""Average the n-f values of every coordinate that lie nearest to its median.

    .. math:: [F(x)]_j = \frac{1}{n-f} \sum_{i \in N_j} [x_i]_j,\quad |N_j| = n - f,\quad
        N_j \text{ nearest to } \operatorname{med}([x_1]_j, \dots, [x_n]_j)

    The median of an even number of rows is the midpoint of the middle two; of two values equally far from it the
    lower one is kept. With f = 0 it is the mean.

    Tolerates: f <= (n-1)/2.
    Cost: a sort of every column, O(d n log n).
    Constant: 4f/(n-f) (kappa + 1) with the median's kappa for q bad rows, proved.
    Peers: ByzFL has it; Blades and FLPoison have none.
    Reference: Xie, Koyejo, Gupta: Generalized Byzantine-tolerant SGD, 2018 (mean around median).

    >>> import torch
    >>> MeaMed(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        (median,) = Median().constants(n, f, q)
        formula = f"4f/(n-f) (kappa + 1), kappa = {median.formula}"
        return (Constant(4 * f / (n - f) * (median.value + 1), formula, "proved"),)

    def finish(self, ordered: Any) -> Any:
        return mean_around_median(ordered.shape[1] - self.f)(ordered)
