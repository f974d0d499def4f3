"""One gradient step of many clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from bezoar.updates.base import Layout, Segment, Updates
from bezoar.updates.dense import DenseUpdates

Loss = Callable[[Tensor, Tensor], Tensor]
Method = Literal["auto", "ghost", "loop"]


def layout_of(model: nn.Module) -> Layout:
    """Where each trainable parameter lives in the flat vector, in ``model.parameters()`` order."""
    segments, start = [], 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            segments.append(Segment(name, start, start + parameter.numel(), tuple(parameter.shape)))
            start += parameter.numel()
    return tuple(segments)


def client_gradients(
    model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, clients: Tensor, method: Method = "auto"
) -> Updates:
    """Loop reference; the ghost path follows."""
    ids = torch.unique(clients)
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for client in ids:
        mine = clients == client
        loss = loss_fn(model(inputs[mine]), targets[mine]).mean()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return DenseUpdates(torch.stack(rows), ids, layout_of(model))
