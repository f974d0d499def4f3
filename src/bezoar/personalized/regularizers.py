"""How the common model rho is tied to a user's model theta: value, gradient, and what a user can make of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.registry import Registry


@dataclass(frozen=True)
class Regularizer(ABC):
    """R(rho, theta) of strength ``strength`` (lambda), a function of their distance r = |rho - theta|."""

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise ConfigError(f"{type(self).__name__}: strength must be finite and positive, got {self.strength}")

    @abstractmethod
    def of_distance(self, r: Tensor) -> Tensor:
        """R at distance ``r``."""

    @abstractmethod
    def pull(self, r: Tensor) -> Tensor:
        """R'(r)/r: the gradient with respect to rho is (rho - theta) times it; 0 where R has a kink."""

    @property
    def reach(self) -> float:
        """Radius of the ball of gradients that a user can send, infinity for all vectors."""
        return math.inf

    def value(self, rho: Tensor, theta: Tensor) -> Tensor:
        """R(rho, theta); over the last dimension, so that theta [N, D] gives [N]."""
        return self.of_distance(torch.linalg.vector_norm(rho - theta, dim=-1))

    def gradient(self, rho: Tensor, theta: Tensor) -> Tensor:
        """Gradient with respect to rho; the one with respect to theta is its negative."""
        gap = rho - theta
        return gap * self.pull(torch.linalg.vector_norm(gap, dim=-1, keepdim=True))

    def project(self, gradient: Tensor) -> Tensor:
        """The nearest gradient that some theta gives."""
        if math.isinf(self.reach):
            return gradient
        length = float(torch.linalg.vector_norm(gradient))
        return gradient if length <= self.reach else gradient * (self.reach / length)

    @abstractmethod
    def model_for(self, rho: Tensor, gradient: Tensor, distance: float = 1.0) -> Tensor:
        """A theta whose gradient at ``rho`` is ``gradient``; ``distance`` is used where the gradient leaves it open.

        Raises:
            ConfigError: no theta has this gradient.
        """

    def _check(self, gradient: Tensor) -> float:
        length = float(torch.linalg.vector_norm(gradient))
        if not length <= self.reach * (1 + 1e-6):
            raise ConfigError(
                f"{type(self).__name__}: no model gives a gradient of length {length:.6g}, the longest has "
                f"{self.strength:.6g}; project it first"
            )
        return length


@dataclass(frozen=True)
class SquaredL2(Regularizer):
    r"""lambda |rho - theta|^2: the best rho is the mean of the users' models, and any gradient can be sent.

    .. math:: \nabla_\rho R = 2\lambda(\rho - \theta),\quad \mathrm{Grad}(\rho) = R^D
    """

    def of_distance(self, r: Tensor) -> Tensor:
        return self.strength * r.square()

    def pull(self, r: Tensor) -> Tensor:
        return torch.full_like(r, 2 * self.strength)

    def model_for(self, rho: Tensor, gradient: Tensor, distance: float = 1.0) -> Tensor:
        return rho - gradient / (2 * self.strength)


@dataclass(frozen=True)
class L2(Regularizer):
    r"""lambda |rho - theta|: the best rho is the geometric median of the users' models.

    .. math:: \nabla_\rho R = \lambda(\rho - \theta)/\|\rho - \theta\|,\quad
        \mathrm{Grad}(\rho) = \{g : \|g\| \le \lambda\}

    At rho = theta every g of the ball is a subgradient; :meth:`gradient` gives 0 there.
    """

    def of_distance(self, r: Tensor) -> Tensor:
        return self.strength * r

    def pull(self, r: Tensor) -> Tensor:
        return torch.where(r > 0, self.strength / r.clamp(min=torch.finfo(r.dtype).tiny), torch.zeros_like(r))

    @property
    def reach(self) -> float:
        return self.strength

    def model_for(self, rho: Tensor, gradient: Tensor, distance: float = 1.0) -> Tensor:
        """A full-length gradient fixes the direction only; a shorter one is a subgradient at theta = rho."""
        length = self._check(gradient)
        if length < self.strength * (1 - 1e-6):
            return rho.clone()
        return rho - gradient * (distance / length)


@dataclass(frozen=True)
class SmoothL2(Regularizer):
    r"""lambda sqrt(1 + |rho - theta|^2), a smooth form of the distance.

    .. math:: \nabla_\rho R = \lambda(\rho - \theta)/\sqrt{1 + \|\rho - \theta\|^2},\quad
        \mathrm{Grad}(\rho) = \{g : \|g\| < \lambda\}

    The ball is open; projections go to 1 - 1e-9 of its radius.
    """

    def of_distance(self, r: Tensor) -> Tensor:
        return self.strength * torch.sqrt(1 + r.square())

    def pull(self, r: Tensor) -> Tensor:
        return self.strength / torch.sqrt(1 + r.square())

    @property
    def reach(self) -> float:
        return self.strength * (1 - 1e-9)

    def model_for(self, rho: Tensor, gradient: Tensor, distance: float = 1.0) -> Tensor:
        part = min(self._check(gradient), self.reach) / self.strength
        return rho - gradient / (self.strength * math.sqrt((1 - part) * (1 + part)))


#: Name in a config -> regulariser.
REGULARIZERS: Registry[Regularizer] = Registry(
    "regulariser", {"l2-squared": SquaredL2, "l2": L2, "smooth-l2": SmoothL2}
)
