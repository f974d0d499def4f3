"""SGD with momentum; FedAvg when clients take local steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.servers.base import Server, State, Step, check_momentum


@dataclass(frozen=True)
class SGD(Server):
    r"""SGD with momentum on the aggregate; FedAvg with server momentum when clients take local steps.

    .. math:: R \leftarrow \rho R + u, \quad \theta \leftarrow \theta - \lambda(t) R

    State: ``momentum`` [d].

    >>> SGD(momentum=0.0).step(torch.ones(2), lr=0.5, state={}).values
    tensor([0.5000, 0.5000])
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_momentum("SGD", self.momentum)

    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        if self.momentum == 0:
            return Step(lr * aggregate, None, {})
        last = state.get("momentum")
        momentum = aggregate.clone() if last is None else torch.add(aggregate, last, alpha=self.momentum)
        return Step(lr * momentum, None, {"momentum": momentum})
