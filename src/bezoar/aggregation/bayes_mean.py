"""The Bayes mean (RLVI): rows weigh as much as they are likely to be honest, whatever their number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._gram import check_stopping, distances_from_sum, normalised, typical_row
from bezoar.aggregation.base import Weighting
from bezoar.kernels.gram import products_about
from bezoar.updates.base import Needs, Updates

#: The variance is at least this share of the median squared distance from the first row: two honest rows differ by
#: twice as much as one of them from their mean.
FLOOR = 0.5


@dataclass(frozen=True)
class BayesMean(Weighting):
    r"""The mean of all updates, each weighted by the probability that it is honest.

    .. math:: \pi_i = \frac{e^{-l_i}}{\hat\varepsilon / (1 - \hat\varepsilon) + e^{-l_i}},\quad
        l_i = \frac{\|x_i - \theta\|^2}{2 \sigma^2},\quad \hat\varepsilon = 1 - \frac1n \sum_i \pi_i,\quad
        \theta = \frac{\sum_i \pi_i x_i}{\sum_i \pi_i},\quad
        \sigma^2 = \frac{\sum_i \pi_i \|x_i - \theta\|^2}{\sum_i \pi_i}

    Repeated until no probability moves by more than ``tolerance``, or ``max_iterations`` times and then stopped without
    a word, from theta at the row with the least median
    distance to all rows (the first of several), sigma^2 the median squared distance from it and an epsilon of 0.05.
    Unguarded, sigma^2 shrinks until one row is left; so sigma^2 stays at or above half its first value and epsilon
    at or below one half. Where more than half of the rows are equal, the first sigma^2 is zero and
    they are the answer. The scores are the probabilities. A tight majority of bad rows, or a tight cluster of nearly
    half, carries the answer with it.

    Tolerates: no number of bad rows is declared; fewer than half far from the others.
    Cost: one Gram matrix, O(n^2 d), and O(n^2) a step.
    Constant: none known; numerically it breaks under a tight cluster of bad rows.
    Peers: none of ByzFL, Blades and FLPoison has it; the authors' code stops at a tolerance of 1e-3.
    Reference: Karakulev, Zachariah, Singh: Adaptive Robust Learning using Latent Bernoulli Variables, ICML 2024
        (arXiv 2312.00585).

    >>> BayesMean()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([1.7572, 1.7572])
    """

    tolerance: float = 1e-6
    max_iterations: int = 100
    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stopping(self.name, self.tolerance, self.max_iterations)

    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        distances = normalised(rows.squared_distances())
        n, centre = len(distances), typical_row(distances)
        products, away = products_about(distances, centre), distances[centre]
        variance = first = float(away.sort().values[n // 2])
        if first <= 0:
            honest = (away <= 0).double()
            weights = torch.zeros_like(away)
            weights[centre] = 1.0
            return weights, honest
        epsilon, honest = 0.05, torch.ones_like(away)
        for _ in range(self.max_iterations):
            # e^-l / (r + e^-l) without the underflow of both.
            odds = math.log((1 - epsilon) / epsilon) if epsilon > 0 else math.inf
            previous, honest = honest, torch.sigmoid(odds - away / (2 * variance))
            epsilon = min(1 - float(honest.mean()), 0.5)
            weights = honest / honest.sum()
            away = distances_from_sum(products, weights)
            variance = max(float(weights @ away), FLOOR * first)
            if float((honest - previous).abs().max()) <= self.tolerance:
                break
        return weights, honest
