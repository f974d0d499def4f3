r"""Certificates of training with noise: clip the global model, add Gaussian noise, every round; docs/ensembles.md.

Xie, Chen, Chen, Li: CRFL: Certifiably Robust Federated Learning against Backdoor Attacks, ICML 2021. What is proved
here starts from a bound on how far attackers move the model in a round, which clipped updates give; the paper's own
radius, in the size of a trigger, is :func:`published_radius`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bezoar.certify.votes import ABSTAINED, Certified, check_counts, label_bounds, majority
from bezoar.errors import ConfigError


def label_divergence(p_a: ArrayLike, p_b: ArrayLike) -> NDArray[np.float64]:
    r"""The least KL(Q || P) of a distribution Q whose likeliest class is not P's: that of a tie with a class b.

    .. math:: -\ln\left(1 - (\sqrt{p_a} - \sqrt{p_b})^2\right)

    Exact for the shares p_a > p_b of the two classes under P; 0 where p_a <= p_b. It grows with p_a and falls with p_b,
    so bounds may be put in. With a lower bound on Q's divergence strictly above, Q's likeliest class is P's.

    >>> label_divergence([0.9, 0.5, 1.0], [0.1, 0.5, 0.0]).round(4).tolist()
    [0.5108, 0.0, inf]
    """
    a, b = np.asarray(p_a, dtype=np.float64), np.asarray(p_b, dtype=np.float64)
    if not (((a >= 0) & (a <= 1)).all() and ((b >= 0) & (b <= 1)).all()):
        raise ConfigError("p_a and p_b must be probabilities in [0, 1]")
    gap = np.maximum(np.sqrt(a) - np.sqrt(b), 0.0) ** 2
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log1p(-gap))


def distance_radius(p_a: ArrayLike, p_b: ArrayLike, std: float) -> NDArray[np.float64]:
    r"""How far (l2) a model may be from another one, and noisy copies of both still agree on the likeliest class.

    .. math:: \frac\sigma2 \left(\Phi^{-1}(p_a) - \Phi^{-1}(p_b)\right)

    for copies with noise N(0, std^2) of which a share p_a at least gives the class, and p_b at most any other; 0 where
    p_a <= p_b. Tight. Cohen, Rosenfeld, Kolter: Certified Adversarial Robustness via Randomized Smoothing, ICML 2019.

    >>> distance_radius([0.8413447], [0.1586553], std=2.0).round(4).tolist()
    [2.0]
    """
    from scipy.special import ndtri

    a, b = np.asarray(p_a, dtype=np.float64), np.asarray(p_b, dtype=np.float64)
    _positive("std", std)
    with np.errstate(invalid="ignore"):
        radius = std / 2 * (ndtri(a) - ndtri(b))
    return np.where(a > b, radius, 0.0)


def contraction(radius: float, std: float) -> float:
    r"""By what factor, at most, a divergence survives clipping to ``radius`` and noise: 2 Phi(rho/sigma) - 1.

    For any f-divergence. It is the largest total variation distance between N(u, std^2) and N(v, std^2) with u, v in
    the ball; 1 without noise.
    """
    if std == 0 or radius == math.inf:
        return 1.0
    _positive("radius", radius)
    _positive("std", std)
    return math.erf(radius / std / math.sqrt(2))


@dataclass(frozen=True)
class NoisyRound:
    """One round: attackers move the model by ``shift`` at most (l2; 0 where nobody attacks), then it is clipped to
    ``radius`` and noise N(0, ``std``^2) is added to every coordinate."""

    shift: float
    radius: float
    std: float

    def __post_init__(self) -> None:
        if not (self.shift >= 0 and self.radius > 0 and self.std >= 0 and math.isfinite(self.std)):
            raise ConfigError(f"a round needs shift >= 0, radius > 0 and a finite std >= 0, got {self}")

    @property
    def ratio(self) -> float:
        """How far attackers move the model, in standard deviations of the noise."""
        if self.shift == 0:
            return 0.0
        return min(self.shift, 2 * self.radius) / self.std if self.std > 0 else math.inf


def total_shift(rounds: Sequence[NoisyRound]) -> float:
    r"""The shift of a standard normal variable that is at least as easy to notice as the attack on the final model.

    .. math:: \mu = \sqrt{\textstyle\sum_t (\Delta_t / \sigma_t)^2}

    An event of probability p without the attack has probability Phi(Phi^-1(p) - mu) at least with it, and the same the
    other way round. Holds for attackers who see all and remember all, as long as the next honest step depends on the
    model alone (no momentum on the server or the clients). An attacked round without noise makes it infinite.

    >>> total_shift([NoisyRound(0.3, 1.0, 0.1), NoisyRound(0.4, 1.0, 0.1), NoisyRound(0.0, 1.0, 0.1)])
    5.0
    """
    return math.hypot(*(one.ratio for one in rounds))


def divergence(rounds: Sequence[NoisyRound]) -> float:
    r"""A bound on the KL divergence, either way, between the final models with and without the attack.

    .. math:: K_t = K_{t-1} + \Delta_t^2 / (2 \sigma_t^2) \text{ if attacked}, \quad
        K_t = (2 \Phi(\rho_t / \sigma_t) - 1)\, K_{t-1} \text{ if not}

    Under the conditions of :func:`total_shift`, which is the sharper of the two where every round is attacked; this one
    is where the attack ends early.

    >>> round(divergence([NoisyRound(0.2, 1.0, 0.1), NoisyRound(0.0, 0.1, 0.1)]), 4)
    1.3654
    """
    bound = 0.0
    for one in rounds:
        if one.shift > 0:
            bound += one.ratio * one.ratio / 2
        elif 0 < bound < math.inf:
            bound *= contraction(one.radius, one.std)
    return bound


def mean_shift(radius: float, lr: float, malicious: int, cohort: int) -> float:
    r"""How far ``malicious`` of a ``cohort`` can move the next model: lr 2 L min(q, n) / n for updates clipped to L.

    For the mean of clipped updates and plain SGD, replaced updates and updates with NaN (which are left out) alike.
    """
    if not (radius >= 0 and lr >= 0 and malicious >= 0 and cohort >= 1):
        raise ConfigError(f"{radius=}, {lr=}, {malicious=} must be >= 0 and {cohort=} >= 1")
    if not (lr and malicious):
        return 0.0
    return lr * 2 * radius * min(malicious, cohort) / cohort


def certified_labels(
    counts: ArrayLike, attacks: Sequence[Sequence[NoisyRound]], *, alpha: float = 0.001, joint: bool = True
) -> Certified:
    r"""The likeliest label of every point, and for how many malicious clients it is the same: the largest m with

    .. math:: \mu_m < \tfrac12 (\Phi^{-1}(\underline p_a) - \Phi^{-1}(\overline p_b)) \quad\text{or}\quad
        K_m < -\ln(1 - (\sqrt{\underline p_a} - \sqrt{\overline p_b})^2)

    where mu_m is :func:`total_shift` and K_m :func:`divergence`.

    Args:
        counts: votes [N, C] of **independently trained** models, each with its own noise in every round. (Noisy copies
            of one trained model would not do: what is bounded is the distribution over all noise.)
        attacks: the rounds for m = 0, 1, 2, ... malicious clients, each at least as bad as the one before.
        alpha: probability that anything of it is wrong.
        joint: for all points together, else for each by itself.
    """
    given, _ = check_counts(counts)
    shifts = [total_shift(rounds) for rounds in attacks]
    costs = [divergence(rounds) for rounds in attacks]
    if not shifts or shifts[0] != 0 or sorted(shifts) != shifts or sorted(costs) != costs:
        raise ConfigError("attacks must start with rounds in which nobody attacks, and get no weaker")
    labels = majority(given)
    least, most = label_bounds(given, labels, alpha, joint)
    rival = most.max(axis=1)
    by_shift = np.searchsorted(shifts, distance_radius(least, rival, 1.0), side="left") - 1
    by_divergence = np.searchsorted(costs, label_divergence(least, rival), side="left") - 1
    malicious = np.maximum(by_shift, by_divergence)
    return Certified(np.where(malicious < 0, ABSTAINED, labels), malicious.astype(np.int64), 1 - alpha)


def published_radius(
    p_a: float, p_b: float, *, std: float, lipschitz: float, weights: Sequence[float], contraction: float = 1.0
) -> float:
    r"""The paper's radius, in the l2 size of a trigger: **constant unverified**.

    .. math:: \sqrt{\frac{-\ln(1 - (\sqrt{p_a} - \sqrt{p_b})^2)\,\sigma^2}{2 R L_Z^2 \sum_i a_i^2\,\prod_t c_t}},
        \qquad a_i = p_i \gamma_i \tau_i \eta_i q_i / n_i

    ``weights`` holds a_i for the R attackers of the one attacked round: aggregation weight, scaling factor, local
    steps, local learning rate and poisoned share of the batch; ``lipschitz`` is L_Z of the gradient in the data,
    ``contraction`` the product over later rounds. *If* a trigger of size s moves the model by sum_i a_i L_Z s at most,
    which the paper derives under convexity and smoothness and is not proved here, then :func:`divergence` and
    :func:`label_divergence` give twice this radius: it is then safe, and loose by 2.
    """
    squares = sum(weight**2 for weight in weights)
    _positive("std", std)
    _positive("lipschitz", lipschitz)
    _positive("contraction", contraction)
    _positive("weights", squares)
    budget = float(label_divergence(p_a, p_b))
    return math.sqrt(budget * std**2 / (2 * len(weights) * lipschitz**2 * squares * contraction))


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} must be a number > 0, got {value}")
