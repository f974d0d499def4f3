"""Robustness constants for candidate honest sets, one for every set; the proofs are in docs/sip.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bezoar.priors import Family


def rho(family: Family) -> NDArray[np.float64]:
    r"""The best constant there is, for every set of ``family`` at once: :math:`\max_T |S \setminus T| / |S \cap T|` [K].

    Raises:
        ConfigError: two sets are disjoint; no rule can serve both.

    >>> from bezoar.priors import Groups
    >>> family = Groups((8, 4, 4, 4), p=0.1).support(0.06)
    >>> [f"{size}: {value:.3g}" for size, value in zip(family.sizes.tolist(), rho(family))]
    ['20: 0.667', '12: 0.5', '16: 1', '16: 1', '16: 1']
    """
    return family.rho()
