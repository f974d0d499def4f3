"""What a prior over honest sets is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError


@dataclass(frozen=True)
class Prior(ABC):
    """A probability over which of n clients are honest."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Who is honest: bool [n]. Raises ConfigError if the prior is about another number of clients."""


def check_probability(owner: str, name: str, value: float) -> None:
    """Raise unless 0 <= value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{owner}: {name} must be a number from 0 to 1, got {value!r}")
