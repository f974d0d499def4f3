"""SGD with momentum; FedAvg when clients take local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.servers.base import Server, State, Step, check_choices, check_momentum


@dataclass(frozen=True)
class SGD(Server):
    r"""SGD with momentum on the aggregate; FedAvg with server momentum when clients take local steps.

    .. math:: R \leftarrow \rho R + u, \quad \theta \leftarrow \theta - \lambda(t) R

    ``lr_placement="inside-momentum"`` lets the rate enter before momentum, R <- rho R + lambda(t) u and theta <- theta
    - R, as where clients send updates that are multiplied already: what momentum remembers then keeps its old rate.

    State: ``momentum`` [d].

    >>> SGD(momentum=0.0).step(torch.ones(2), lr=0.5, state={}).values
    tensor([0.5000, 0.5000])
    """

    momentum: float = 0.9
    lr_placement: Literal["outside", "inside-momentum"] = "outside"

    added: ClassVar[tuple[str, ...]] = ("lr_placement",)

    def __post_init__(self) -> None:
        check_momentum("SGD", self.momentum)
        check_choices(self)

    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        if self.momentum == 0:
            return Step(lr * aggregate, None, {})
        if self.lr_placement == "inside-momentum":
            aggregate, lr = lr * aggregate, 1.0
        last = state.get("momentum")
        momentum = aggregate.clone() if last is None else torch.add(aggregate, last, alpha=self.momentum)
        return Step(lr * momentum, None, {"momentum": momentum})
