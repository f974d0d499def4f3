"""Client weights that are safe on average over the worst draws of a prior, by linear programming."""

from __future__ import annotations

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.family import Family, Floats

#: The penalty's tangents are refined until they are this close to it.
TOLERANCE = 1e-7


def cvar_weights(family: Family, delta: float, eta: float = 0.0) -> Floats:
    r"""Weights of clients that keep what the bad ones hold small in the worst share ``delta`` of all cases: [n].

    .. math:: \min_{w \in \Delta, t} t + \frac1\delta \sum_k p_k (w(B_k) - t)_+ + \eta \|w - 1/n\|^2

    The sum up to the penalty is the conditional value at risk (Rockafellar, Uryasev: Optimization of Conditional
    Value-at-Risk, 2000), a linear program. The penalty keeps weights near equal ones; being a sum of squares of single
    weights, it is replaced by tangents of each square, and tangents at the last solution are added until the program's
    value is within 1e-7 of the true one, which is then within 1e-7 of the least. ``family`` holds the cases, with
    probabilities in proportion to its own.

    >>> from bezoar.priors import Explicit
    >>> cases = Explicit(4, bad=((0, 1), (2,), (3,)), p=(0.4, 0.3, 0.3)).support()
    >>> cvar_weights(cases, 0.1, 1.0).round(3).tolist()
    [0.167, 0.167, 0.333, 0.333]
    """
    # scipy loads slowly, and most who import bezoar need none of it.
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack, identity, vstack

    if not 0 < delta <= 1:
        raise ConfigError(f"cvar_weights: delta must be above 0 and at most 1, got {delta!r}")
    if not 0 <= eta < np.inf:
        raise ConfigError(f"cvar_weights: eta must be a number >= 0, got {eta!r}")
    bad = ~family.honest
    p = np.exp(family.log_prob - family.log_prob.max())
    p /= p.sum()
    k, n = bad.shape
    # Unknowns: w [n], t, excess over t of every case [k], penalty of every client [n].
    cost = np.concatenate([np.zeros(n), [1.0], p / delta, np.full(n, eta)])
    excess = hstack([csr_array(bad.astype(float)), -np.ones((k, 1)), -identity(k), csr_array((k, n))], format="csr")
    equal = csr_array(np.concatenate([np.ones(n), np.zeros(1 + k + n)])[None])
    bounds = [(0, 1)] * n + [(0, 1)] + [(0, None)] * k + [(0, None if eta else 0)] * n
    rows, limits = [excess], [np.zeros(k)]
    points = np.linspace(0, 1, 5)[:, None] * np.ones(n) if eta else np.empty((0, n))
    for _ in range(200):
        for at in points:
            # (w - 1/n)^2 >= (a - 1/n)^2 + 2 (a - 1/n)(w - a).
            slope = 2 * (at - 1 / n)
            rows.append(hstack([csr_array(np.diag(slope)), csr_array((n, 1 + k)), -identity(n)], format="csr"))
            limits.append(slope * at - (at - 1 / n) ** 2)
        left, right = vstack(rows, format="csr"), np.concatenate(limits)
        found = linprog(cost, A_ub=left, b_ub=right, A_eq=equal, b_eq=[1.0], bounds=bounds, method="highs")
        if not found.success:
            raise ConfigError(f"cvar_weights: the linear program could not be solved: {found.message}")
        w = np.maximum(found.x[:n], 0.0)
        gap = eta * float(((w - 1 / n) ** 2 - found.x[n + 1 + k :]).sum())
        if gap <= TOLERANCE:
            break
        points = w[None]
    return np.asarray(w / w.sum())


def quantile(values: Floats, p: Floats, delta: float) -> float:
    """The least v that is exceeded with probability <= delta, where ``values`` [k] have the probabilities ``p`` [k]."""
    order = np.argsort(values)
    mass = np.cumsum(p[order])
    place = int(np.searchsorted(mass, (1 - delta) * mass[-1] * (1 - 1e-12)))
    return float(values[order][min(place, len(values) - 1)])
