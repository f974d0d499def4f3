"""Noise after aggregation (weak differential privacy)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.registry import Registry


@dataclass(frozen=True)
class Post(ABC):
    """A vector in, a vector out: what happens to the aggregate before the server uses it."""

    @abstractmethod
    def __call__(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        """The changed aggregate [d]; ``vector`` is left as it is."""


@dataclass(frozen=True)
class GaussianNoise(Post):
    r"""Add independent noise N(0, std^2) to every coordinate of the aggregate.

    ``std`` has the unit of the updates. Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?,
    2019 ("weak differential privacy").
    """

    std: float

    def __post_init__(self) -> None:
        if not (self.std >= 0 and math.isfinite(self.std)):
            raise ConfigError(f"gaussian-noise: std must be a number >= 0, got {self.std}")

    def __call__(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(vector.shape, generator=generator, dtype=vector.dtype, device=generator.device)
        return vector + self.std * noise.to(vector.device)


POSTS: Registry[Post] = Registry("post-aggregator", {"gaussian-noise": GaussianNoise})
