"""Two ways to train: all models together, or the common model on the users' best answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bezoar.errors import ConfigError, DivergedError
from bezoar.personalized.attacks import Malicious, Memory, pull
from bezoar.personalized.problem import Problem
from bezoar.personalized.response import respond
from bezoar.seeding import generator


@dataclass(frozen=True)
class Joint:
    """Full-batch steps on rho and all theta_n at once: Adam, or plain gradient descent.

    The learning rate of epoch t (from 0) is max(lr decay^t, floor). The defaults are those of the authors' code.
    """

    epochs: int = 250
    lr: float = 0.02
    decay: float = 0.99
    floor: float = 0.005
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"Joint: epochs must be 0 or more, got {self.epochs}")
        if not (math.isfinite(self.lr) and self.lr > 0 and 0 < self.decay <= 1 and 0 <= self.floor <= self.lr):
            raise ConfigError(
                "Joint: needs lr > 0, 0 < decay <= 1 and 0 <= floor <= lr, got "
                f"lr={self.lr}, decay={self.decay}, floor={self.floor}"
            )
        if self.optimizer not in ("adam", "sgd"):
            raise ConfigError(f"Joint: optimizer must be 'adam' or 'sgd', got {self.optimizer!r}")

    def rate(self, epoch: int) -> float:
        """The learning rate of ``epoch``, from 0."""
        return max(self.lr * self.decay**epoch, self.floor)


@dataclass(frozen=True)
class BestResponse:
    """Steps of plain gradient descent on rho, with every theta_n at its best for that rho."""

    rounds: int = 100
    lr: float = 0.02

    def __post_init__(self) -> None:
        if self.rounds < 0 or not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"BestResponse: needs rounds >= 0 and lr > 0, got rounds={self.rounds}, lr={self.lr}")


@dataclass(frozen=True, eq=False)
class Models:
    """The state of training: everything that the next step needs.

    Attributes:
        rho: the common model [D].
        thetas: the users' models [N, D].
        epoch: steps done.
        memory: what the malicious user may remember.
        moments: Adam's first and second moments [2, N + 1, D], rho first; None before the first step.
    """

    rho: Tensor
    thetas: Tensor
    epoch: int = 0
    memory: Memory = field(default_factory=Memory)
    moments: Tensor | None = None


Watch = Callable[[Models], None]


def initial(problem: Problem, seed: int) -> Models:
    """Models drawn from ``seed``, the common one and one for each user; a user's draw does not depend on how many."""
    like = problem.data[0].inputs
    rho = problem.loss.initial(generator(seed, "personalised common model"), like.dtype)
    users = [generator(seed, "personalised user model", n) for n in range(problem.users)]
    thetas = torch.stack([problem.loss.initial(draws, like.dtype) for draws in users])
    return Models(rho.to(like.device), thetas.to(like.device))


def joint_step(problem: Problem, training: Joint, models: Models, attack: Malicious | None = None) -> Models:
    """One epoch."""
    lr = training.rate(models.epoch)
    honest, own = problem.gradients(models.rho, models.thetas)
    memory = pull(attack, models.memory, models.rho, lr, problem.regularizer, honest)
    assert memory.sent is not None
    gradient = torch.cat([(honest + memory.sent)[None], own])
    moments, step = models.moments, gradient
    if training.optimizer == "adam":
        moments, step = _adam(gradient, models.moments, models.epoch + 1)
    rho, thetas = models.rho - lr * step[0], models.thetas - lr * step[1:]
    return _finite(Models(rho, thetas, models.epoch + 1, memory, moments))


def _adam(gradient: Tensor, moments: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
    """Moments and step of Adam with beta = (0.9, 0.999), epsilon = 1e-8 and correction of the bias."""
    old = gradient.new_zeros(2, *gradient.shape) if moments is None else moments
    first = 0.9 * old[0] + 0.1 * gradient
    second = 0.999 * old[1] + 0.001 * gradient.square()
    step = (first / (1 - 0.9**t)) / (second.sqrt() / math.sqrt(1 - 0.999**t) + 1e-8)
    return torch.stack([first, second]), step


def response_step(problem: Problem, training: BestResponse, models: Models, attack: Malicious | None = None) -> Models:
    """One round: all users answer rho, then rho moves."""
    start = models.thetas if models.epoch else None
    thetas = respond(problem, models.rho, start)
    honest = problem.regularizer.gradient(models.rho, thetas).sum(0)
    memory = pull(attack, models.memory, models.rho, training.lr, problem.regularizer, honest)
    assert memory.sent is not None
    rho = models.rho - training.lr * (honest + memory.sent)
    return _finite(dataclasses.replace(models, rho=rho, thetas=thetas, epoch=models.epoch + 1, memory=memory))


def train(
    problem: Problem,
    training: Joint | BestResponse,
    start: Models | int = 0,
    attack: Malicious | None = None,
    watch: Watch | None = None,
) -> Models:
    """Train from ``start`` (models, or the seed of fresh ones) to the end; ``watch`` sees the models after every step.

    From the models of an earlier run it goes on as if there had been no break.
    """
    models = initial(problem, start) if isinstance(start, int) else start
    last = training.epochs if isinstance(training, Joint) else training.rounds
    while models.epoch < last:
        if isinstance(training, Joint):
            models = joint_step(problem, training, models, attack)
        else:
            models = response_step(problem, training, models, attack)
        if watch is not None:
            watch(models)
    return models


def _finite(models: Models) -> Models:
    for whose, found in (("the common model is", models.rho), ("a user's model is", models.thetas)):
        if not bool(torch.isfinite(found).all()):
            raise DivergedError(f"{whose} no longer finite after step {models.epoch}; take a smaller lr")
    return models
