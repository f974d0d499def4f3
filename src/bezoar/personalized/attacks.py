"""What a malicious user does: sends gradients, or sticks to a model; data poisoning is a user like all others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.attacks.counter_gradient import counter_gradient, honest_sum
from bezoar.errors import ConfigError
from bezoar.personalized.regularizers import Regularizer


@dataclass(frozen=True, eq=False)
class Step:
    """What a malicious user sees before a step.

    Attributes:
        rho: the common model.
        lr: the learning rate of the coming step.
        regularizer: what gradients look like.
        previous: the common model before the last step, None at first.
        previous_lr: the last step's learning rate.
        previous_sent: what this user sent then.
        previous_honest: the sum of what the honest users sent then (the authors' code looks it up).
    """

    rho: Tensor
    lr: float
    regularizer: Regularizer
    previous: Tensor | None = None
    previous_lr: float = 0.0
    previous_sent: Tensor | None = None
    previous_honest: Tensor | None = None


class Malicious(ABC):
    """A user without data of its own."""

    @abstractmethod
    def gradient(self, step: Step) -> Tensor:
        """What it adds to the gradient with respect to rho [D]."""


@dataclass(frozen=True, eq=False)
class GradientAttack(Malicious):
    r"""The counter-gradient attack: send what brings rho to ``target`` if the honest users repeat themselves.

    .. math:: g_s^t = \arg\min_{g \in \mathrm{Grad}(\rho^t)} \|\rho^t - \eta_t \hat g^t - \eta_t g - \theta^\dagger\|,
        \quad \hat g^t = (\rho^{t-1} - \rho^t)/\eta_{t-1} - g_s^{t-1},\ \hat g^0 = 0

    ``honest="inferred"`` is this formula, right where the server takes plain gradient steps. ``"seen"`` takes the
    honest gradient of the last step as given, as the authors' code does: with Adam, steps do not tell it.

    Knows: the common model, what it sent, the learning rate; the last honest gradient if ``honest="seen"``.
    Cost: O(D).
    Peers: none has it.
    Reference: Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022.
    """

    target: Tensor
    honest: Literal["inferred", "seen"] = "inferred"

    def __post_init__(self) -> None:
        if self.honest not in ("inferred", "seen"):
            raise ConfigError(f"GradientAttack: honest must be 'inferred' or 'seen', got {self.honest!r}")

    def gradient(self, step: Step) -> Tensor:
        guess = None
        if self.honest == "seen":
            guess = step.previous_honest
        elif step.previous is not None and step.previous_sent is not None:
            guess = honest_sum(step.previous, step.rho, step.previous_lr, step.previous_sent)
        return counter_gradient(step.rho, self.target, step.lr, guess, reach=step.regularizer.reach)


@dataclass(frozen=True, eq=False)
class ModelAttack(Malicious):
    """A user whose model is ``theta`` whatever happens; its gradient is the regulariser's."""

    theta: Tensor

    def gradient(self, step: Step) -> Tensor:
        return step.regularizer.gradient(step.rho, self.theta)


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of the last step for the malicious user; all None at first."""

    rho: Tensor | None = None
    lr: float = 0.0
    sent: Tensor | None = None
    honest: Tensor | None = None

    def step(self, rho: Tensor, lr: float, regularizer: Regularizer) -> Step:
        """What the malicious user sees now."""
        return Step(rho, lr, regularizer, self.rho, self.lr, self.sent, self.honest)


def pull(attack: Malicious | None, memory: Memory, rho: Tensor, lr: float, tie: Regularizer, honest: Tensor) -> Memory:
    """Ask the malicious user, and remember; its gradient is ``sent`` (zero without one)."""
    sent = torch.zeros_like(rho) if attack is None else attack.gradient(memory.step(rho, lr, tie))
    return Memory(rho, lr, sent, honest)
