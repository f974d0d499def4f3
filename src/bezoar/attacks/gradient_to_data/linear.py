"""Linear regression: one sample with any gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data.base import GradientToData, Points, linear_parameters
from bezoar.errors import ConfigError


def linear_point(theta: Tensor, gradient: Tensor, residual: float = 1.0, *, half: bool = True) -> tuple[Tensor, Tensor]:
    """The sample (x [p], a) whose loss at ``theta`` [p] has ``gradient`` [p]; see :class:`LinearPoint`.

    >>> x, a = linear_point(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0]))
    >>> ((x @ torch.tensor([1.0, 2.0]) - a) * x).tolist()
    [3.0, -4.0]
    """
    x = gradient / residual
    return x, x @ theta - (residual if half else residual / 2)


@dataclass(frozen=True)
class LinearPoint(GradientToData):
    r"""One sample that gives linear regression any gradient; two if the model has a bias.

    .. math:: x = v/c,\quad a = x \cdot \theta - c,\quad v = g - 2\nu\theta
        \quad\Rightarrow\quad \nabla_\theta\left[\tfrac12 (x \cdot \theta - a)^2 + \nu\|\theta\|^2\right] = g

    for any residual c other than 0. A large c gives a short input with an outlying answer, a small c the reverse. With
    ``loss="square"`` the loss has no 1/2 and a = x.theta - c/2. A bias ties the residuals, which must then add up to
    the bias' part b of v: two samples x_1 = v/(2(b+c)), x_2 = -v/(2c) of residuals b + c and -c (c with b's sign).

    Knows: the model and the gradient wanted.
    Cost: O(p).
    Peers: none has it.
    Reference: Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022.
    """

    residual: float = 1.0
    loss: Literal["half-square", "square"] = "half-square"
    ridge: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.residual) or self.residual == 0:
            raise ConfigError(f"LinearPoint: residual must be a finite number other than 0, got {self.residual}")
        if self.loss not in ("half-square", "square"):
            raise ConfigError(f"LinearPoint: loss must be 'half-square' or 'square', got {self.loss!r}")
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ConfigError(f"LinearPoint: ridge must be finite and not negative, got {self.ridge}")

    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        weight, bias, matrix = linear_parameters(model, gradient, "LinearPoint")
        if len(weight) != 1:
            raise ConfigError(f"LinearPoint: linear regression has a single output, this model has {len(weight)}")
        theta = weight[0] if bias is None else torch.cat([weight[0], bias])
        v = matrix[0].to(weight) - 2 * self.ridge * theta
        half = self.loss == "half-square"
        if bias is None:
            x, a = linear_point(theta, v, self.residual, half=half)
            return Points(x[None], a[None])
        c = math.copysign(self.residual, float(v[-1]))
        residuals = torch.stack([v[-1] + c, torch.full_like(v[-1], -c)])
        inputs = v[:-1] / (2 * residuals[:, None])
        return Points(inputs, inputs @ weight[0] + bias[0] - (residuals if half else residuals / 2))
