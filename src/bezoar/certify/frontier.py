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
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError

Floats = NDArray[np.float64]

#: Entries of the largest temporary array of :meth:`Looks.of`.
_ENTRIES = 2**22


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


def least_bounds(kappas: Floats, convexity: float, variances: Floats, gradients: Floats) -> Floats:
    r"""The values of :func:`least_bound` for many sets at once [K], with ``kappas`` [K] and [K, T] of the others.

    With s = 1 / (1 - kappa B^2) the bound is, but for 2 mu, the least over s >= 1 of

    .. math:: \max_t \bigl(u_t + s (\kappa v_t - u_t)\bigr)_+,

    a convex function of straight pieces: a falling and a rising piece are cut until nothing lies above where they meet.
    Infinite where kappa is. O(K T) for a cut, of which there are few.

    >>> least_bounds(np.array([0.5]), 0.1, np.array([[4.0, 3.0]]), np.array([[2.0, 1.0]])).tolist()
    [10.0]
    """
    found = np.where(kappas == 0, 0.0, np.inf)
    todo = np.flatnonzero(np.isfinite(kappas) & (kappas > 0))
    if not len(todo):
        return found
    start = np.concatenate([gradients[todo], np.zeros((len(todo), 1))], axis=1)
    slope = np.concatenate([kappas[todo, None] * variances[todo] - gradients[todo], np.zeros((len(todo), 1))], axis=1)
    rows = np.arange(len(todo))

    def pick(values: Floats, then: Floats) -> NDArray[np.int64]:
        top = values.max(1, keepdims=True)
        return np.asarray(np.where(values >= top, then, -np.inf).argmax(1))

    left, right = pick(start + slope, slope), pick(slope, start)
    done = slope[rows, left] >= 0
    found[todo[done]] = (start + slope)[rows, left][done] / (2 * convexity)
    todo, start, slope, left, right = todo[~done], start[~done], slope[~done], left[~done], right[~done]
    while len(todo):
        rows = np.arange(len(todo))
        falls, rises = slope[rows, left], slope[rows, right]
        s = np.maximum((start[rows, right] - start[rows, left]) / (falls - rises), 1.0)
        values = start + s[:, None] * slope
        top, reached = values.argmax(1), start[rows, right] + s * rises
        highest = values[rows, top]
        # Rounding must not go on for ever: a piece that is there already cuts nothing.
        done = (highest <= reached * (1 + 1e-13)) | (top == left) | (top == right)
        found[todo[done]] = highest[done] / (2 * convexity)
        falling = slope[rows, top] < 0
        left, right = np.where(falling, top, left), np.where(falling, right, top)
        todo, start, slope, left, right = todo[~done], start[~done], slope[~done], left[~done], right[~done]
    return found


def remaining(bound: Bound, kappa: float, convexity: float, step: float, rounds: int, start: float) -> float:
    """What ``rounds`` steps of size ``step`` leave of the excess loss ``start``, beside ``bound.value``."""
    rate = min(1.0, max(0.0, step * convexity * (1 - kappa * bound.squared)))
    return float((1 - rate) ** rounds * start)


@dataclass(frozen=True, eq=False)
class Frontier:
    r"""Empirical (G_S, B_S) of one honest set: what its gradients were at the models that were visited.

    ``variances`` v [T] are Var_S of the clients' gradients, ``gradients`` u [T] the squared norms of their mean. The
    pairs (G, B) with v_t <= G^2 + B^2 u_t for all t are those with G^2 >= :meth:`squared`; models that were not visited
    may ask for more.
    """

    variances: Floats
    gradients: Floats

    def __post_init__(self) -> None:
        v, u = self.variances, self.gradients
        if v.ndim != 1 or v.shape != u.shape or not len(v):
            raise ConfigError(f"a frontier needs as many variances as squared norms, got {v.shape} and {u.shape}")
        if not (np.isfinite(v).all() and np.isfinite(u).all() and (u >= 0).all()):
            raise ConfigError("a frontier needs finite variances and squared norms; did training diverge?")

    def squared(self, b: float) -> float:
        """The least G^2 for this B: convex and falling in B^2."""
        return max(0.0, float((self.variances - b * (b * self.gradients)).max()))

    def best(self, kappa: float, mu: float = 0.5) -> Bound | None:
        """The B with the least kappa G^2(B) / (2 mu (1 - kappa B^2)); None if kappa is infinite."""
        return least_bound(kappa, mu, self.variances, self.gradients)


