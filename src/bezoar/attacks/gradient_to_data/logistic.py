"""Binary logistic regression: copies of one sample with any gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data.base import GradientToData, Points, linear_parameters
from bezoar.errors import ConfigError

#: Lambert's W at 1/e, the root of w exp(w) = 1/e: a sample of class 0 on the model's negative side can not have a
#: gradient longer than this over its distance from the boundary.
W = 0.2784645427610738


def sample_length(r: float, s: float) -> float:
    """The smallest alpha >= 0 with alpha sigmoid(alpha s) = r; s < 0 needs r <= W/|s|.

    >>> sample_length(1.0, 0.0)
    2.0
    """
    if r == 0:
        return 0.0
    # The left side grows up to `high` and reaches r there (for s < 0, alpha |s| <= 1 + W and so sigmoid >= W/(1 + W));
    # halving needs no care about flat ends.
    low, high = 0.0, 2 * r if s >= 0 else r * (1 + W) / W
    for _ in range(2000):
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        if middle * _sigmoid(middle * s) < r:
            low = middle
        else:
            high = middle
    return high


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


@dataclass(frozen=True)
class LogisticCopies(GradientToData):
    r"""k copies of one sample of class 0 that give binary logistic regression (single output, no bias) any gradient.

    .. math:: x = \alpha u,\quad \alpha\,\sigma(\alpha s) = r/k,\quad u = g/\|g\|,\ r = \|g\|,\ s = u \cdot \theta

    For s >= 0 one sample does (k = 1, r <= alpha <= 2r). For s < 0 the left side is at most W/|s|, W = W(1/e) =
    0.2785 (Lambert), attained at alpha = (1 + W)/|s|; then k = ceil(r |s| / W). More than ``most`` copies are an error.

    Knows: the model and the gradient wanted.
    Cost: O(p + k).
    Peers: none has it.
    Reference: derived here; the need for labels of one's own choice is Farhadkhani et al.'s, ICML 2022.
    """

    most: int = 100_000

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"LogisticCopies: most must be at least 1, got {self.most}")

    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        weight, bias, matrix = linear_parameters(model, gradient, "LogisticCopies")
        if len(weight) != 1 or bias is not None:
            raise ConfigError(
                "LogisticCopies: needs a single output without a bias; put a constant feature into the inputs, or use "
                "SoftmaxExact on two classes"
            )
        # On the CPU, so that every device gets the same sample.
        g, theta = matrix[0].double().cpu(), weight[0].double().cpu()
        r = float(torch.linalg.vector_norm(g))
        s = float(g @ theta) / r if r > 0 else 0.0
        k = 1 if s >= 0 else max(1, math.ceil(r * abs(s) / W))
        if k > self.most:
            raise ConfigError(
                f"LogisticCopies: the model is so sure of the other label that {k} copies were needed; most={self.most}"
            )
        x = g * (sample_length(r / k, s) / r) if r > 0 else g
        return Points(x.to(weight).expand(k, -1).clone(), torch.zeros(k, dtype=torch.int64, device=weight.device))
