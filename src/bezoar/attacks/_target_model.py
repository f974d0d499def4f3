"""The model that attackers want to be learnt, trained on their own data, and what the others will do to it."""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.attacks.base import AttackContext, Batch, State
from bezoar.seeding import generator

#: Samples whose loss is taken at a time.
_CHUNK = 1000


def train(context: AttackContext, start: Tensor, batch: Batch, epochs: int, lr: float, batch_size: int) -> Tensor:
    """``start`` [d] after SGD on the mean loss of ``batch``, up to the last epoch that left it finite."""
    model, weights = context.scratch, start.clone()
    model.load(start)
    draws = generator(context.seed, "target model", context.round)
    for _ in range(epochs):
        order = torch.randperm(len(batch), generator=draws).to(batch.targets.device)
        for rows in torch.split(order, batch_size):
            model.descend(context.loss_fn, batch.inputs[rows], batch.targets[rows], lr)
        if not bool(torch.isfinite(model.weights).all()):
            break
        weights.copy_(model.weights)
    return weights


def mean_loss(context: AttackContext, weights: Tensor, batch: Batch) -> float:
    """The mean loss of ``batch`` at ``weights`` [d]."""
    context.scratch.load(weights)
    total = 0.0
    with torch.no_grad():
        for inputs, targets in zip(torch.split(batch.inputs, _CHUNK), torch.split(batch.targets, _CHUNK), strict=True):
            total += float(context.loss_fn(context.scratch.module(inputs), targets).double().sum())
    return total / len(batch)


def noted(context: AttackContext) -> State:
    """What :func:`honest_shift` wants to know of this round in the next one."""
    return {
        "round": torch.tensor(context.round),
        "attackers": torch.tensor(len(context.clients)),
        "server_lr": torch.tensor(context.server_lr, dtype=torch.float64),
    }


def honest_shift(context: AttackContext) -> Tensor:
    r"""By how much the honest clients alone would have moved the model in the round before [d]; zero at first.

    .. math:: \hat\Delta = \frac{n (w^t - w^{t-1}) + \eta \sum_s u_s^{t-1}}{n - m}

    for a server that subtracts eta times the mean of n updates, of which the m attackers sent u_s. Attackers who did
    not attack then were honest. Rules other than the mean make it a guess, which server momentum lags behind.
    """
    n = context.previous_cohort
    if context.previous_weights is None or n < 1:
        return torch.zeros_like(context.weights)
    shift = n * (context.weights - context.previous_weights)
    known = context.state
    if "round" not in known or int(known["round"]) != context.round - 1:
        return shift / n
    m = int(known["attackers"])
    if context.previous_sent is not None:
        shift = shift + float(known["server_lr"]) * context.previous_sent.to(shift)
    found = shift / (n - m) if n > m else torch.zeros_like(shift)
    return found if bool(torch.isfinite(found).all()) else torch.zeros_like(found)
