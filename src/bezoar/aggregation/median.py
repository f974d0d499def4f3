"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bezoar.aggregation.base import Columnwise
from bezoar.kernels.columns import column_median


@dataclass(frozen=True)
class Median(Columnwise):
    r"""The median of every coordinate; the midpoint of the middle two for an even number of rows.

    .. math:: [\operatorname{med}(x_1, \dots, x_n)]_j = \operatorname{med}([x_1]_j, \dots, [x_n]_j)

    Tolerates f < n/2. Cost: O(n log n) a coordinate. kappa = (n-1)/(n+1-2f) exactly for odd n, at most n/(n-2f) for
    even n. Yin, Chen, Kannan, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018.

    >>> import torch
    >>> Median()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    def reduce(self, values: Tensor) -> Tensor:
        return column_median(values)
