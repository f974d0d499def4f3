"""Clients that fall together: one operator, one site, one software version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import ENUMERABLE, HonestPrior, check_probability, each, likeliest
from bezoar.priors.family import Family, Floats, Masks, merged


@dataclass(frozen=True)
class Groups(HonestPrior):
    r"""Group g of ``sizes[g]`` consecutive clients is bad with probability ``p``, or ``p[g]``, whatever the others are.

    In a bad group every client is malicious with probability ``within``.

    >>> Groups((2, 1), p=0.5).weights().round(6).tolist()
    [0.277778, 0.277778, 0.444444]
    """

    sizes: tuple[int, ...]
    p: float | tuple[float, ...]
    within: float = 1.0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ConfigError(f"groups: sizes must be numbers of clients >= 1, got {self.sizes}")
        if isinstance(self.p, tuple) and len(self.p) != len(self.sizes):
            raise ConfigError(f"groups: p has {len(self.p)} probabilities for {len(self.sizes)} groups")
        for value in self.p if isinstance(self.p, tuple) else (self.p,):
            check_probability("groups", "p", value)
        check_probability("groups", "within", self.within)

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def of(self, n: int) -> Self:
        if self.n != n:
            raise ConfigError(f"groups: sizes add up to {self.n}, but there are {n} clients")
        return self

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        bad = np.repeat(rng.random((times, len(self.sizes))) < np.asarray(self.p), self.sizes, axis=1)
        return np.asarray(~(bad & (rng.random((times, self.n)) < self.within)))

    def _log_mass(self, honest: Masks) -> Floats:
        starts = np.cumsum((0, *self.sizes[:-1]))
        bad = np.add.reduceat(~honest, starts, axis=1).astype(np.float64)
        p, sizes = each(self.p, len(self.sizes)), np.asarray(self.sizes)
        # 0 ** 0 is one, as it should be.
        fallen = p * self.within**bad * (1 - self.within) ** (sizes - bad)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(fallen + np.where(bad == 0, 1 - p, 0.0)).sum(1))

    def support(self, delta: float = 0.0) -> Family:
        groups = len(self.sizes)
        if self.within < 1 or groups > ENUMERABLE:
            return super().support(delta)
        fallen = (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(np.bool_)
        honest = np.repeat(~fallen, self.sizes, axis=1)
        log_prob = np.asarray(self.log_prob(honest))
        possible = log_prob > -np.inf
        return likeliest(merged(honest[possible], log_prob[possible]), delta)
