"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bezoar.aggregation.base import Columnwise, Constant
from bezoar.kernels.columns import column_trimmed_mean


@dataclass(frozen=True)
class TrimmedMean(Columnwise):
    r"""Drop the f largest and the f smallest values of every coordinate, average the rest.

    .. math:: [F(x)]_j = \frac{1}{n-2f} \sum_{i=f+1}^{n-f} [x]_{(i),j}

    With f = 0 it is the mean.

    Tolerates: f <= (n-1)/2.
    Cost: a sort of every column, O(d n log n).
    Constant: f/(n-2f), the best possible; with only q <= f bad rows f/(n-q-f) (exact).
    Peers: ByzFL the same; Blades and FLPoison subtract the extremes from the sum, which one huge value ruins; FLPoison
        trims a fixed share of 0.1 whatever the number of attackers.
    Reference: Yin, Chen, Kannan, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018.

    >>> import torch
    >>> TrimmedMean(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.3333, 1.6667])
    """

    f: int

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        return (Constant(f / (n - q - f), "f/(n-q-f)", "exact"),)

    def reduce(self, values: Tensor) -> Tensor:
        return column_trimmed_mean(values, self.f)
