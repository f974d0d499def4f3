"""The geometric median: the point of least sum of distances to all updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._gram import TIE, check_stopping, distances_from_sum, inner_products, normalised
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State, check_weights
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class GeometricMedian(Rule):
    r"""The point with the least (weighted) sum of distances to the updates.

    .. math:: F(x) = \arg\min_z \sum_i \alpha_i \|x_i - z\|,\qquad
        z \leftarrow \frac{\sum_i \beta_i x_i}{\sum_i \beta_i},\quad \beta_i = \frac{\alpha_i}{\|x_i - z\|}

    Weiszfeld's steps in the space of the n weights, from the row with the least sum of distances. On a row the step of
    Vardi and Zhang tells whether that row is the median and leads away from it if not, so the answer is the median
    itself, not that of a smoothed sum. ``tolerance`` and ``smoothing`` (rows nearer than that count as met) are shares
    of the median distance of the rows from the first one. It stops when what is left of the way, judged by
    the last two steps, is below the tolerance, or after ``max_iterations``. Where the median is not unique (rows on a
    line) it is the mean of the
    rows that are medians, copies of a row counted once. ``weighted=True`` takes alpha from ``Context.client_weights``
    (RFA); otherwise alpha is 1/n.

    Tolerates: q <= (n-1)/2 bad rows; with weights, less than half of their sum.
    Cost: one Gram matrix, O(n^2 d), and O(n^2) a step.
    Constant: 4 (1 + q/(n-2q))^2, published; none with weights.
    Peers: ByzFL takes 3 steps from zero, smoothed by an absolute 0.1, which makes it the mean of small updates; Blades
        at most 100 steps from the mean; FLPoison 3 steps from zero.
    Reference: Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE TSP 2022; Vardi, Zhang:
        The multivariate L1-median and associated data depth, PNAS 2000.

    >>> GeometricMedian()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.0204, 1.9460])
    """

    tolerance: float = 1e-8
    max_iterations: int = 1000
    smoothing: float = 1e-8
    weighted: bool = False
    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stopping(self.name, self.tolerance, self.max_iterations)
        smoothing = self.smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, int | float) or not 0 <= smoothing < math.inf:
            raise ConfigError(f"GeometricMedian: smoothing must be a number >= 0, got {smoothing!r}")
        if not isinstance(self.weighted, bool):
            raise ConfigError(f"GeometricMedian: weighted must be true or false, got {self.weighted!r}")

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.weighted:
            return ()
        value = 4 * (1 + q / (n - 2 * q)) ** 2 if 2 * q < n else math.inf
        return (Constant(value, "4 (1 + q/(n-2q))^2", "published"),)

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        distances = normalised(rows.squared_distances())
        share = torch.full_like(distances[0], 1 / len(rows))
        if self.weighted:
            # Again, as rows with weight may have been excluded since the first check.
            check_weights(self.name, context.client_weights, len(rows))
            assert context.client_weights is not None
            share = context.client_weights.detach().to(distances)
            share = share / share.max()
            share = share / share.sum()
        weights = self._median(distances, share)
        return Aggregate(rows.combine(weights), weights=weights)

    def _median(self, distances: Tensor, share: Tensor) -> Tensor:
        """Weights [n] of the median, of rows with the weights ``share`` [n]."""
        sums = distances.sqrt() @ share
        first = int(sums.argmin())
        weights = torch.zeros_like(share)
        weights[first] = 1.0
        away = distances[first]
        if not (away > 0).any():
            return weights
        scale = float(away[away > 0].median().sqrt())
        near = self.smoothing * scale
        products = inner_products(distances, first)
        last = math.inf
        for step in range(self.max_iterations):
            lengths = away.sqrt()
            met = lengths <= near
            pull = torch.where(met, 0.0, share / lengths.clamp(min=torch.finfo(torch.float64).tiny))
            total = float(pull.sum())
            if total <= 0:
                break
            change = pull / total - weights
            move = math.sqrt(max(float(change @ products @ change), 0.0))
            force, mass = total * move, float(share[met].sum())
            if force <= mass * (1 + 1e-9):
                if step == 0:
                    tied = ((sums <= sums[first] * (1 + TIE)) & (share > 0)).nonzero().flatten()
                    if float(distances[first, tied].max()) > 0:
                        copies = (distances[tied][:, tied] <= 0).double().sum(1)
                        weights = torch.zeros_like(share)
                        weights[tied] = 1 / (copies * (1 / copies).sum())
                break
            weights = weights + (1 - mass / force) * change
            move *= 1 - mass / force
            ratio = min(move / last, 1.0) if last > 0 else 0.0
            if move <= self.tolerance * scale * (1 - ratio):
                break
            last = move
            away = distances_from_sum(products, weights)
        return weights
