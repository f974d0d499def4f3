"""Filter-L2: take out the farthest row along the direction of largest variance until that variance is small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._gram import centred_products, typical_row
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.aggregation.caf import top_variance, without_farthest
from bezoar.errors import ConfigError
from bezoar.kernels.gram import products_about
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class FilterL2(Rule):
    r"""Down-weight rows along the top direction and drop the farthest, until the variance is below a bound.

    .. math:: \text{while } \lambda^2 > 20\, \sigma^2 \text{, at most } 2f \text{ times:}\quad
        c_i \leftarrow c_i (1 - \tau_i / \tau_{i^*}),\quad i^* = \arg\max_i \tau_i \text{ is dropped}

    lambda is the largest eigenvalue of the weighted covariance and ``sigma`` bounds that of the honest rows, so it has
    the unit of a squared update. Without ``sigma`` it is the top eigenvalue of the n-f rows nearest the row with
    the least median distance to the others; that estimate is ours. Rows that tie for the farthest lose all weight
    together; a step that would leave no weight at all is not taken. With f = 0 it is the mean.

    Tolerates: f <= (n-1)/2.
    Cost: one Gram matrix, O(n^2 d), and at most 2f eigenproblems, O(f n^3).
    Constant: none known; what is published needs the true sigma.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: Diakonikolas, Kamath, Kane, Li, Moitra, Stewart: Being Robust (in High Dimensions) Can Be Practical,
        ICML 2017, for the filter; its rounds, weights and the factor 20 are those of the code of robust-collab.

    >>> FilterL2(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.0008, 1.9991])
    """

    f: int
    sigma: float | None = None
    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        sigma = self.sigma
        if sigma is not None and (isinstance(sigma, bool) or not isinstance(sigma, int | float) or not sigma >= 0):
            raise ConfigError(f"FilterL2: sigma must be a number >= 0 or None to estimate it, got {sigma!r}")

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        distances = rows.squared_distances()
        n, centre = len(distances), typical_row(distances)
        products = products_about(distances, centre)
        bound = self._usual(distances, centre) if self.sigma is None else self.sigma
        share = torch.ones(n, dtype=torch.float64, device=products.device)
        excluded: dict[int, str] = {}
        for _ in range(2 * self.f):
            value, tau = top_variance(products, share)
            if value <= math.sqrt(20) * bound:
                break
            left = without_farthest(share, tau)
            if float(left.sum()) <= 0:
                break
            for row in ((left <= 0) & (share > 0)).nonzero().flatten().tolist():
                excluded[row] = "farthest along the direction of largest variance"
            share = left
        weights = share / share.sum()
        return Aggregate(rows.combine(weights), weights=weights, selected=share > 0, excluded=excluded)

    def _usual(self, distances: Tensor, centre: int) -> float:
        """The top eigenvalue of the n-f rows nearest the row ``centre``."""
        near = distances[centre].sort(stable=True).indices[: len(distances) - self.f]
        return float(torch.linalg.eigvalsh(centred_products(distances[near][:, near]))[-1]) / len(near)
