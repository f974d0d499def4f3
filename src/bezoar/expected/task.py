"""What is learnt: the clients' losses, their gradients, and what is known of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from bezoar.attacks import Batch
from bezoar.data.dataset import Dataset


@dataclass(frozen=True)
class Curvature:
    r"""mu and L of a weighted mean of losses: it is mu-strongly convex and L-smooth."""

    convexity: float
    smoothness: float


class Task(ABC):
    """n losses L_i of the same parameters theta [d].

    Attributes:
        n: number of clients.
        dataset: where their samples come from.
    """

    n: int
    dataset: Dataset

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes, 0 for regression."""

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """Samples of every client [n]."""

    @abstractmethod
    def start(self) -> Tensor:
        """Where training starts [d]."""

    @abstractmethod
    def gradients(self, theta: Tensor, t: int) -> Tensor:
        """The clients' gradients [n, d] at ``theta`` in round ``t``."""

    @abstractmethod
    def losses(self, theta: Tensor) -> Tensor:
        """The clients' losses [n] float64."""

    @abstractmethod
    def batch(self, clients: Tensor) -> Batch:
        """All samples of ``clients``, in the order of ids."""

    @abstractmethod
    def holding(self, batch: Batch) -> Self:
        """This task with the samples of the owners in ``batch`` replaced by those."""

    def accuracy(self, theta: Tensor) -> float | None:
        """Share of test samples that are classified rightly; None without classes or a test set."""
        return None

    def curvature(self, weights: Tensor) -> Curvature | None:
        """What is known of sum_i w_i L_i, ``weights`` [n] not negative; None if nothing is."""
        return None

    def minimum(self, weights: Tensor) -> float | None:
        """The least value of sum_i w_i L_i, ``weights`` [n] not negative; None if it is not known."""
        return None
