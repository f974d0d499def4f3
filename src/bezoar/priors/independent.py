"""Every client is malicious on its own account."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import Prior, check_probability


@dataclass(frozen=True)
class Independent(Prior):
    r"""Client i is malicious with probability ``p``, or ``p[i]``, whatever the others are.

    >>> import numpy as np
    >>> Independent((0.0, 1.0, 0.0)).draw(3, np.random.default_rng(0)).tolist()
    [True, False, True]
    """

    p: float | tuple[float, ...]

    def __post_init__(self) -> None:
        for value in self.p if isinstance(self.p, tuple) else (self.p,):
            check_probability("independent", "p", value)

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        if isinstance(self.p, tuple) and len(self.p) != n:
            raise ConfigError(f"independent: p has {len(self.p)} probabilities for {n} clients")
        return np.asarray(rng.random(n) >= np.asarray(self.p))
