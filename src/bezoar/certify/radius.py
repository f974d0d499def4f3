r"""How far poisoning can move a model: the recurrence of SparseFed's certificate, in log space.

Two runs start from the same model and see the same cohorts; in one of them some clients send what they like. With
:math:`\delta_t` the distance of the two models before round t, the rate :math:`\lambda_t`, the ``growth`` g (by how
much honest updates of the two runs can differ, per unit of distance) and the ``force`` b (by how much attackers, and
what error feedback held back, can make steps differ beside that):

.. math:: \delta_{t+1} \le \delta_t (1 + g \lambda_t) + \lambda_t b .

For SparseFed in the l1 norm g = w c and b = rho + 2 gamma, with w = min(d, 2k), the coordinate-Lipschitz constant c,
rho of :func:`poison_bound` and gamma of :func:`error_feedback_bound`. Proofs, and why the closed forms printed in the
paper do not follow, are in docs/certificates.md. Every radius is given as its natural logarithm, which can not
overflow; a radius of zero is minus infinity.

Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: SparseFed, AISTATS 2022, Algorithm 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from bezoar.errors import ConfigError

#: Below this exponent, exp is a float.
_LARGEST = 709.0


def _amount(name: str, value: float) -> float:
    """Raise unless ``value`` is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _each(name: str, value: float | Sequence[float], rounds: int) -> list[float]:
    """One number a round, from one number or as many as there are rounds."""
    if not isinstance(value, Sequence):
        return [_amount(name, value)] * rounds
    if len(value) != rounds:
        raise ConfigError(f"{name} has {len(value)} values for {rounds} rounds: give one number, or one a round")
    return [_amount(f"{name}[{t}]", entry) for t, entry in enumerate(value)]


def _rates(lrs: Iterable[float]) -> list[float]:
    return [_amount(f"lrs[{t}]", lr) for t, lr in enumerate(lrs)]


def linear(log_radius: float) -> float:
    """The radius itself; infinity where it exceeds the largest float.

    >>> linear(0.0), linear(1e6)
    (1.0, inf)
    """
    return math.exp(log_radius) if log_radius < _LARGEST else math.inf


def grow(log_radius: float, lr: float, growth: float, force: float) -> float:
    """One round of the recurrence: the log of r (1 + growth lr) + lr force.

    >>> grow(-math.inf, lr=0.5, growth=3.0, force=2.0)
    0.0
    """
    product = growth * lr
    # Two finite numbers whose product is none: the logarithm of the sum is that of the product.
    stretched = math.log1p(product) if product < math.inf else math.log(growth) + math.log(lr)
    return _log_add(log_radius + stretched, _log(lr) + _log(force))


def grow_with_momentum(
    log_radius: float, held: float, lr: float, growth: float, force: float, momentum: float
) -> tuple[float, float]:
    """One round of a server with momentum and without top-k, which steps by lr R, R <- momentum R + u.

    ``held`` is the log of a bound m on how far the momenta of the two runs differ, minus infinity at first:
    m <- momentum m + growth r + force, and r <- r + lr m. Gives the logs of r and m.

    >>> grow_with_momentum(-math.inf, -math.inf, lr=0.5, growth=3.0, force=2.0, momentum=0.9)
    (0.0, 0.6931471805599453)
    """
    if momentum == 0:
        return grow(log_radius, lr, growth, force), -math.inf
    held = _log_add(math.log(momentum) + held, _log_add(_log(growth) + log_radius, _log(force)))
    return _log_add(log_radius, _log(lr) + held), held


