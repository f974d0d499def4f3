"""What a federation under a prior is to minimise: the worst honest set's loss, or the expected one."""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bezoar.errors import ConfigError
from bezoar.priors import HonestPrior

Floats = NDArray[np.float64]


class Reading(Enum):
    """What "expected robustness" is the expectation of. Numbers of two readings do not compare.

    R1: the honest set S is drawn once, everybody else attacks, and the model that comes out is judged by L_S; the
    expectation is over S, and training is run anew for each. R2: one model is judged by E_S L_S = sum_i w_i L_i.
    """

    R1 = "R1"
    R2 = "R2"


def worst_case_loss(losses: ArrayLike, f: int) -> float:
    r"""Objective (1): the largest mean loss of n - f clients, :math:`\max_{|S| = n - f} L_S`.

    It is the mean of the n - f largest ``losses`` [n].

    >>> worst_case_loss([1.0, 4.0, 2.0, 3.0], f=2)
    3.5
    """
    values = _losses(losses)
    return float(worst_case_weights(values, f) @ values)


def worst_case_weights(losses: ArrayLike, f: int) -> Floats:
    r"""The weights [n] of a set S that attains objective (1): :math:`\sum_i w_i \nabla L_i` is a subgradient of it.

    Ties go to the lowest index.

    >>> worst_case_weights([1.0, 4.0, 2.0, 3.0], f=2).tolist()
    [0.0, 0.5, 0.0, 0.5]
    """
    values = _losses(losses)
    if isinstance(f, bool) or not isinstance(f, int | np.integer) or not 0 <= f < len(values):
        raise ConfigError(f"f must be a whole number from 0 to {len(values) - 1} for {len(values)} losses, got {f!r}")
    kept = np.argsort(-values, kind="stable")[: len(values) - int(f)]
    weights = np.zeros(len(values))
    weights[kept] = 1 / len(kept)
    return weights


def expected_loss(losses: ArrayLike, prior: HonestPrior | ArrayLike) -> float:
    r"""Objective (2): :math:`E_S L_S = \sum_i w_i L_i` with :math:`w_i = E[1\{i \in S\} / |S|]`.

    ``prior`` is a prior over the n clients, or the weights [n] themselves.

    >>> from bezoar.priors import Explicit
    >>> expected_loss([1.0, 4.0, 2.0], Explicit(3, bad=((), (0, 1)), p=(0.75, 0.25)))
    2.25
    """
    values = _losses(losses)
    weights = prior.of(len(values)).weights() if isinstance(prior, HonestPrior) else np.asarray(prior, np.float64)
    if weights.shape != values.shape or not np.isfinite(weights).all() or (weights < 0).any():
        raise ConfigError(f"expected_loss: {len(values)} losses need as many weights >= 0, got {weights.tolist()}")
    return float(weights @ values)


def _losses(losses: ArrayLike) -> Floats:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ConfigError(f"losses must be numbers [n], one for each client, got {np.asarray(losses)!r}")
    return values
