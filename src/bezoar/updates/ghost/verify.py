"""Check once per model that layer inputs and output gradients explain its client gradients.

A model can use a layer's weight in ways of its own (``F.linear(x, self.layer.weight)``), or mix samples in its
forward pass. Neither shows in its list of modules, but both show in a weighted sum of client gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bezoar.updates.base import Layout
from bezoar.updates.ghost.layer import GhostImpossibleError
from bezoar.updates.ghost.run import Loss, ghost_gradients, sample_losses

#: Samples looked at, two a client so that cross terms count.
_SAMPLES = 8

#: Largest relative error that rounding explains; the last is for half precision and autocast.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1

_Signature = tuple[object, ...]
_verdicts: WeakKeyDictionary[nn.Module, dict[_Signature, str | None]] = WeakKeyDictionary()


def verified(model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, layout: Layout) -> str | None:
    """Why the model's client gradients can not be had this way, or None; remembered for each model object.

    Looks at the first samples of the batch only, and leaves buffers and random streams as they were.
    """
    verdicts = _verdicts.setdefault(model, {})
    signature = _signature(model)
    if signature in verdicts:
        return verdicts[signature]
    try:
        same = _compare(model, loss_fn, inputs[:_SAMPLES], targets[:_SAMPLES], layout)
    except GhostImpossibleError as error:
        return str(error)
    if same is None:
        # Nothing to compare (zero or not finite): try again with the next batch.
        return None
    verdicts[signature] = None if same else "the model mixes samples, or uses a layer's parameters outside the layer"
    return verdicts[signature]


def _signature(model: nn.Module) -> _Signature:
    modes = tuple((type(module), module.training) for module in model.modules())
    return modes, tuple(name for name, p in model.named_parameters() if p.requires_grad)


def _compare(model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, layout: Layout) -> bool | None:
    clients = torch.arange(len(inputs)) // 2
    generator = torch.Generator().manual_seed(len(inputs))
    weights = torch.rand(int(clients[-1]) + 1, generator=generator, dtype=torch.float64) + 0.5
    with _untouched(model):
        ghost = ghost_gradients(model, loss_fn, inputs, targets, clients, layout).combine(weights)
    with _untouched(model), torch.enable_grad():
        losses = sample_losses(model, loss_fn, inputs.detach(), targets)
        share = (weights / clients.bincount())[clients].to(losses.device, losses.dtype)
        trainable = [p for p in model.parameters() if p.requires_grad]
        total = (losses * share).sum()
        if total.requires_grad:
            found = torch.autograd.grad(total, trainable, allow_unused=True, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(p) for p in trainable)
    rough = torch.is_autocast_enabled(ghost.device.type)
    tolerance = _HALF_TOLERANCE if rough else _TOLERANCE.get(ghost.dtype, _HALF_TOLERANCE)
    return _agree(ghost.double(), torch.cat([g.reshape(-1) for g in found]).double(), layout, tolerance)


def _agree(ghost: Tensor, plain: Tensor, layout: Layout, tolerance: float) -> bool | None:
    """Whether two gradients are equal up to rounding, tensor by tensor; None if they can not tell."""
    if not torch.isfinite(plain).all() or not (plain.any() or ghost.any()):
        return None
    whole = torch.linalg.vector_norm(plain)
    for segment in layout:
        mine, theirs = ghost[segment.start : segment.stop], plain[segment.start : segment.stop]
        allowed = tolerance * (torch.linalg.vector_norm(theirs) + 1e-3 * whole)
        if not torch.linalg.vector_norm(mine - theirs) <= allowed:
            return False
    return True


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Leave the model's buffers and the random streams as they were."""
    device = next(model.parameters()).device
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