def log_radius(
    lrs: Iterable[float],
    growth: float | Sequence[float],
    force: float | Sequence[float],
    momentum: float = 0.0,
) -> tuple[float, ...]:
    r"""The certified radius after every round, as natural logarithms.

    Args:
        lrs: the learning rate of every round.
        growth: g, for all rounds or one a round; w c in SparseFed's certificate.
        force: b, likewise; rho + 2 gamma in SparseFed's certificate.
        momentum: of a server without top-k (SGD), see :func:`grow_with_momentum`.

    Raises:
        ConfigError: a number is negative or not finite, or there is not one for every round.

    >>> [round(math.exp(r), 6) for r in log_radius([0.5, 0.5], growth=2.0, force=1.0)]
    [0.5, 1.5]
    """
    rates = _rates(lrs)
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum must be at least 0 and below 1, got {momentum}")
    found, radius, held = [], -math.inf, -math.inf
    for lr, g, b in zip(rates, _each("growth", growth, len(rates)), _each("force", force, len(rates)), strict=True):
        radius, held = grow_with_momentum(radius, held, lr, g, b, momentum)
        found.append(radius)
    return tuple(found)


def exact_solution(lrs: Iterable[float], growth: float, force: float) -> float:
    r"""What the recurrence gives in the end where growth and force do not change, for any schedule.

    .. math:: r_T = \frac{b}{g} \Big(\prod_t (1 + g \lambda_t) - 1\Big), \qquad
              r_T = b \sum_t \lambda_t \text{ if } g = 0

    >>> math.isclose(exact_solution([0.5, 0.5], 2.0, 1.0), math.log(1.5))
    True
    """
    rates, growth, force = _rates(lrs), _amount("growth", growth), _amount("force", force)
    product = math.fsum(grow(0.0, lr, growth, 0.0) for lr in rates)
    if product < 1e-12:
        # The product is 1 + g sum(lr) to all digits; so little growth may also be none.
        return _log(force) + _log(math.fsum(rates)) + product / 2
    less_one = math.log(math.expm1(product)) if product < 30 else product + math.log1p(-math.exp(-product))
    return _log(force) - math.log(growth) + less_one


def safe_bound(lrs: Iterable[float], growth: float, force: float) -> float:
    r"""A simple bound that is never below the recurrence: with :math:`\Lambda = \sum_t \lambda_t`,

    .. math:: r_T \le b\, \Lambda\, e^{g \Lambda} .

    >>> math.isclose(safe_bound([0.5, 0.5], 2.0, 1.0), 2.0)
    True
    """
    total = math.fsum(_rates(lrs))
    return _log(_amount("force", force)) + _log(total) + _amount("growth", growth) * total


def invalid_below_lr_one(lrs: Iterable[float], growth: float, force: float) -> float:
    r"""The closed form printed as Theorems 1, 2 and 4 of the paper: **no bound** where a rate is below 1.

    .. math:: b\, \Lambda\, (1 + g)^{\Lambda}

    It rests on 1 + g lr <= (1 + g)^lr, Bernoulli's inequality, which for 0 < lr < 1 holds the other way round. It is
    here to be compared with, never to be relied upon: the example below exceeds it 2.6 million times.

    >>> round(math.exp(invalid_below_lr_one([0.1] * 10, growth=100.0, force=1.0)))
    101
    >>> f"{math.exp(exact_solution([0.1] * 10, growth=100.0, force=1.0)):.1e}"
    '2.6e+08'
    """
    total = math.fsum(_rates(lrs))
    return _log(_amount("force", force)) + _log(total) + total * math.log1p(_amount("growth", growth))


