"""What a kind of layer must know so that client gradients can be asked for without being stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bezoar.updates.ghost.cohort import Cohort

#: Products of float32 numbers below or above are formed again in float64.
LOW, HIGH = 1e-30, 1e30

#: Largest intermediate tensor of the ghost forms.
WORK_BYTES = 16 * 2**20


class GhostImpossibleError(Exception):
    """The model is built or used in a way that layer inputs and output gradients do not explain."""


class Layer(ABC):
    """One module whose output is linear in its parameters, seen from its inputs A and output gradients B.

    A and B are *canonical* below: what ``inputs`` and ``gradients`` return, N samples first. ``size`` is the number
    of samples of each client; clients follow each other. Nothing here depends on the parameters' values.
    """

    kind: ClassVar[type[nn.Module]]

    @abstractmethod
    def __init__(self, module: Any) -> None:
        """Read the options of ``module``, which is of the type ``kind`` (not its parameters' values)."""

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this module's options are not supported, or None."""
        return None

    @abstractmethod
    def inputs(self, a: Tensor) -> Tensor:
        """Canonical A from the module's input [N, ...]."""

    @abstractmethod
    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        """Canonical B from the gradient [N, ...] of the module's output, given canonical A."""

    @abstractmethod
    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        """Gradients of the bias per client: [g, features]."""


class Affine(Layer):
    """Scales features: its rows are never larger than its input, so they are always kept."""

    @abstractmethod
    def weight_rows(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """Gradients of the weight per client: [g, features]."""


class Matrix(Layer):
    """Has a weight of ``units`` times ``width`` numbers; its rows are kept only where that is the smaller evil."""

    units: int
    width: int

    #: Whether A and B of several calls can be concatenated along dimension 1.
    mergeable: ClassVar[bool] = False

    @abstractmethod
    def rows(self, a: Tensor, b: Tensor, size: int, first: int, last: int) -> Tensor:
        """Weight gradients per client, units ``first`` to ``last`` only: [g, (last - first) * width]."""

    @abstractmethod
    def total(self, a: Tensor, b: Tensor) -> Tensor:
        """The ordinary weight gradient of all samples together: [units * width]."""

    @abstractmethod
    def inner(self, a: Tensor, b: Tensor, vector: Tensor) -> Tensor:
        """Inner product of every sample's weight gradient with ``vector`` [units * width]: float64 [N]."""

    @abstractmethod
    def prefers_ghost(self, a: Tensor, b: Tensor, size: int) -> bool:
        """Whether norms are cheaper from A and B than from rows."""

    @abstractmethod
    def ghost_norms(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """Squared norms of the clients' weight gradients from A and B: float64 [g]."""

    def gram(self, a: Tensor, b: Tensor, cohort: Cohort) -> Tensor | None:
        """Inner products of all pairs of clients, float64 [n, n], where cheaper than from rows; else None."""
        return None


def paired_norms(inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [g] (float64) over products of two stacks of Gram matrices [g, r, r], and which of them to distrust.

    Products are formed in the matrices' own precision: where diagonals, which bound all entries, leave its comfortable
    range, digits are lost. Overwrites ``inputs``.
    """
    doubt = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if inputs.dtype != torch.float64:
        left, right = (gram.diagonal(dim1=1, dim2=2).amax(1) for gram in (inputs, gradients))
        for largest in (left, right, left * right):
            doubt |= ~((largest > LOW) & (largest < HIGH))
    return inputs.mul_(gradients).sum((1, 2), dtype=torch.float64).clamp(min=0), doubt


def by_client(samples: Tensor, size: int) -> Tensor:
    """[g * size, ...] as [g, size, ...]."""
    return samples.reshape(-1, size, *samples.shape[1:])
