"""What an attacker in a Flower client needs to train by itself: a Mod can not reach the app's model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn

from bezoar.attacks import Batch, Goal
from bezoar.attacks.base import Loss
from bezoar.clients import LocalSGD, Scratch, Work
from bezoar.errors import ConfigError
from bezoar.experiments.setup import cross_entropy
from bezoar.integrations.gate import Array
from bezoar.seeding import derive
from bezoar.updates.gradients import layout_of


@dataclass(frozen=True)
class LocalTask:
    """The app's own training, told once more for the attackers: model, data, loss and how a client trains.

    The poisoned training is that of :class:`bezoar.clients.LocalSGD`, with batches of their own stream.

    Attributes:
        model: makes the model; its arrays go by the names of ``state_dict()``, or by their order where the app sends
            lists of arrays.
        data: an attacker's samples and labels, as the model takes them, from its context.
        classes: number of classes.
        lr: the clients' learning rate.
        epochs: the clients' passes over their data.
        batch_size: samples a step; 0: all.
        weight_decay: of the clients.
        loss: one loss a sample, from outputs and targets.
        goal: what targeted attackers want misclassified (:meth:`bezoar.attacks.Attack.goal`, or by hand); attacks that
            train on it need it.
        mean, std: what pictures were normalised with, one number a channel; by default pixels lie in [0, 1].
        metrics: what attackers report, from their number of samples. None: the app trains as well, honestly, and its
            report is sent with the poisoned model, which costs one training and can not be told from an honest one.
        server_lr: what the server multiplies the aggregate by, as attackers believe.

    Raises:
        ConfigError: numbers out of range.
    """

    model: Callable[[], nn.Module]
    data: Callable[[Context], tuple[Tensor, Tensor]]
    classes: int
    lr: float
    epochs: int = 1
    batch_size: int = 0
    weight_decay: float = 0.0
    loss: Loss = cross_entropy
    goal: Goal | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    metrics: Callable[[int], Mapping[str, float | int]] | None = None
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(f"LocalTask: classes must be at least 2, got {self.classes}")
        for key in ("lr", "server_lr"):
            if not 0 < getattr(self, key) <= 1e30:
                raise ConfigError(f"LocalTask: {key} must be a positive number of at most 1e30, got {self.lr}")
        if len(self.mean) != len(self.std) or any(not s > 0 for s in self.std):
            raise ConfigError("LocalTask: mean and std need one number a channel each, and std positive ones")
        self.clients()

    def clients(self) -> LocalSGD:
        """How a client trains."""
        return LocalSGD(epochs=self.epochs, batch_size=self.batch_size, weight_decay=self.weight_decay)

    def batch(self, context: Context, client: int, device: torch.device) -> Batch:
        """The samples of ``client``.

        Raises:
            ConfigError: ``data`` gave none, or labels that are none.
        """
        inputs, targets = self.data(context)
        if len(inputs) != len(targets) or not len(targets):
            raise ConfigError(f"LocalTask.data gave {len(inputs)} samples and {len(targets)} labels to client {client}")
        if targets.is_floating_point() or not (int(targets.min()) >= 0 and int(targets.max()) < self.classes):
            raise ConfigError(f"LocalTask.data gave client {client} labels that are not integers 0..{self.classes - 1}")
        owners = torch.full((len(targets),), client, device=device)
        return Batch(inputs.to(device), targets.long().to(device), owners)

    def pixels(self, batch: Batch) -> dict[str, Any]:
        """Range and normalisation of inputs, as :class:`bezoar.attacks.AttackContext` has them."""
        picture, numbers = batch.inputs.ndim == 4, batch.inputs.is_floating_point()
        inner = (-1,) + (1,) * (batch.inputs.ndim - 2)
        mean, std = (torch.tensor(v, dtype=torch.float32, device=batch.inputs.device) for v in (self.mean, self.std))
        mean, std = mean.view(inner), std.view(inner)
        return {
            "low": -mean / std if picture else None,
            "high": (1 - mean) / std if picture else None,
            "mean": mean if numbers else None,
            "std": std if numbers else None,
        }

    def load(self, arrays: Mapping[str, Array]) -> LocalModel:
        """The model with the ``arrays`` of a message.

        Raises:
            ConfigError: they are no arrays of this model.
        """
        with torch.random.fork_rng(devices=[]):
            model = self.model()
        own = model.state_dict()
        names = _matched(arrays, own)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if lacking := sorted(trained - set(names.values())):
            raise ConfigError(f"LocalTask.model trains {lacking[0]!r}, which the message does not hold: freeze it")
        model.load_state_dict({to: torch.from_numpy(arrays[name].copy()) for name, to in names.items()}, strict=False)
        model.train()
        scratch = Scratch(model)
        return LocalModel(scratch, scratch.weights.clone(), names)

    def train(self, local: LocalModel, batch: Batch, client: int, number: int, seed: int) -> Tensor:
        """The update [d] of ``client`` that trains on ``batch`` in round ``number``; buffers of ``local`` move."""
        model = local.scratch.module
        work = Work(
            model,
            local.start,
            local.scratch,
            self.loss,
            batch.inputs,
            batch.targets,
            batch.owners,
            self.lr,
            number,
            derive(seed, "poisoned training"),
        )
        return self.clients().trained(work, client, batch.inputs, batch.targets)


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A private model, where it started [d], and array name -> name in its ``state_dict()``."""

    scratch: Scratch
    start: Tensor
    names: Mapping[str, str]

    def arrays(self, update: Tensor, buffers: bool = True) -> dict[str, Array]:
        """The arrays of a message, the model being ``update`` [d] (descent sign) away from where it started.

        ``buffers`` are as training left them, or left out.
        """
        self.scratch.load(self.start - update)
        module = self.scratch.module
        found: Mapping[str, Any] = module.state_dict()
        out = {name for name, _ in module.named_buffers()} if not buffers else set()
        named = {name: own for name, own in self.names.items() if own not in out}
        return {name: found[own].detach().cpu().numpy().copy() for name, own in named.items()}

    def update(self, arrays: Mapping[str, Array]) -> Tensor:
        """The update [d] of a client that sent ``arrays``: where it started minus where it ended."""
        own = {name: torch.from_numpy(arrays[sent].copy()) for sent, name in self.names.items()}
        flat = [own[part.name].reshape(-1) for part in layout_of(self.scratch.module)]
        return self.start - torch.cat(flat).to(self.start)


def _matched(arrays: Mapping[str, Array], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the message -> name in the model: the same, else the one at the same place, if shapes agree."""
    pairs = list(zip(arrays, arrays, strict=True))
    if not arrays.keys() <= own.keys() and len(arrays) == len(own):
        pairs = list(zip(arrays, own, strict=True))
    for sent, name in pairs:
        if name not in own:
            raise ConfigError(f"LocalTask.model has no array {name!r}: it has {', '.join(list(own)[:5])}, ...")
        if tuple(arrays[sent].shape) != tuple(own[name].shape):
            raise ConfigError(
                f"LocalTask.model: {name!r} is {list(own[name].shape)}, in the message it is {list(arrays[sent].shape)}"
            )
    return dict(pairs)
