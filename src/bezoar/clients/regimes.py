"""What clients do with the global model: one gradient, or several local steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bezoar.clients.scratch import Scratch
from bezoar.data.dataset import Indices
from bezoar.errors import ConfigError
from bezoar.registry import Registry
from bezoar.seeding import derive, generator, numpy_generator
from bezoar.updates.base import Needs, Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.gradients import client_gradients, layout_of
from bezoar.updates.mixed import Mixed
from bezoar.updates.shifted import Shifted
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
        cohort: clients in a round, malicious ones included.
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
    cohort: int = 1


@dataclass(frozen=True)
class Clients(ABC):
    """How a cohort turns the global model into updates.

    With ``momentum`` beta > 0 a client sends m <- beta m + (1 - beta) g instead of g, its fresh update (m = 0 at
    first); then every client must take part in every round. The simulator keeps the momentum of all clients, [n, d],
    and refuses more than ``max_bytes`` of it; a round needs up to three times as much.

    ``weight_decay`` times the model is added to every gradient, before anybody clips it. With ``split_decay`` it is
    divided by the number of clients in a round first, as in the authors' code of SparseFed: the mean over the round is
    then decayed by that much less.
    """

    momentum: float = field(default=0.0, kw_only=True)
    max_bytes: int = field(default=4 * 2**30, kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)
    split_decay: bool = field(default=False, kw_only=True)

    #: Parameters that tables leave out at their defaults: experiments from before they existed keep their hashes.
    added: ClassVar[tuple[str, ...]] = ("momentum", "weight_decay", "split_decay")

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"clients: momentum must be at least 0 and below 1, got {self.momentum}")
        if not 0 <= self.weight_decay <= 1e30:
            raise ConfigError(f"clients: weight_decay must be at least 0 and at most 1e30, got {self.weight_decay}")

    def decay(self, work: Work) -> float:
        """What the model is multiplied by when it is added to a gradient."""
        return self.weight_decay / max(1, work.cohort) if self.split_decay else self.weight_decay

    def decayed(self, gradients: Updates, work: Work) -> Updates:
        """``gradients`` with weight decay."""
        decay = self.decay(work)
        return Shifted(gradients, decay * work.weights) if decay else gradients

    def chosen(self, rows: Indices, owners: Indices, seed: int, round: int) -> tuple[Indices, Indices]:
        """The samples of a round, of all ``rows`` [N] that its cohort holds, and their ``owners`` [N]."""
        return rows, owners

    def load(self, counts: Indices) -> Indices:
        """How much work a round is for clients with so many samples [n], in any unit that is the same for all."""
        return counts

    @property
    def shares_draws(self) -> bool:
        """Whether layers that draw (dropout) draw for all clients at once, not for each from a stream of its own."""
        return True

    def offers(self, n: int, row_bytes: int) -> Needs:
        """What the updates of ``n`` clients can be asked for, a row being ``row_bytes`` long."""
        return ~Needs.NONE

    @abstractmethod
    def updates(self, work: Work) -> Updates:
        """The cohort's updates, rows in the order of client ids."""

    @abstractmethod
    def server_lr(self, lr: float) -> float:
        """The server's learning rate in a round with learning rate ``lr``."""

    @abstractmethod
    def update_lr(self, lr: float) -> float:
        """What a gradient is multiplied by in a client's update, for every step that it takes."""


@dataclass(frozen=True)
class Gradient(Clients):
    """One gradient of the mean loss of all the client's samples; the server applies the learning rate.

    ``batch_size`` takes that many of a client's samples instead, drawn anew every round (0: all of them; a client
    with fewer takes all). The cohort is computed in one forward and one backward pass (``method = "auto"``) or client
    by client (``"loop"``).
    """

    method: str = "auto"
    batch_size: int = 0

    added: ClassVar[tuple[str, ...]] = (*Clients.added, "max_bytes", "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 0:
            raise ConfigError(f"gradient: batch_size must be at least 0 (all samples), got {self.batch_size}")
        if self.method not in ("auto", "ghost", "loop"):
            raise ConfigError(f"gradient: method must be 'auto', 'ghost' or 'loop', got {self.method!r}")

    def updates(self, work: Work) -> Updates:
        gradients = client_gradients(
            work.model,
            work.loss_fn,
            work.inputs,
            work.targets,
            work.owners,
            method=self.method,  # type: ignore[arg-type]
        )
        return self.decayed(gradients, work)

    def chosen(self, rows: Indices, owners: Indices, seed: int, round: int) -> tuple[Indices, Indices]:
        if not self.batch_size or not len(owners):
            return rows, owners
        starts = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1))
        kept = []
        for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
            draws = numpy_generator(seed, "batch", round, int(owners[start]))
            size = min(self.batch_size, stop - start)
            kept.append(start + np.sort(draws.choice(stop - start, size, replace=False)))
        positions = np.concatenate(kept)
        return rows[positions], owners[positions]

    def load(self, counts: Indices) -> Indices:
        return np.minimum(counts, self.batch_size) if self.batch_size else counts

    def server_lr(self, lr: float) -> float:
        return lr

    def update_lr(self, lr: float) -> float:
        return 1.0


