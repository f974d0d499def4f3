"""Every way of asking for client gradients agrees with plain autograd, client by client, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.updates import client_gradients
from bezoar.updates.ghost import GhostUpdates

RAGGED = torch.tensor([5, 2, 5, 9, 2, 2, 1, 9, 1, 7, 7, 7, 7])


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1), targets, reduction="none")


def oracle(model: nn.Module, inputs: Tensor, targets: Tensor, clients: Tensor) -> Tensor:
    model = copy.deepcopy(model).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for client in clients.unique():
        mine = clients == client
        chosen = inputs[mine].double() if inputs.is_floating_point() else inputs[mine]
        loss = losses(model(chosen), targets[mine]).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def close(mine: Tensor, theirs: Tensor, tolerance: float) -> None:
    error = (mine.double() - theirs).norm() / theirs.norm().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.2e}"


def check(model: nn.Module, inputs: Tensor, clients: Tensor, method: str = "ghost") -> GhostUpdates:
    """All answers against the oracle."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    targets = torch.randint(3, (len(inputs),), generator=generator)
    updates = client_gradients(model, losses, inputs, targets, clients, method)
    rows = oracle(model, inputs, targets, clients)
    n, d = rows.shape
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert updates.shape == (n, d)
    assert torch.equal(updates.clients, clients.unique())
    assert [s.stop - s.start for s in updates.layout] == [p.numel() for p in model.parameters() if p.requires_grad]
    close(updates.squared_norms(), rows.square().sum(1), tolerance)
    close(updates.gram(), rows @ rows.T, tolerance)
    vector = torch.randn(d, generator=generator, dtype=torch.float64)
    # A dot product can vanish by chance; its error is relative to the vectors' sizes.
    assert ((updates.dot(vector) - rows @ vector).abs() <= tolerance * rows.norm(dim=1) * vector.norm()).all()
    for k in (None, 1, 2, 4):
        weights = torch.randn(*[] if k is None else [k], n, generator=generator, dtype=torch.float64)
        mixed = updates.combine(weights)
        assert mixed.dtype == dtype
        close(mixed, weights @ rows, tolerance)
    for max_bytes in (1, 8 * n * 7, 2**26):
        stop = 0
        for block in updates.blocks(max_bytes):
            assert block.start == stop
            stop = block.stop
            assert block.values.nbytes <= max(max_bytes, n * dtype.itemsize)
            close(block.values, rows[:, block.start : stop], tolerance * 100)
        assert stop == d
    close(updates.materialise(), rows, tolerance)
    index = torch.randint(d, (5,), generator=generator)
    close(updates.columns(index), rows[:, index], tolerance * 10)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    close(updates.squared_distances(), distances, tolerance * 10)
    return updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_network(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 30, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(270, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    ).to(dtype)
    updates = check(model, torch.randn(13, 2, 6, 6, dtype=dtype), RAGGED)
    assert isinstance(updates, GhostUpdates)
