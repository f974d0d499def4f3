r"""How fast top-k SGD with error feedback finds a flat point: a corrected bound, and the contraction it rests on.

EF-SGD (Algorithm 2 of the SparseFed paper) with step size gamma and a compressor C:

.. math:: p_t = \gamma g_t + e_t, \quad x_{t+1} = x_t - C(p_t), \quad e_{t+1} = p_t - C(p_t)

It is ``SparseFed(k, momentum=0, lr_placement="inside")`` on unclipped means. docs/convergence.md has the proof, what
the paper's Theorem 3 mixes up, and what neither covers: clipping, momentum, a learning rate outside error feedback.
"""

from __future__ import annotations

import math

from bezoar.errors import ConfigError


def contraction(k: int, d: int) -> float:
    r"""The delta = k/d of top-k: :math:`\|x - \operatorname{top}_k x\|^2 \le (1 - \delta) \|x\|^2` for every x [d].

    Vectors with entries of one size attain it.

    >>> contraction(1, 4)
    0.25
    """
    if not 1 <= k <= d:
        raise ConfigError(f"k must be between 1 and d={d}, got {k}")
    return k / d


def ef_sgd_bound(
    gap: float, smoothness: float, second_moment: float, lr: float, rounds: int, delta: float = 1.0
) -> float:
    r"""A bound on the mean over t < T of :math:`\mathbb{E} \|\nabla f(x_t)\|^2`, and so on their least.

    .. math::
        \frac{2 (f(x_0) - \inf f)}{\gamma T} + \gamma L \sigma^2 + \frac{4 (1 - \delta)}{\delta^2} \gamma^2 L^2 \sigma^2

    Args:
        gap: f(x_0) - inf f, or more: a gap of the loss, not of the model.
        smoothness: L; the gradient of f is L-Lipschitz.
        second_moment: sigma^2 with E |g_t|^2 <= sigma^2, given x_t; g_t is unbiased.
        lr: gamma, the same in all rounds.
        rounds: T.
        delta: what top-k keeps, see :func:`contraction`; 1 for plain SGD.

    Karimireddy, Rebjock, Stich, Jaggi: Error Feedback Fixes SignSGD, ICML 2019, Theorem II, with their constants
    derived anew in docs/convergence.md.

    >>> ef_sgd_bound(gap=1.0, smoothness=1.0, second_moment=1.0, lr=0.1, rounds=200)
    0.2
    """
    for name, value in (("smoothness", smoothness), ("lr", lr), ("rounds", rounds)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
    for name, value in (("gap", gap), ("second_moment", second_moment)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a number >= 0, got {value!r}")
    if not 0 < delta <= 1:
        raise ConfigError(f"delta must be above 0 and at most 1, got {delta!r}")
    drift = 4 * (1 - delta) * (lr * smoothness / delta) ** 2 * second_moment
    return 2 * gap / (lr * rounds) + lr * smoothness * second_moment + drift


def ef_sgd_lr(gap: float, smoothness: float, second_moment: float, rounds: int) -> float:
    r"""The gamma that balances the first two terms of :func:`ef_sgd_bound`.

    It is :math:`\sqrt{2 (f_0 - f_*) / (L \sigma^2 T)}`. With it the bound is
    :math:`\sqrt{8 (f_0 - f_*) L \sigma^2 / T}` plus a term of 1/T, the only one with delta.

    >>> ef_sgd_lr(gap=1.0, smoothness=1.0, second_moment=1.0, rounds=200)
    0.1
    """
    for name, value in (("gap", gap), ("smoothness", smoothness), ("second_moment", second_moment), ("rounds", rounds)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return math.sqrt(2 * gap / (smoothness * second_moment * rounds))
