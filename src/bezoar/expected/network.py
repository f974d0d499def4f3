"""Any registered model, with gradients of minibatches: nothing is known of its losses but their values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezoar.attacks import Batch
from bezoar.data.dataset import Dataset
from bezoar.expected.task import Task
from bezoar.models import flatten
from bezoar.seeding import generator
from bezoar.updates.gradients import client_gradients

#: Samples of one forward pass where losses are measured.
CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Network(Task):
    """L_i = the mean cross-entropy of client i's samples; gradients are those of ``size`` of them, drawn each round."""

    dataset: Dataset
    model: nn.Module
    held: Batch
    n: int
    size: int
    seed: int

    @property
    def classes(self) -> int:
        return len(self.dataset.classes)

    @cached_property
    def _flat(self) -> Tensor:
        """The model's parameters, which are views of it."""
        return flatten(self.model)

    @cached_property
    def _first(self) -> Tensor:
        return self._flat.clone()

    @property
    def counts(self) -> Tensor:
        return torch.bincount(self.held.owners, minlength=self.n)

    def start(self) -> Tensor:
        return self._first.clone()

    def _at(self, theta: Tensor) -> nn.Module:
        first = self._first
        with torch.no_grad():
            self._flat.copy_(theta if theta is not None else first)
        return self.model

    def gradients(self, theta: Tensor, t: int) -> Tensor:
        model = self._at(theta).train()
        # One draw for each sample, whoever holds it: a client's draw does not depend on what others hold.
        chosen = []
        for client in range(self.n):
            mine = (self.held.owners == client).nonzero().flatten()
            order = torch.randperm(len(mine), generator=generator(self.seed, "minibatch", t, client))
            chosen.append(mine[order[: self.size]])
        batch = self.held.select(torch.cat(chosen))
        torch.manual_seed(self.seed + t)
        return client_gradients(model, self._flat, _cross_entropy, batch.inputs, batch.targets, batch.owners).materialise()

    def _outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        model = self._at(theta).eval()
        with torch.no_grad():
            return torch.cat([model(part) for part in torch.split(inputs, CHUNK)])

    def losses(self, theta: Tensor) -> Tensor:
        each = _cross_entropy(self._outputs(theta, self.held.inputs), self.held.targets).double()
        sums = torch.zeros(self.n, dtype=torch.float64).index_add(0, self.held.owners, each)
        return sums / self.counts

    def accuracy(self, theta: Tensor) -> float | None:
        test = self.dataset.test
        outputs = self._outputs(theta, self.dataset.batch(test, slice(None)))
        return float((outputs.argmax(1) == test.targets).double().mean())

    def batch(self, clients: Tensor) -> Batch:
        return self.held.select(torch.isin(self.held.owners, clients))

    def holding(self, batch: Batch) -> Self:
        kept = self.held.select(~torch.isin(self.held.owners, batch.owners))
        return dataclasses.replace(self, held=Batch.join(kept, batch))


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")
