"""What clients do with the global model: one gradient, or several local steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezoar.clients.scratch import Scratch
from bezoar.errors import ConfigError
from bezoar.registry import Registry
from bezoar.seeding import derive, generator
from bezoar.updates.base import Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.gradients import client_gradients, layout_of
from bezoar.updates.mixed import Mixed
from bezoar.updates.streamed import StreamedUpdates

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """One round's honest work.

    Attributes:
        model: the global model, whose weights are views into ``weights``.
        weights: the global model, flat [d].
        scratch: a private copy to train on.
        loss_fn: one loss a sample.
        inputs: samples of all clients [N, ...].
        targets: their labels [N].
        owners: the client of every sample [N].
        lr: the round's learning rate.
        round: the round, from 1.
        seed: the experiment's seed.
    """

    model: nn.Module
    weights: Tensor
    scratch: Scratch
    loss_fn: Loss
    inputs: Tensor
    targets: Tensor
    owners: Tensor
    lr: float
    round: int
    seed: int


@dataclass(frozen=True)
class Clients(ABC):
    """How a cohort turns the global model into updates."""

    @abstractmethod
    def updates(self, work: Work) -> Updates:
        """The cohort's updates, rows in the order of client ids."""

    @abstractmethod
    def server_lr(self, lr: float) -> float:
        """The server's learning rate in a round with learning rate ``lr``."""


@dataclass(frozen=True)
class Gradient(Clients):
    """One gradient of the mean loss of all the client's samples; the server applies the learning rate.

    The cohort is computed in one forward and one backward pass (``method = "auto"``) or client by client
    (``"loop"``).
    """

    method: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in ("auto", "ghost", "loop"):
            raise ConfigError(f"gradient: method must be 'auto', 'ghost' or 'loop', got {self.method!r}")

    def updates(self, work: Work) -> Updates:
        return client_gradients(
            work.model,
            work.loss_fn,
            work.inputs,
            work.targets,
            work.owners,
            method=self.method,  # type: ignore[arg-type]
        )

    def server_lr(self, lr: float) -> float:
        return lr


@dataclass(frozen=True)
class LocalSGD(Clients):
    """Several local epochs of SGD (FedAvg): the update is global minus local model.

    The schedule is the clients' learning rate; the server's is ``server_lr_factor`` (1). ``batch_size`` 0 takes all
    samples of a client in one step; one epoch of that is a single gradient step and is computed for the whole cohort
    at once. Otherwise clients train one after another; their rows are kept up to ``max_bytes`` in all, beyond that
    they are computed again when a norm rule asks, and other rules are refused.
    """

    epochs: int = 1
    batch_size: int = 0
    server_lr_factor: float = 1.0
    max_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 0:
            raise ConfigError("local: epochs must be at least 1 and batch_size at least 0")
        if not (self.server_lr_factor > 0 and math.isfinite(self.server_lr_factor)):
            raise ConfigError(f"local: server_lr_factor must be a positive number, got {self.server_lr_factor}")

    def updates(self, work: Work) -> Updates:
        if self.epochs == 1 and self.batch_size == 0:
            gradients = Gradient().updates(work)
            return Mixed(gradients, torch.full((len(gradients),), work.lr, dtype=torch.float64))
        return self._trained(work)

    def _trained(self, work: Work) -> Updates:
        ids, counts = torch.unique(work.owners, return_counts=True)
        order = torch.argsort(work.owners, stable=True)
        mine = torch.split(order, counts.tolist())

        def row(i: int) -> Tensor:
            return self._train(work, int(ids[i]), work.inputs[mine[i]], work.targets[mine[i]])

        layout = layout_of(work.model)
        size = len(ids) * work.weights.numel() * work.weights.dtype.itemsize
        if size > self.max_bytes:
            return StreamedUpdates(row, work.weights, ids.cpu(), layout)
        rows = torch.empty(len(ids), work.weights.numel(), dtype=work.weights.dtype, device=work.weights.device)
        for i in range(len(ids)):
            rows[i] = row(i)
        return DenseUpdates(rows, ids.cpu(), layout)

    def _train(self, work: Work, client: int, inputs: Tensor, targets: Tensor) -> Tensor:
        model = work.scratch
        model.load(work.weights)
        draws = generator(work.seed, "batches", work.round, client)
        size = self.batch_size or len(targets)
        cuda = [targets.device] if targets.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            # Dropout draws from the global stream: a client's must not depend on who trained before it.
            torch.manual_seed(derive(work.seed, "local", work.round, client))
            for _ in range(self.epochs):
                order = torch.randperm(len(targets), generator=draws).to(targets.device)
                for batch in torch.split(order, size):
                    model.descend(work.loss_fn, inputs[batch], targets[batch], work.lr)
        return work.weights - model.weights

    def server_lr(self, lr: float) -> float:
        return self.server_lr_factor


CLIENTS: Registry[Clients] = Registry("clients' regime", {"gradient": Gradient, "local": LocalSGD})
