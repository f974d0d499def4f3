"""SparseFed's server: only the top-k coordinates move, the rest is remembered as error feedback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.errors import ConfigError
from bezoar.kernels.quiet import clear_, scaled, take
from bezoar.kernels.topk import top_k_filled
from bezoar.servers.base import Server, State, Step, check_choices, check_momentum, share_or_count
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
        check_choices(self)
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
        aggregate = aggregate.detach()
        error = torch.empty_like(aggregate)
        self._remember(lambda vector: vector, aggregate, lr, state, torch.empty_like(aggregate), error)
        return error

    def _remember(
        self,
        pick: Callable[[Tensor], Tensor],
        aggregate: Tensor,
        lr: float,
        state: State,
        momentum: Tensor,
        error: Tensor,
    ) -> None:
        """Write R and W, before anything moves, of the coordinates that ``pick`` takes out of a vector [d]."""
        entering, last, remembered = pick(aggregate), state.get("momentum"), state.get("error")
        if self.lr_placement == "inside-momentum":
            entering = lr * entering
        if last is None:
            momentum.copy_(entering)
        else:
            torch.add(entering, pick(last), alpha=self.momentum, out=momentum)
        fed = momentum if self.error_input == "momentum" else entering
        scale = lr if self.lr_placement == "inside" else 1.0
        if remembered is None:
            torch.mul(fed, scale, out=error)
        else:
            torch.add(pick(remembered), fed, alpha=scale, out=error)

    def step(self, aggregate: Tensor, lr: float, state: State) -> Step:
        self.check(len(aggregate))
        aggregate = aggregate.detach()
        momentum, error = torch.empty_like(aggregate), torch.empty_like(aggregate)

        def fill(start: int, stop: int) -> None:
            some = slice(start, stop)
            self._remember(lambda vector: vector[some], aggregate, lr, state, momentum[some], error[some])

        def at(index: Tensor) -> Tensor:
            found = torch.empty_like(index, dtype=error.dtype)
            self._remember(lambda vector: take(vector, index), aggregate, lr, state, torch.empty_like(found), found)
            return found

        index = top_k_filled(error, self.count(len(aggregate)), fill, at)
        moved = take(error, index)
        clear_(error, index)
        if self.masking == "zero":
            clear_(momentum, index)
        elif self.masking == "subtract":
            momentum[index] -= moved
        step = scaled(moved, lr) if self.lr_placement == "outside" else moved
        return Step(step, index, {"momentum": momentum, "error": error})
