"""One gradient step of many clients."""

from __future__ import annotations

import warnings
from typing import Literal, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bezoar.errors import ConfigError, UnsupportedError, nearest
from bezoar.updates.base import Layout, Segment, Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.ghost.layer import GhostImpossibleError
from bezoar.updates.ghost.run import Loss, ghost_gradients, sample_losses
from bezoar.updates.ghost.verify import verified

Method = Literal["auto", "ghost", "loop"]

_warned: WeakSet[nn.Module] = WeakSet()


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
    """Row i is the gradient of client i's mean loss; rows are in the order of the sorted client ids.

    ``inputs`` [N, ...], ``targets`` [N, ...] and ``clients`` [N] (int64) hold one entry a sample, in any order, any
    number a client. ``loss_fn(outputs, targets)`` gives one loss per sample [N]. Columns are the trainable
    parameters, flat, in ``model.parameters()`` order.

    ``method``: ``"ghost"`` takes one forward and one backward pass over all samples and never stores the n x d
    matrix (:class:`~bezoar.updates.ghost.GhostUpdates`; Linear, Conv1d, Conv2d, Embedding, LayerNorm, GroupNorm
    layers may be trained); ``"loop"`` goes client by client and stores it; ``"auto"`` takes ghost where the model
    allows, and warns once where it finds out too late that it does not. The ghost path is compared with plain
    autograd on a few samples the first time it sees a model.

    BatchNorm in training mode is an UnsupportedError: it mixes the samples of different clients. Rows that are not
    finite are no error here.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> def squared_error(outputs, targets):
    ...     return (outputs[:, 0] - targets) ** 2
    >>> updates = client_gradients(model, squared_error, torch.ones(3, 2), torch.zeros(3), torch.tensor([4, 4, 9]))
    >>> updates.shape, updates.clients
    ((2, 2), tensor([4, 9]))
    """
    _check(model, inputs, targets, clients, method)
    layout = layout_of(model)
    if method == "loop":
        return _loop(model, loss_fn, inputs, targets, clients, layout)
    try:
        reason = verified(model, loss_fn, inputs, targets, layout)
        if reason is None:
            return ghost_gradients(model, loss_fn, inputs, targets, clients, layout)
    except GhostImpossibleError as error:
        reason = str(error)
    if method == "ghost":
        raise UnsupportedError(f"client gradients by method='ghost' are impossible: {reason}; use method='loop'")
    if model not in _warned:
        _warned.add(model)
        warnings.warn(f"client gradients are taken one client at a time (slower): {reason}", stacklevel=2)
    return _loop(model, loss_fn, inputs, targets, clients, layout)


def _loop(
    model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, clients: Tensor, layout: Layout
) -> DenseUpdates:
    """Plain autograd, client by client: the reference, and the way out for models of other layers."""
    clients = clients.cpu()
    ids, counts = torch.unique(clients, return_counts=True)
    samples = torch.split(torch.argsort(clients, stable=True).to(inputs.device), counts.tolist())
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = parameters[0].new_zeros(len(ids), layout[-1].stop)
    with torch.enable_grad():
        for row, mine in zip(rows, samples, strict=True):
            loss = sample_losses(model, loss_fn, inputs[mine].detach(), targets[mine.to(targets.device)]).mean()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for segment, gradient in zip(layout, gradients, strict=True):
                    if gradient is not None:
                        row[segment.start : segment.stop] = gradient.reshape(-1)
    return DenseUpdates(rows, ids, layout)


def _check(model: nn.Module, inputs: Tensor, targets: Tensor, clients: Tensor, method: str) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"unknown method {method!r}; {nearest(method, get_args(Method))}")
    if not len(inputs) == len(targets) == len(clients):
        raise ConfigError(
            f"inputs, targets and clients need one entry a sample, got {len(inputs)}, {len(targets)}, {len(clients)}"
        )
    if len(inputs) == 0:
        raise ConfigError("client gradients need at least one sample, got none")
    if clients.ndim != 1 or clients.is_floating_point():
        raise ConfigError(f"clients must be integers [{len(inputs)}], got {clients.dtype} {list(clients.shape)}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("the model has no trainable parameters")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedError(
                f"{name or 'the model'!r} is a {type(module).__name__} that takes statistics of the batch, which mixes "
                "clients: use GroupNorm, or put it into evaluation mode"
            )
