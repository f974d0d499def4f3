"""A private copy of the model that takes local steps as one flat vector."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bezoar.models.flat import flatten

Loss = Callable[[Tensor, Tensor], Tensor]


class Scratch:
    """A copy of ``model`` whose weights and gradients are one vector each, for local training.

    The caller owns it and may overwrite it at any time; nothing in it outlives a call that uses it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model)
        self.weights = flatten(self.module)
        self.gradient = torch.zeros_like(self.weights)
        start = 0
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                stop = start + parameter.numel()
                parameter.grad = self.gradient[start:stop].view(parameter.shape)
                start = stop

    def load(self, weights: Tensor) -> None:
        """Start from the flat vector ``weights`` [d]."""
        with torch.no_grad():
            self.weights.copy_(weights)

    def differentiate(self, loss_fn: Loss, inputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient [d] of the mean loss at the current weights; overwritten by the next call."""
        self.gradient.zero_()
        torch.autograd.backward(loss_fn(self.module(inputs), targets).mean())
        return self.gradient

    def descend(
        self, loss_fn: Loss, inputs: Tensor, targets: Tensor, lr: float, decay: float = 0.0, radius: float = 0.0
    ) -> None:
        """One step of SGD on the mean loss of a batch.

        ``decay`` times the weights is added to the gradient, which is then scaled down to l2 norm ``radius`` if it is
        longer (0: it is not).
        """
        gradient = self.differentiate(loss_fn, inputs, targets)
        with torch.no_grad():
            if decay:
                gradient.add_(self.weights, alpha=decay)
            if radius:
                length = torch.linalg.vector_norm(gradient, dtype=torch.float64)
                gradient.mul_((radius / length).clamp(max=1.0))
            self.weights.sub_(gradient, alpha=lr)