def poison_bound(
    attackers: int,
    cohort: int,
    radius: float,
    coordinates: int,
    honest: float | None = None,
    clip: Literal["l1", "l2"] = "l2",
) -> float:
    r"""rho: by how much a round's attackers can move the mean of clipped updates, in the l1 norm on some coordinates.

    An attacker *replaces* its honest update, of length at most ``honest``, by one of length at most ``radius``:

    .. math:: \rho_2 = \frac{q}{n} (L + h), \qquad \rho_1 = \sqrt{w}\, \rho_2

    with q attackers in a cohort of n (the realised numbers of the round, not the share in the population). On w
    ``coordinates`` the l1 norm is at most sqrt(w) times the l2 norm; where updates are clipped in the l1 norm
    (``clip="l1"``, L and h in that norm) there is nothing to convert.

    Args:
        attackers: q.
        cohort: n.
        radius: L, the clipping radius of the round.
        coordinates: w: those on which the two runs' steps can differ; 1 gives rho_2.
        honest: h, a bound on clipped honest updates; the clipping radius by default, so that rho_2 = 2 (q/n) L.
        clip: the norm in which updates are clipped.

    >>> poison_bound(attackers=2, cohort=100, radius=5.0, coordinates=100)
    2.0
    """
    if not 0 <= attackers <= cohort or cohort < 1:
        raise ConfigError(f"{attackers} attackers in a cohort of {cohort}: needs 0 <= attackers <= cohort, cohort >= 1")
    if coordinates < 1:
        raise ConfigError(f"coordinates must be at least 1, got {coordinates}")
    if clip not in ("l1", "l2"):
        raise ConfigError(f"clip must be 'l1' or 'l2', got {clip!r}")
    radius = _amount("radius", radius)
    honest = radius if honest is None else min(radius, _amount("honest", honest))
    conversion = math.sqrt(coordinates) if clip == "l2" else 1.0
    return attackers / cohort * (radius + honest) * conversion


def update_bound(radius: float, d: int, momentum: float = 0.0) -> float:
    r"""U: the largest l1 norm of what enters error feedback, :math:`L \sqrt d / (1 - \rho_m)` with momentum rho_m.

    >>> update_bound(2.0, d=25, momentum=0.9)
    100.00000000000003
    """
    if d < 1:
        raise ConfigError(f"d must be at least 1, got {d}")
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum must be at least 0 and below 1, got {momentum}")
    return _amount("radius", radius) * math.sqrt(d) / (1 - momentum)


def guaranteed_loss_rate(k: int, d: int) -> float:
    """omega that holds in every run: the k largest of d entries have at least k/d of their l1 norm.

    >>> guaranteed_loss_rate(k=250, d=1000)
    0.75
    """
    if not 1 <= k <= d:
        raise ConfigError(f"k must be between 1 and {d}, got {k}")
    return 1 - k / d


def memory_bound(loss_rate: float, update: float) -> float:
    r"""The largest l1 norm of the error memory, :math:`|W|_1 \le U \omega / (1 - \omega)` (Lemma 2).

    ``loss_rate`` omega is the share of the l1 norm of what top-k chooses from that it leaves behind, the largest of all
    rounds; ``update`` U bounds the l1 norm of what enters. Infinite for omega = 1.

    >>> memory_bound(0.5, 3.0)
    3.0
    """
    if not 0 <= loss_rate <= 1:
        raise ConfigError(f"loss_rate is a share between 0 and 1, got {loss_rate}")
    if loss_rate == 1:
        return math.inf
    return _amount("update", update) * loss_rate / (1 - loss_rate)


def error_feedback_bound(loss_rate: float, update: float) -> float:
    r"""gamma = 2 U omega / (1 - omega) (Lemma 3): error feedback moves a step by at most 2 gamma more in one run.

    It has to hold in the *poisoned* run too, whatever the attackers send: :func:`guaranteed_loss_rate` does, a rate
    that was measured on some runs is an assumption about all others.
    """
    return 2 * memory_bound(loss_rate, update)


def log_reach(lrs: Iterable[float], loss_rate: float, update: float) -> tuple[float, ...]:
    r"""How far any two runs with clipped updates can lie apart after every round, attackers or not, l1, as logarithms.

    .. math:: r_t \le 2 \frac{U}{1 - \omega} \sum_{s \le t} \lambda_s

    since no step is longer than lr (|W|_1 + U) = lr U / (1 - omega). It needs no Lipschitz constant, holds with
    momentum (in U) and for every model; a certificate that exceeds it says nothing.

    >>> [round(math.exp(r), 6) for r in log_reach([0.5, 0.25], loss_rate=0.5, update=1.0)]
    [2.0, 3.0]
    """
    rates = _rates(lrs)
    each = _log(2 * (memory_bound(loss_rate, update) + update))
    total, found = 0.0, []
    for lr in rates:
        total += lr
        found.append(_log(total) + each if total else -math.inf)
    return tuple(found)
