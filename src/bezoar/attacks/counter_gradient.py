"""Counter-gradient: guess what the honest will send, cancel it, and walk the model to a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bezoar.errors import ConfigError


def honest_sum(previous: Tensor, current: Tensor, lr: float, sent: Tensor, clients: int = 1) -> Tensor:
    r"""The sum of honest updates of the last step, from what everybody sees.

    .. math:: \hat G = n (\rho^{t-1} - \rho^t)/\eta_{t-1} - \textstyle\sum_{\mathrm{attackers}} g^{t-1}

    Args:
        previous: the model before the step [d].
        current: the model after it [d].
        lr: the step's learning rate.
        sent: the sum of what the attackers sent [d].
        clients: n, if the server steps along the mean of n updates; 1 if it steps along their sum.
    """
    return clients * (previous - current) / lr - sent


def counter_gradient(
    model: Tensor,
    target: Tensor,
    lr: float,
    honest: Tensor | None = None,
    *,
    clients: int = 1,
    attackers: int = 1,
    reach: float = math.inf,
) -> Tensor:
    r"""What each attacker sends so that the server's next step ends at ``target``, if the honest sum is as guessed.

    .. math:: g = \big[ n (\rho - \theta^\dagger)/\eta - \hat G \big]/m,
        \quad\text{then}\quad g \leftarrow g \min(1, \mathrm{reach}/\|g\|)

    Args:
        model: rho [d].
        target: theta^dagger [d].
        lr: eta of the coming step.
        honest: the guessed sum of honest updates; none: zero.
        clients: n, if the server steps along the mean of n updates; 1 if it steps along their sum.
        attackers: m, how many send the same.
        reach: the longest vector that one attacker can send.

    >>> rho, target, honest = torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([0.0, 3.0])
    >>> g = counter_gradient(rho, target, 0.5, honest, clients=4, attackers=1)
    >>> (rho - 0.5 * (honest + g) / 4).tolist()
    [0.0, 0.0]
    """
    if not lr > 0:
        raise ConfigError(f"counter-gradient: the learning rate must be positive, got {lr}")
    wanted = clients * (model - target) / lr
    g = (wanted if honest is None else wanted - honest) / attackers
    length = float(torch.linalg.vector_norm(g))
    return g if length <= reach else g * (reach / length)
