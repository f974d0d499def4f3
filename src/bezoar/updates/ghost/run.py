"""From a model and a batch to the client gradients, by one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError
from bezoar.updates.base import Layout
from bezoar.updates.ghost.cohort import Cohort
from bezoar.updates.ghost.plan import plan
from bezoar.updates.ghost.tape import record
from bezoar.updates.ghost.updates import GhostUpdates

Loss = Callable[[Tensor, Tensor], Tensor]


def sample_losses(model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor) -> Tensor:
    """One loss per sample [N], or an error that says what ``loss_fn`` gave instead."""
    losses = loss_fn(model(inputs), targets)
    if not isinstance(losses, Tensor) or losses.shape != (len(inputs),):
        given = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigError(
            f"loss_fn must give one loss per sample [{len(inputs)}], got {given}: pass a loss with reduction='none'"
        )
    return losses


def ghost_gradients(
    model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, clients: Tensor, layout: Layout
) -> GhostUpdates:
    """Gradients of the clients' mean losses; raises GhostImpossibleError where the model is out of reach."""
    planned = plan(model)
    cohort = Cohort(clients)
    inputs, targets = cohort.arrange(inputs.detach()), cohort.arrange(targets)

    def summed_means() -> Tensor:
        losses = sample_losses(model, loss_fn, inputs, targets)
        share = cohort.spread(1 / cohort.counts.to(torch.float64)).to(losses.device, losses.dtype)
        return (losses * share).sum()

    parts = record(model, planned, summed_means, cohort)
    return GhostUpdates([parts[i] for i in range(len(layout))], cohort, layout, model)
