r"""What Robust DGD promises for one honest set, from what a training showed of its gradients.

With :math:`\|F - \nabla L_S\|^2 \le \kappa \operatorname{Var}_S` in every round, Var_S <= G^2 + B^2 |grad L_S|^2 on the
models that were visited, kappa B^2 < 1, L_S mu-strongly convex and L-smooth, and a constant step of at most 1 / L:

.. math:: L_S(\theta_T) - L_S^* \le \frac{\kappa G^2}{2 \mu (1 - \kappa B^2)}
    + \bigl(1 - \gamma \mu (1 - \kappa B^2)\bigr)^T (L_S(\theta_0) - L_S^*)

since a step lowers L_S by gamma / 2 (|grad|^2 - |F - grad|^2) at least, and |grad|^2 >= 2 mu (L_S - L_S^*).
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Bound(NamedTuple):
    """``value`` is what is left in the end, ``squared`` the B^2 for which it is least, ``residual`` G^2 there."""

    value: float
    squared: float
    residual: float


def frontier(variances: Floats, gradients: Floats) -> tuple[Floats, Floats]:
    """Where G^2(B^2) = max_t (v_t - B^2 u_t)_+ bends: values of B^2, ascending from 0, and of G^2.

    ``variances`` v [T] and ``gradients`` u [T] (squared norms) are those of the rounds. G^2 is convex, falling and
    linear in between; behind the last value it is 0, or goes on at that level where gradients are zero.

    >>> [values.tolist() for values in frontier(np.array([4.0, 3.0]), np.array([2.0, 1.0]))]
    [[0.0, 1.0, 3.0], [4.0, 2.0, 0.0]]
    """
    # The line that is highest at 0, and of those the flattest.
    start = max(range(len(variances)), key=lambda i: (variances[i], -gradients[i]))
    v, u = float(variances[start]), float(gradients[start])
    places, levels = [0.0], [max(v, 0.0)]
    while levels[-1] > 0 and u > 0:
        flatter = gradients < u
        crossings = np.full(len(variances), math.inf)
        with np.errstate(over="ignore"):
            crossings[flatter] = (v - variances[flatter]) / (u - gradients[flatter])
        zero = min(v / u, sys.float_info.max)
        first = float(crossings.min(initial=math.inf))
        if first >= zero:
            places.append(zero)
            levels.append(0.0)
            break
        tied = np.flatnonzero(crossings == first)
        best = tied[gradients[tied].argmin()]
        at, v, u = first, float(variances[best]), float(gradients[best])
        places.append(at)
        levels.append(max(v - at * u, 0.0))
    return np.array(places), np.array(levels)


def least_bound(kappa: float, convexity: float, variances: Floats, gradients: Floats) -> Bound | None:
    """The least of kappa G^2(B^2) / (2 mu (1 - kappa B^2)) over B^2 < 1 / kappa; None if kappa is infinite.

    Between two bends the bound is a ratio of linear functions, so its least value is at a bend.

    >>> least_bound(0.5, 0.1, np.array([4.0, 3.0]), np.array([2.0, 1.0]))
    Bound(value=10.0, squared=0.0, residual=4.0)
    """
    if not math.isfinite(kappa) or not (np.isfinite(variances).all() and np.isfinite(gradients).all()):
        return None
    squared, residual = frontier(variances, gradients)
    if kappa == 0:
        return Bound(0.0, 0.0, float(residual[0]))
    left = 1 - kappa * squared
    usable = left > 1e-12
    values = kappa * residual[usable] / (2 * convexity * left[usable])
    best = int(values.argmin())
    return Bound(float(values[best]), float(squared[best]), float(residual[best]))


def remaining(bound: Bound, kappa: float, convexity: float, step: float, rounds: int, start: float) -> float:
    """What ``rounds`` steps of size ``step`` leave of the excess loss ``start``, beside ``bound.value``."""
    rate = min(1.0, max(0.0, step * convexity * (1 - kappa * bound.squared)))
    return float((1 - rate) ** rounds * start)
