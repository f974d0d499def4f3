r"""What no rule can promise, even if attackers only poison data: floors from heterogeneity, inputs that attain them.

The argument is always the same: f clients pull one way, f the other, the rest stand between. Either group may be the
attackers', who need nothing but data for it, and the server sees the same in both stories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import ConfigError


def aggregation_floor(n: int, f: int, variance: float) -> float:
    r"""The squared error |F(x) - mean_S|^2 that no rule F can stay below for all honest sets S of n - f rows.

    .. math:: \max_S \|F(x) - \bar x_S\|^2 \ge \frac{f}{n-2f}\,\mathrm{Var}_S

    Infinite for n <= 2f. The trimmed mean attains it. ``variance`` is Var_S, the mean squared distance of the honest
    rows from their mean.

    Reference: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing, AISTATS 2023; for data
        poisoning Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022.

    >>> aggregation_floor(10, 2, 3.0), aggregation_floor(10, 5, 3.0)
    (1.0, inf)
    """
    _check(n, f, variance=variance)
    if f == 0:
        return 0.0
    return math.inf if n <= 2 * f else f / (n - 2 * f) * variance


def learnable(n: int, f: int, b: float = 0.0) -> bool:
    r"""Whether any algorithm can promise anything: f/n < 1/(2 + B^2).

    >>> learnable(10, 3), learnable(10, 3, b=1.5)
    (True, False)
    """
    _check(n, f, B=b)
    return f == 0 or n - (2 + b * b) * f > 0


def learning_floor(n: int, f: int, g: float, b: float = 0.0, mu: float = 1.0) -> float:
    r"""The excess loss L_S - min L_S that no algorithm can stay below for all honest sets S of n - f clients.

    .. math:: \max_S\, L_S(\hat\theta) - L_S^* \ge \frac{f}{n-(2+B^2)f} \cdot \frac{G^2}{2\mu}

    for losses that are mu-strongly convex on average and (G, B)-dissimilar,
    Var_S(grad L_i) <= G^2 + B^2 |grad L_S|^2; infinite if f/n >= 1/(2 + B^2). :func:`dilemma` is the proof. The
    published constant is half of it, G^2/(4 mu). Robust gradient descent with the trimmed mean attains this one.

    Reference: Allouah, Guerraoui, Gupta, Pinot, Rizk: Robust Distributed Learning: Tight Error Bounds and Breakdown
        Point under Data Heterogeneity, NeurIPS 2023.

    >>> learning_floor(10, 2, g=3.0), learning_floor(10, 2, g=3.0, b=2.0)
    (1.5, inf)
    """
    _check(n, f, G=g, B=b)
    if not (math.isfinite(mu) and mu > 0):
        raise ConfigError(f"learning_floor: mu must be finite and positive, got {mu}")
    if f == 0:
        return 0.0
    return f / (n - (2 + b * b) * f) * g * g / (2 * mu) if learnable(n, f, b) else math.inf


def dissimilarity(variances: Sequence[float] | Tensor, squared_norms: Sequence[float] | Tensor, b: float) -> float:
    r"""The least G for which measured gradients are (G, B)-dissimilar: G^2 = max_t (v_t - B^2 u_t), or 0.

    v_t is Var_S of the honest gradients at the t-th model visited and u_t the squared norm of their mean. It says
    nothing about models that were not visited. Measurements that are not finite are an error: they bound nothing.

    >>> dissimilarity([5.0, 2.0], [4.0, 0.0], b=1.0) ** 2
    2.0000000000000004
    """
    v, u = torch.as_tensor(variances, dtype=torch.float64), torch.as_tensor(squared_norms, dtype=torch.float64)
    if v.shape != u.shape or v.ndim != 1 or not len(v) or bool((v < 0).any()) or bool((u < 0).any()):
        raise ConfigError("dissimilarity: needs as many variances as squared norms, at least one, none negative")
    if not bool(torch.isfinite(v).all() and torch.isfinite(u).all()):
        raise ConfigError("dissimilarity: variances and squared norms must be finite; did training diverge?")
    _check_sizes(B=b)
    # B^2 alone may overflow, and infinity times zero is no number.
    return math.sqrt(max(0.0, float((v - b * (b * u)).max())))


@dataclass(frozen=True, eq=False)
class Dilemma:
    r"""n clients with losses L_i = c_i/2 (theta - a_i)^2 that fit two stories about who is honest.

    Each loss is that of one sample of linear regression, input sqrt(c_i) and answer sqrt(c_i) a_i.

    Attributes:
        curvatures: c [n].
        centres: a [n].
        honest: the two sets, bool [2, n], with n - f clients each.
    """

    curvatures: Tensor
    centres: Tensor
    honest: Tensor

    def gradients(self, theta: float) -> Tensor:
        """Every client's gradient [n, 1] at ``theta``."""
        return (self.curvatures * (theta - self.centres))[:, None]

    def optimum(self, story: int) -> float:
        """The minimum of the honest clients' mean loss."""
        c, a = self.curvatures[self.honest[story]], self.centres[self.honest[story]]
        return float((c * a).sum() / c.sum())

    def excess(self, theta: float) -> float:
        """L_S(theta) - min L_S, in the worse story."""
        found = []
        for story in range(2):
            mu = float(self.curvatures[self.honest[story]].mean())
            found.append(mu / 2 * (theta - self.optimum(story)) ** 2)
        return max(found)


def dilemma(n: int, f: int, g: float = 1.0, b: float = 0.0, mu: float = 1.0) -> Dilemma:
    r"""Quadratic losses on which every algorithm errs by at least :func:`learning_floor` in one of two stories.

    f clients want +a, f want -a with curvature m, the n - 2f others 0 with curvature c, all known to the algorithm.
    Honest are the middle and one of the groups, p = f/(n-f) of them in the group:

    .. math:: c = \mu\Big(1 - \frac{B^2 f}{n-2f}\Big),\quad p m + (1-p) c = \mu,\quad
        a = \frac{\mu}{p m} \sqrt{\frac{f}{n-(2+B^2)f}} \frac{G}{\mu}

    The optima are +-theta*, theta* = pma/mu, so the excess is at least mu theta*^2/2 for one of them; and at
    theta = theta* + t the variance is p(1-p)((c-m)t + mac/mu)^2 <= G^2 + B^2 mu^2 t^2, with equality for one t.
    """
    if f < 1 or not learnable(n, f, b):
        raise ConfigError(f"dilemma: needs 1 <= f < n/(2 + B^2), got n={n}, f={f}, B={b}")
    floor = learning_floor(n, f, g, b, mu)
    p = f / (n - f)
    c = mu * (1 - b * b * f / (n - 2 * f))
    m = (mu - (1 - p) * c) / p
    a = math.sqrt(2 * floor / mu) * mu / (p * m)
    kinds = torch.tensor([1.0] * f + [-1.0] * f + [0.0] * (n - 2 * f), dtype=torch.float64)
    honest = torch.stack([kinds >= 0, kinds <= 0])
    return Dilemma(torch.where(kinds == 0, c, m), a * kinds, honest)


def _check(n: int, f: int, **sizes: float) -> None:
    if n < 1 or not 0 <= f <= n:
        raise ConfigError(f"needs n >= 1 clients and 0 <= f <= n attackers, got n={n}, f={f}")
    _check_sizes(**sizes)


def _check_sizes(**sizes: float) -> None:
    for name, size in sizes.items():
        if not (math.isfinite(size) and size >= 0):
            raise ConfigError(f"{name} must be finite and not negative, got {size}")
