"""Any model: losses and accuracies are known, minima and constants are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks import Batch, DataAttack
from bezoar.clients import Gradient, Scratch
from bezoar.data.dataset import as_input
from bezoar.errors import ConfigError
from bezoar.expected.config import Task
from bezoar.expected.data import Shards
from bezoar.expected.poison import context
from bezoar.expected.tasks import Floats, Gradients, Problem, owned
from bezoar.experiments.setup import cross_entropy
from bezoar.models import MODELS, flatten
from bezoar.updates import client_gradients
from bezoar.updates.gradients import layout_of

#: Samples that are evaluated at a time.
_CHUNK = 1000

_CPU = torch.device("cpu")


class Network(Problem):
    """Cross-entropy of a registered model; a client's gradient is that of ``batch_size`` of its samples (0: all)."""

    def __init__(self, shards: Shards, task: Task, seed: int) -> None:
        assert task.model is not None
        assert shards.dataset is not None
        dataset = shards.dataset
        kind = MODELS.get(task.model.name)
        if kind is not None and kind.tokens:
            raise ConfigError(f"task.model: {task.model.name!r} reads tokens; {dataset.name} has numbers")
        self.shards, self.n, self.seed = shards, shards.n, seed
        self.draws = Gradient(batch_size=task.batch_size)
        self.model = task.model.build(dataset, seed).model
        self.weights = flatten(self.model)
        self.start = self.weights.clone()
        self.scratch = Scratch(self.model)
        self.layout = layout_of(self.model)

    def gradients(self, clients: Sequence[int]) -> Gradients:
        return _Minibatches(self, sorted(clients), (), None, self.seed)

    def attacked(self, attack: DataAttack, bad: Sequence[int], seed: int) -> Gradients:
        return _Minibatches(self, range(self.n), bad, attack, seed)

    def losses(self, theta: Tensor) -> Floats:
        train = self.shards.train
        each = self._over(theta, train.inputs, lambda outputs, at: cross_entropy(outputs, train.targets[at]).double())
        sums = torch.zeros(self.n, dtype=torch.float64).index_add_(0, train.owners, each)
        return np.asarray((sums / torch.bincount(train.owners, minlength=self.n)).numpy())

    def accuracy(self, theta: Tensor) -> float:
        inputs, targets = self.shards.test
        return float(self._over(theta, inputs, lambda outputs, at: (outputs.argmax(1) == targets[at]).double()).mean())

    def _over(self, theta: Tensor, inputs: Tensor, read) -> Tensor:  # type: ignore[no-untyped-def]
        self.load(theta)
        self.model.eval()
        with torch.no_grad():
            places = torch.split(torch.arange(len(inputs)), _CHUNK)
            return torch.cat([read(self.model(as_input(inputs[at], _CPU)), at) for at in places])

    def load(self, theta: Tensor) -> None:
        """Set the model's weights."""
        with torch.no_grad():
            self.weights.copy_(theta)


class _Minibatches(Gradients):
    def __init__(
        self, task: Network, clients: Sequence[int], bad: Sequence[int], attack: DataAttack | None, seed: int
    ) -> None:
        self._task, self._bad, self._attack, self._seed = task, list(bad), attack, seed
        self.clients = torch.tensor(list(clients), dtype=torch.int64)
        self._samples = task.shards.train.select(owned(task.shards.train, clients))

    def at(self, theta: Tensor, round: int) -> Tensor:
        task, batch = self._task, self._samples
        task.load(theta)
        places = np.arange(len(batch))
        chosen, _ = task.draws.chosen(places, batch.owners.numpy(), task.seed, round)
        batch = batch.select(torch.from_numpy(chosen))
        if self._attack is not None:
            batch = self._poisoned(self._attack, batch, round)
        task.model.train()
        inputs = as_input(batch.inputs, _CPU)
        rows = client_gradients(task.model, cross_entropy, inputs, batch.targets, batch.owners)
        return rows.materialise().clone()

    def _poisoned(self, attack: DataAttack, batch: Batch, round: int) -> Batch:
        own = owned(batch, self._bad)
        known = context(self._task.shards, torch.tensor(self._bad), self._seed, round)
        known = replace(known, weights=self._task.weights, scratch=self._task.scratch, loss_fn=cross_entropy)
        wrong = attack.poison(batch.select(own), known).batch
        return Batch.join(batch.select(~own), wrong)
