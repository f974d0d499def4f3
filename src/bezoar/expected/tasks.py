"""Losses of n clients with their gradients, minima and constants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.attacks import Batch, DataAttack
from bezoar.expected.data import Shards
from bezoar.expected.poison import poisoned
from bezoar.updates import Layout

Floats = NDArray[np.float64]

#: A minimum is known up to this much loss: a gradient g at a mu-strongly convex loss leaves at most |g|^2 / (2 mu).
GAP = 1e-12


@dataclass(frozen=True)
class Curvature:
    """Of a loss: ``smoothness`` L (an upper bound) and strong ``convexity`` mu (a lower bound)."""

    smoothness: float
    convexity: float


class Gradients(ABC):
    """The gradients of some clients' losses, in the order of ``clients`` [m] (ids, ascending)."""

    clients: Tensor

    @abstractmethod
    def at(self, theta: Tensor, round: int) -> Tensor:
        """[m, d] at ``theta`` [d]; the caller may change it."""


class Problem(ABC):
    """The clients' losses L_i on their own samples.

    Attributes:
        n: number of clients.
        start: the model before the first round [d], of the type in which it is trained.
        shards: the samples.
        layout: where the parameters of layers live in a model, empty where there are none.
    """

    n: int
    start: Tensor
    shards: Shards
    layout: Layout = ()

    @abstractmethod
    def gradients(self, clients: Sequence[int]) -> Gradients:
        """Of ``clients`` (ids, ascending) on their own samples."""

    @abstractmethod
    def attacked(self, attack: DataAttack, bad: Sequence[int], seed: int) -> Gradients:
        """Of all clients, those in ``bad`` on samples that ``attack`` poisoned."""

    @abstractmethod
    def losses(self, theta: Tensor) -> Floats:
        """L_i [n] on the clients' own samples, float64."""

    @abstractmethod
    def accuracy(self, theta: Tensor) -> float | None:
        """Share of the test samples that are classified rightly; None where there are no classes."""

    def curvature(self, honest: NDArray[np.bool_]) -> Curvature | None:
        """Of L_S, the mean loss of the clients in ``honest`` [n]; None if it is not known."""
        return None

    def minimum(self, weights: Floats) -> float | None:
        r"""The least value of :math:`\sum_i w_i L_i`, weights [n] that add up to one; None if it is not known."""
        return None


class Linear(Problem):
    r"""What ridge and softmax regression share: linear functions of features with a bias, theta [D, C] as a vector.

    With ``l2`` every client's loss has :math:`\tfrac{l_2}2 \|\theta\|^2`, bias included.
    """

    def __init__(self, shards: Shards, l2: float) -> None:
        self.shards, self.l2, self.n = shards, l2, shards.n
        features = with_bias(shards.train.inputs)
        counts = torch.bincount(shards.train.owners, minlength=self.n).tolist()
        self.features = torch.split(features, counts)
        self.targets = torch.split(shards.train.targets, counts)
        self.dimension = features.shape[1]
        self.outputs = shards.classes or 1
        self.start = torch.zeros(self.dimension * self.outputs, dtype=torch.float64)
        self._poisoned: dict[DataAttack, Batch] = {}

    @abstractmethod
    def _gradients(self, batch: Batch) -> Gradients:
        """Of the owners of ``batch``, which may hold poisoned samples."""

    def gradients(self, clients: Sequence[int]) -> Gradients:
        return self._gradients(self.shards.train.select(owned(self.shards.train, clients)))

    def attacked(self, attack: DataAttack, bad: Sequence[int], seed: int) -> Gradients:
        if attack not in self._poisoned:
            self._poisoned[attack] = poisoned(attack, self.shards, seed)
        train, wrong = self.shards.train, self._poisoned[attack]
        good = train.select(~owned(train, bad))
        return self._gradients(Batch.join(good, wrong.select(owned(wrong, bad))))

    def matrix(self, theta: Tensor) -> Tensor:
        """``theta`` [d] as float64 [D, C]."""
        return theta.double().view(self.dimension, self.outputs)

    def accuracy(self, theta: Tensor) -> float | None:
        if self.shards.classes is None:
            return None
        inputs, targets = self.shards.test
        if "_test" not in self.__dict__:
            self._test = with_bias(inputs)
        return float(((self._test @ self.matrix(theta)).argmax(1) == targets).double().mean())


def with_bias(inputs: Tensor) -> Tensor:
    """[N, ...] -> float64 [N, D] with a last column of ones."""
    flat = inputs.flatten(1).double()
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)


def indicators(targets: Tensor, outputs: int) -> Tensor:
    """Targets as float64 [N, C]: numbers as they are, classes by their indicators."""
    if targets.is_floating_point():
        return targets.double()[:, None]
    return torch.nn.functional.one_hot(targets, outputs).double()


def owned(batch: Batch, clients: Sequence[int]) -> Tensor:
    """Which samples belong to ``clients``: bool [N]."""
    return torch.isin(batch.owners, torch.tensor(list(clients), dtype=torch.int64))


def by_owner(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The owners of a batch, ascending, and where the samples of each stand."""
    order = torch.argsort(batch.owners, stable=True)
    clients, counts = torch.unique(batch.owners, return_counts=True)
    return clients, list(torch.split(order, counts.tolist()))


def shares(honest: NDArray[np.bool_] | Sequence[bool]) -> Floats:
    """Equal weights of the members of a set [n]."""
    mask = np.asarray(honest, dtype=np.float64)
    return np.asarray(mask / mask.sum())
