"""Every client is malicious on its own account."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior, check_probability, each
from bezoar.priors.family import Floats, Masks


@dataclass(frozen=True)
class Independent(HonestPrior):
    r"""Client i is malicious with probability ``p``, or ``p[i]``, whatever the others are.

    >>> Independent((0.5, 0.5)).weights().tolist()
    [0.5, 0.5]
    """

    p: float | tuple[float, ...]
    clients: int | None = None

    def __post_init__(self) -> None:
        for value in self.p if isinstance(self.p, tuple) else (self.p,):
            check_probability("independent", "p", value)
        if self.clients is not None:
            self.of(self.clients)

    @property
    def n(self) -> int | None:
        return len(self.p) if isinstance(self.p, tuple) else self.clients

    def of(self, n: int) -> Self:
        if isinstance(self.p, tuple) and len(self.p) != n:
            raise ConfigError(f"independent: p has {len(self.p)} probabilities for {n} clients")
        if self.clients not in (None, n):
            raise ConfigError(f"independent: this prior is about {self.clients} clients, not about {n}")
        return self if self.n == n else replace(self, clients=n)

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        n = self._clients()
        return np.asarray(rng.random((times, n)) >= each(self.p, n))

    def _log_mass(self, honest: Masks) -> Floats:
        p = each(self.p, honest.shape[1])
        with np.errstate(divide="ignore"):
            chances = np.where(honest, np.log1p(-p), np.log(p))
        return np.asarray(chances.sum(1))