@dataclass(frozen=True, eq=False)
class Looks:
    r"""Gram matrices of all clients' gradients at the models visited, and what they say of any set.

    .. math:: u = \frac{1_S^\top G 1_S}{|S|^2},\quad v = \frac{1}{|S|} \sum_{i \in S} G_{ii} - u

    G is one of the ``grams`` [T, n, n]. Called with one honest set, bool [n], it gives its :class:`Frontier`.
    """

    grams: Floats

    def __post_init__(self) -> None:
        shape = self.grams.shape
        if len(shape) != 3 or shape[1] != shape[2] or not min(shape):
            raise ConfigError(f"looks: needs Gram matrices [T, n, n] of the clients' gradients, got {list(shape)}")
        if not np.isfinite(self.grams).all():
            raise ConfigError("looks: Gram matrices must be finite; did training diverge?")

    def __call__(self, honest: NDArray[np.bool_]) -> Frontier:
        v, u = self.of(honest[None])
        return Frontier(v[0], u[0])

    def of(self, honest: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """v and u of the sets ``honest`` [K, n]: [K, T] each. One product, K x n^2/2 by n^2/2 x T.

        Raises:
            ConfigError: another number of clients, or an empty set.
        """
        grams = np.asarray(self.grams, dtype=np.float64)
        n = grams.shape[1]
        if honest.ndim != 2 or honest.shape[1] != n:
            raise ConfigError(
                f"frontiers: sets of {honest.shape[-1]} clients need Gram matrices [T, {honest.shape[-1]}, "
                f"{honest.shape[-1]}], got {list(grams.shape)}"
            )
        sizes = honest.sum(1)[:, None]
        if (sizes == 0).any():
            raise ConfigError("frontiers: a set is empty")
        own = honest.astype(np.float64) @ np.diagonal(grams, axis1=1, axis2=2).T
        i, j = np.triu_indices(n, 1)
        pairs = (grams[:, i, j] + grams[:, j, i]).T
        u, step = own.copy(), max(1, _ENTRIES // max(1, len(i)))
        for at in range(0, len(honest), step):
            part = slice(at, at + step)
            u[part] += (honest[part][:, i] & honest[part][:, j]).astype(np.float64) @ pairs
        u = np.maximum(u / sizes**2, 0.0)
        return np.maximum(own / sizes - u, 0.0), u


def frontiers(grams: Floats, honest: NDArray[np.bool_]) -> list[Frontier]:
    r"""A frontier for each of the sets ``honest`` [K, n], from the Gram matrices of all clients' gradients [T, n, n].

    See :class:`Looks`, with its errors.
    """
    variances, gradients = Looks(np.asarray(grams, dtype=np.float64)).of(np.atleast_2d(honest))
    return [Frontier(v, u) for v, u in zip(variances, gradients, strict=True)]


def without_noise(variances: Floats, noise: Floats, size: int) -> Floats:
    r"""Var_S of the true gradients [T], estimated from that of minibatch gradients of |S| = ``size`` clients.

    ``noise`` [T] is the mean over S of the variance of a client's minibatch gradient about its true one, s_i^2 / b.
    Independent noise adds (1 - 1/|S|) of it in expectation. An estimate may be negative.
    """
    return np.asarray(variances - noise * (1 - 1 / size))
