"""SparseFed's server: only the top-k coordinates move, the rest is remembered as error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.topk import top_k
from bezoar.servers.base import Server, State, Step, check_momentum, share_or_count
from bezoar.servers.traffic import Traffic, dense, sparse


@dataclass(frozen=True)
class SparseFed(Server):
    r"""Momentum, error feedback, and a step on the k largest coordinates only.

    .. math::
        R \leftarrow \rho R + u, \quad W \leftarrow W + R, \quad I = \operatorname{top}_k |W|, \quad
        \theta_I \leftarrow \theta_I - \lambda(t) W_I, \quad W_I \leftarrow 0, \quad R_I \leftarrow 0

    ``u`` is the aggregate of clipped updates: put ``Clip`` and ``Mean`` before this server. With k = d it is SGD
    without momentum. State: ``momentum`` R [d] and ``error`` W [d].

    Args:
        k: coordinates that move in a round, a count or a share such as ``"1%"``.
        momentum: rho.
        error_input: what error feedback accumulates: the momentum R (default) or the bare update u, as the paper's
            Algorithm 1 is printed.
        masking: what happens to R on the coordinates that moved: set to zero (default), reduced by the step
            (``"subtract"``, as Algorithm 1 is printed) or left alone (``"none"``, as Algorithm 5 is printed).
        lr_placement: where the learning rate enters: on the step (``"outside"``, default), on what enters error
            feedback (``"inside"``, Algorithms 2 and 10) or on what enters momentum (``"inside-momentum"``).

    Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: SparseFed, AISTATS 2022.

    >>> SparseFed(k=1).step(torch.tensor([1.0, -2.0, 0.5]), lr=0.1, state={}).dense(3)
    tensor([ 0.0000, -0.2000,  0.0000])
    """

    k: int | str
    momentum: float = 0.9
    error_input: Literal["momentum", "update"] = "momentum"
    masking: Literal["zero", "subtract", "none"] = "zero"
    lr_placement: Literal["outside", "inside", "inside-momentum"] = "outside"

    def __post_init__(self) -> None:
        check_momentum("SparseFed", self.momentum)
        self.count(2**62)

    def count(self, d: int) -> int:
        """How many of d coordinates ``k`` means: a share is rounded to the nearest count, at least 1."""
        return share_or_count("SparseFed", "k", self.k, d)

    def check(self, d: int) -> None:
        if self.count(d) > d:
            raise ConfigError(f"SparseFed: k={self.k} is more than the model's {d} parameters")

    def traffic(self, d: int) -> Traffic:
        return Traffic(up=dense(d), down=sparse(self.count(d), d))

    def entering(self, aggregate: Tensor, lr: float, state: State) -> Tensor:
        """The vector W [d] of which :meth:`step` would move the k largest entries; nothing is changed."""
        return self._memory(aggregate, lr, state)[1]

    def _memory(self, aggregate: Tensor, lr: float, state: State) -> tuple[Tensor, Tensor]:
        """R and W [d] before anything moves, as tensors of their own."""
        entering = lr * aggregate if self.lr_placement == "inside-momentum" else aggregate
        last = state.get("momentum")
        momentum = entering.clone() if last is None else torch.add(entering, last, alpha=self.momentum)
        fed = momentum if self.error_input == "momentum" else entering
        scale = lr if self.lr_placement == "inside" else 1.0
        remembered = state.get("error")
        error = scale * fed if remembered is None else torch.add(remembered, fed, alpha=scale)
        return momentum, error

    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        d = len(aggregate)
        self.check(d)
        momentum, error = self._memory(aggregate, lr, state)
        index = top_k(error, self.count(d))
        moved = error[index]
        error[index] = 0
        if self.masking == "zero":
            momentum[index] = 0
        elif self.masking == "subtract":
            momentum[index] -= moved
        step = lr * moved if self.lr_placement == "outside" else moved
        return Step(step, index, {"momentum": momentum, "error": error})
