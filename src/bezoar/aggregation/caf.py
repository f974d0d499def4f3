"""CAF: down-weight rows along the direction of largest variance until 2f rows' worth of weight is gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._gram import TIE, distances_from_sum, normalised, typical_row
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.kernels.gram import products_about
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class CAF(Rule):
    r"""Covariance-bound agnostic filter: the weighted mean at which the weighted covariance was least.

    .. math:: c_i \leftarrow c_i \Bigl(1 - \frac{\tau_i}{\max_{c_j > 0} \tau_j}\Bigr),\quad
        \tau_i = \langle x_i - \mu_c, v \rangle^2,\quad (\lambda, v) \text{ the top eigenpair of } \Sigma_c,
        \quad \text{while } \sum_i c_i > n - 2f

    From c = 1 on; the answer is the mean mu_c of the least lambda seen, the first of several. It needs no bound on
    the honest variance. Every step takes all weight off at least one row, so there are at most n. The eigenvector is
    exact and deterministic, except that it is anyone's where the largest eigenvalue is double. With f = 0 it is the
    mean.

    Tolerates: f <= (n-1)/2.
    Cost: one Gram matrix, O(n^2 d), and at most n eigenproblems, O(n^4).
    Constant: none known (O(f/n) is published without a number recalled here).
    Peers: ByzFL takes one power step from a random start, returns None for f = 0 and for identical rows, and
        divides by the largest tau of all rows, dropped ones too, so that one row at 1e6 stalls it; Blades and
        FLPoison have none.
    Reference: Allouah, Guerraoui, Stephan: Towards Trustworthy Federated Learning with Untrusted Participants,
        ICML 2025.

    >>> CAF(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.0008, 1.9991])
    """

    f: int
    needs: ClassVar[Needs] = Needs.GRAM

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        distances = normalised(rows.squared_distances())
        n = len(distances)
        products = products_about(distances, typical_row(distances))
        share = torch.ones(n, dtype=torch.float64, device=products.device)
        best, least = share, math.inf
        while self.f and float(share.sum()) > n - 2 * self.f:
            value, tau = top_variance(products, share)
            if value < least:
                best, least = share, value
            if value <= 0:
                break
            share = without_farthest(share, tau)
        weights = best / best.sum()
        gone = (best <= 0).nonzero().flatten().tolist()
        return Aggregate(
            rows.combine(weights),
            weights=weights,
            selected=best > 0,
            excluded=dict.fromkeys(gone, "far out along the direction of largest variance"),
        )


def without_farthest(share: Tensor, tau: Tensor) -> Tensor:
    """Weights ``share`` [n] times 1 - tau_i / max tau over rows with weight; zero where tau is that, up to rounding."""
    factor = 1 - tau / tau.masked_fill(share <= 0, 0.0).max()
    return torch.where(factor > TIE, share * factor, 0.0)


def top_variance(products: Tensor, share: Tensor) -> tuple[float, Tensor]:
    """Top eigenvalue of the covariance of rows weighted by ``share`` [n], and tau [n] up to a common factor.

    ``products`` are inner products of the rows relative to any of them. Rows without weight do not enter at all,
    however far away they are.
    """
    weights = share / share.sum()
    at = products @ weights
    centred = products - at[:, None] - at[None, :] + weights @ at
    root = weights.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root[None, :])
    along = centred @ (root * vectors[:, -1])
    # Identical rows leave rounding, not variance.
    spread = float((weights * distances_from_sum(products, weights)).sum())
    return (float(values[-1]) if spread > 0 else 0.0), (along / along.abs().max().clamp(min=1e-300)).square()
