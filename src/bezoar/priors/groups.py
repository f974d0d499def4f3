"""Clients that fall together: one operator, one site, one software version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import Prior, check_probability


@dataclass(frozen=True)
class Groups(Prior):
    r"""Group g of ``sizes[g]`` consecutive clients is bad with probability ``p``, or ``p[g]``, whatever the others are.

    In a bad group every client is malicious with probability ``within``.

    >>> import numpy as np
    >>> Groups((2, 1), p=(1.0, 0.0)).draw(3, np.random.default_rng(0)).tolist()
    [False, False, True]
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

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        if sum(self.sizes) != n:
            raise ConfigError(f"groups: sizes add up to {sum(self.sizes)}, but there are {n} clients")
        bad = np.repeat(rng.random(len(self.sizes)) < np.asarray(self.p), self.sizes)
        return np.asarray(~(bad & (rng.random(n) < self.within)))