@dataclass(frozen=True)
class LocalSGD(Clients):
    """Several local epochs of SGD (FedAvg): the update is global minus local model.

    The schedule is the clients' learning rate; the server's is ``server_lr_factor`` (1). ``batch_size`` 0 takes all
    samples of a client in one step; one epoch of that is a single gradient step and is computed for the whole cohort
    at once. Otherwise clients train one after another; their rows are kept up to ``max_bytes`` in all, beyond that
    they are computed again when a norm rule asks, and other rules are refused.

    ``server_schedule`` lets the server multiply by the schedule as well (both rates of the SparseFed paper's Algorithm
    4, set to the same schedule: its square); ``lr_decay`` multiplies the local rate after every local step;
    ``step_radius`` clips the gradient of every local step to that norm (0: none is), which bounds a client's update by
    its rates' sum times the radius, but no attacker's.
    """

    epochs: int = 1
    batch_size: int = 0
    server_lr_factor: float = 1.0
    server_schedule: bool = False
    lr_decay: float = 1.0
    step_radius: float = 0.0

    added: ClassVar[tuple[str, ...]] = (*Clients.added, "server_schedule", "lr_decay", "step_radius")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr_decay <= 1:
            raise ConfigError(f"local: lr_decay must be above 0 and at most 1, got {self.lr_decay}")
        if not (self.step_radius >= 0 and math.isfinite(self.step_radius)):
            raise ConfigError(f"local: step_radius must be a number >= 0 (0: no clipping), got {self.step_radius}")
        if self.epochs < 1 or self.batch_size < 0:
            raise ConfigError("local: epochs must be at least 1 and batch_size at least 0")
        if not (self.server_lr_factor > 0 and math.isfinite(self.server_lr_factor)):
            raise ConfigError(f"local: server_lr_factor must be a positive number, got {self.server_lr_factor}")

    @property
    def _one_step(self) -> bool:
        return self.epochs == 1 and self.batch_size == 0

    @property
    def shares_draws(self) -> bool:
        return self._one_step

    def offers(self, n: int, row_bytes: int) -> Needs:
        return ~Needs.NONE if self._one_step or n * row_bytes <= self.max_bytes else StreamedUpdates.offers

    def updates(self, work: Work) -> Updates:
        if self._one_step:
            gradients = self.decayed(Gradient().updates(work), work)
            rates = torch.full((len(gradients),), work.lr, dtype=torch.float64, device=gradients.device)
            if self.step_radius:
                rates *= (self.step_radius / gradients.squared_norms().sqrt()).clamp(max=1.0)
            return Mixed(gradients, rates)
        return self._trained(work)

    def _trained(self, work: Work) -> Updates:
        ids, counts = torch.unique(work.owners, return_counts=True)
        order = torch.argsort(work.owners, stable=True)
        mine = torch.split(order, counts.tolist())

        def row(i: int) -> Tensor:
            return self.trained(work, int(ids[i]), work.inputs[mine[i]], work.targets[mine[i]])

        layout = layout_of(work.model)
        size = len(ids) * work.weights.numel() * work.weights.dtype.itemsize
        if size > self.max_bytes:
            return StreamedUpdates(row, work.weights, ids.cpu(), layout)
        rows = torch.empty(len(ids), work.weights.numel(), dtype=work.weights.dtype, device=work.weights.device)
        for i in range(len(ids)):
            rows[i] = row(i)
        return DenseUpdates(rows, ids.cpu(), layout)

    def trained(self, work: Work, client: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """The update [d] of one ``client`` that trains on ``inputs`` with ``targets``, step by step in the scratch."""
        model = work.scratch
        model.load(work.weights)
        draws = generator(work.seed, "batches", work.round, client)
        size = self.batch_size or len(targets)
        cuda = [targets.device] if targets.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            # Dropout draws from the global stream: a client's must not depend on who trained before it.
            torch.manual_seed(derive(work.seed, "local", work.round, client))
            lr, decay = work.lr, self.decay(work)
            for _ in range(self.epochs):
                order = torch.randperm(len(targets), generator=draws).to(targets.device)
                for batch in torch.split(order, size):
                    model.descend(work.loss_fn, inputs[batch], targets[batch], lr, decay, self.step_radius)
                    lr *= self.lr_decay
        return work.weights - model.weights

    def server_lr(self, lr: float) -> float:
        return self.server_lr_factor * lr if self.server_schedule else self.server_lr_factor

    def update_lr(self, lr: float) -> float:
        return lr


CLIENTS: Registry[Clients] = Registry("clients' regime", {"gradient": Gradient, "local": LocalSGD})
