"""What a server does with the global model itself at the end of a round: clip it, add noise (CRFL)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.registry import Registry


@dataclass(frozen=True)
class ModelPost(ABC):
    """A model in, a model out, after the server's step."""

    @abstractmethod
    def __call__(self, weights: Tensor, round: int, generator: torch.Generator) -> Tensor:
        """The changed flat model [d] of round ``round`` (from 1); ``weights`` is left as it is."""


@dataclass(frozen=True)
class ClipModel(ModelPost):
    r"""Bring the model into the ball of a radius that may grow with the rounds.

    .. math:: w \leftarrow w \min(1, \rho_t / \|w\|), \quad \rho_t = \rho + g\,t

    Reference: Xie, Chen, Chen, Li: CRFL: Certifiably Robust Federated Learning against Backdoor Attacks, ICML 2021
        (its published code has rho_t = 2 + 0.1 t on MNIST).
    """

    radius: float
    growth: float = 0.0

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius) and self.growth >= 0 and math.isfinite(self.growth)):
            raise ConfigError(f"clip: radius must be > 0 and growth >= 0, got {self.radius} and {self.growth}")

    def at(self, round: int) -> float:
        """The radius in a round."""
        return self.radius + self.growth * round

    def __call__(self, weights: Tensor, round: int, generator: torch.Generator) -> Tensor:
        norm = float(torch.linalg.vector_norm(weights, dtype=torch.float64))
        return weights * min(1.0, self.at(round) / norm) if norm > 0 else weights.clone()


@dataclass(frozen=True)
class ModelNoise(ModelPost):
    r"""Add independent noise N(0, std^2) to every parameter.

    Reference: Xie, Chen, Chen, Li: CRFL: Certifiably Robust Federated Learning against Backdoor Attacks, ICML 2021.
    """

    std: float

    def __post_init__(self) -> None:
        if not (self.std >= 0 and math.isfinite(self.std)):
            raise ConfigError(f"gaussian-noise: std must be a number >= 0, got {self.std}")

    def __call__(self, weights: Tensor, round: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(weights.shape, generator=generator, dtype=weights.dtype, device=generator.device)
        return weights + self.std * noise.to(weights.device)


MODEL_POSTS: Registry[ModelPost] = Registry("model step", {"clip": ClipModel, "gaussian-noise": ModelNoise})
