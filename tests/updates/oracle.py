"""Brute force in float64, against which every answer of an ``Updates`` is checked."""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.updates import Updates


def check_against(updates: Updates, rows: Tensor, rtol: float) -> None:
    """Compare every answer of ``updates`` with the plain matrix ``rows`` [n, d]."""
    exact = rows.double()
    n, d = exact.shape
    draws = torch.Generator().manual_seed(0)
    assert updates.shape == (n, d)
    scale = exact.norm(dim=1)
    close(updates.squared_norms(), exact.square().sum(1), rtol)
    gram = exact @ exact.T
    assert ((updates.gram() - gram).abs() <= rtol * scale[:, None] * scale[None, :] + 1e-30).all()
    weights = torch.rand(3, n, generator=draws, dtype=torch.float64)
    close(updates.combine(weights), weights @ exact, rtol)
    close(updates.combine(weights[0]), weights[0] @ exact, rtol)
    vector = torch.randn(d, generator=draws, dtype=torch.float64)
    bound = rtol * scale * vector.norm() * 10
    assert ((updates.dot(vector.to(updates.dtype)) - exact @ vector.to(updates.dtype).double()).abs() <= bound).all()
    close(updates.materialise(), exact, rtol)
    for size in (1, 64, 4096):
        assembled = torch.cat([block.values for block in updates.blocks(size)], dim=1)
        stops = [block.stop for block in updates.blocks(size)]
        starts = [block.start for block in updates.blocks(size)]
        assert starts == [0, *stops[:-1]]
        assert stops[-1] == d
        close(assembled, exact, rtol)
    index = torch.randint(d, (7,), generator=draws)
    close(updates.columns(index), exact[:, index], rtol)
    keep = torch.randperm(n, generator=draws)[: max(1, n - 1)]
    close(updates.select(keep).materialise(), exact[keep], rtol)
    assert torch.equal(updates.select(keep).clients, updates.clients[keep])


def close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative error of the whole answer at most ``rtol``."""
    assert found.shape == expected.shape
    error = (found.double() - expected).norm()
    assert error <= rtol * expected.norm() + 1e-30, f"relative error {float(error / expected.norm()):.1e}"
