r"""Coordinate-Lipschitz constants: by how much a gradient's entry changes when the model moves.

A field G: R^d -> R^d of updates is c-coordinate-Lipschitz if for every coordinate i

.. math:: |G_i(\theta) - G_i(\theta')| \le c\, |\theta - \theta'|_1 ;

for a gradient, c bounds the entries of the Hessian. Constants are *proved* here for softmax regression only. For other
models there is :func:`lower_estimate`, which is what it is called: no certificate follows from it. Proofs are in
docs/certificates.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bezoar.errors import ConfigError

#: Softmax regression (with or without bias) on features in [0, 1], any data, any number of classes: proved.
SOFTMAX = 0.25


def with_bias(features: Tensor) -> Tensor:
    """Samples as rows with a last entry 1: [N, ...] -> [N, m + 1] float64."""
    flat = features.flatten(1).double()
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype, device=flat.device)], 1)


def products(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weighted mean of |x_i x_j| over the rows of ``features`` [N, m]: float64 [m, m]; weights sum to 1 at most.

    Raises ConfigError if a feature is not finite.
    """
    if features.ndim != 2 or not len(features):
        raise ConfigError(f"features must be [N, m] with N >= 1, got {list(features.shape)}")
    if not torch.isfinite(features).all():
        raise ConfigError("features must be finite")
    size = features.double().abs()
    shares = (
        torch.full((len(size),), 1 / len(size), dtype=size.dtype, device=size.device) if weights is None else weights
    )
    return (size * shares.to(size.device, size.dtype)[:, None]).T @ size


def softmax_constant(features: Tensor, weights: Tensor | None = None) -> float:
    r"""c of the mean cross-entropy of softmax regression on these ``features`` [N, m]: a proved bound.

    .. math:: c = \tfrac14 \max_{i,j} \frac1N \sum_s |x_{si} x_{sj}|

    Give features with their bias column (:func:`with_bias`) if the model has a bias; that column alone gives 1/4.

    >>> softmax_constant(torch.tensor([[0.5, 1.0], [0.5, 0.0]]))
    0.125
    """
    return SOFTMAX * float(products(features, weights).max())


def softmax_growth(products: Tensor, coordinates: int) -> float:
    r"""By how much the gradient's l1 norm on any w ``coordinates`` changes per unit of l1 distance: a proved bound.

    At most w c, and much less where features are small: with the mean products M of :func:`products`

    .. math:: g = \tfrac14 \max_j \sum \text{of the } w \text{ largest of } M_{1j}, M_{1j}, M_{2j}, M_{2j}, \dots

    >>> softmax_growth(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), coordinates=3)
    0.625
    """
    if coordinates < 1:
        raise ConfigError(f"coordinates must be at least 1, got {coordinates}")
    twice = torch.cat([products, products])
    largest = twice.topk(min(coordinates, len(twice)), dim=0).values
    return SOFTMAX * float(largest.sum(0).max())


def softmax_smoothness(features: Tensor, weights: Tensor | None = None) -> float:
    r"""beta of the mean cross-entropy of softmax regression on these ``features`` [N, m] in the l2 norm: proved.

    .. math:: \beta = \tfrac12 \lambda_{\max} \Big(\frac1N \sum_s x_s x_s^\top\Big)

    >>> round(softmax_smoothness(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 6)
    0.25
    """
    x = features.double()
    shares = torch.full((len(x),), 1 / len(x), dtype=x.dtype, device=x.device) if weights is None else weights
    second = (x * shares.to(x.device, x.dtype)[:, None]).T @ x
    # Rounding must not make it smaller than it is.
    return 0.5 * max(0.0, float(torch.linalg.eigvalsh(second)[-1])) * (1 + 1e-12)


def lower_estimate(
    field: Callable[[Tensor], Tensor],
    weights: Tensor,
    draws: torch.Generator,
    starts: int = 8,
    steps: int = 8,
    distance: float = 1e-2,
) -> float:
    r"""A **lower** estimate of c for any field of updates: the largest ratio that a search finds near ``weights``.

    Every ratio :math:`|G(\theta + h e_j) - G(\theta)|_\infty / h` that it looks at is attained, so the true constant
    is no smaller (up to rounding); it may be far larger elsewhere. From ``starts`` drawn coordinates j it goes on to
    the coordinate that reacted most, up to ``steps`` times.

    Args:
        field: the update [d] at a model [d]; must not change its argument.
        weights: where to look, [d].
        draws: of the coordinates to start from, on the CPU.
        starts: how many.
        steps: moves from each.
        distance: h, in units of the weights.

    Raises:
        ConfigError: an argument is out of range, or the field is not finite.
    """
    if not (0 < distance < math.inf) or starts < 1 or steps < 1:
        raise ConfigError(f"needs starts, steps >= 1 and a positive distance, got {starts}, {steps} and {distance}")
    base = field(weights)
    if base.shape != weights.shape or not torch.isfinite(base).all():
        raise ConfigError(f"the field must give {len(weights)} finite numbers")
    best = 0.0
    seen: set[int] = set()
    for start in torch.randint(len(weights), (starts,), generator=draws).tolist():
        j = int(start)
        for _ in range(steps):
            if j in seen:
                break
            seen.add(j)
            moved = weights.clone()
            moved[j] += distance
            # What was really added, after rounding; nothing, where the weight is huge.
            added = float((moved[j] - weights[j]).abs())
            if not added:
                break
            largest, place = (field(moved) - base).abs().max(0)
            best = max(best, float(largest) / added)
            j = int(place)
    return best
