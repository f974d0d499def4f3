from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import ConfigError
from bezoar.personalized import L2, REGULARIZERS, Regularizer, SmoothL2, SquaredL2

ALL = [SquaredL2(0.7), L2(0.7), SmoothL2(0.7)]


def by_hand(tie: Regularizer, rho: list[float], theta: list[float]) -> float:
    squares = sum((a - b) ** 2 for a, b in zip(rho, theta, strict=True))
    return (
        tie.strength
        * {"SquaredL2": squares, "L2": math.sqrt(squares), "SmoothL2": math.sqrt(1 + squares)}[type(tie).__name__]
    )


@pytest.mark.parametrize("tie", ALL, ids=lambda tie: type(tie).__name__)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), far=st.sampled_from([1e-3, 1.0, 1e3]))
def test_values_and_gradients(tie: Regularizer, seed: int, far: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    rho = torch.randn(4, generator=draws, dtype=torch.float64)
    theta = rho + far * torch.randn(4, generator=draws, dtype=torch.float64)
    assert float(tie.value(rho, theta)) == pytest.approx(by_hand(tie, rho.tolist(), theta.tolist()))
    leaf = rho.clone().requires_grad_()
    (slope,) = torch.autograd.grad(tie.value(leaf, theta), leaf)
    torch.testing.assert_close(tie.gradient(rho, theta), slope)
    other = theta.clone().requires_grad_()
    (back,) = torch.autograd.grad(tie.value(rho, other), other)
    torch.testing.assert_close(-tie.gradient(rho, theta), back)
    assert float(tie.gradient(rho, theta).norm()) <= tie.reach * (1 + 1e-9)
    many = torch.stack([theta, rho + 1])
    torch.testing.assert_close(tie.gradient(rho, many)[0], slope)
    torch.testing.assert_close(tie.value(rho, many)[0], tie.value(rho, theta))


@pytest.mark.parametrize("tie", ALL, ids=lambda tie: type(tie).__name__)
def test_a_model_for_every_reachable_gradient(tie: Regularizer) -> None:
    draws = torch.Generator().manual_seed(0)
    rho = torch.randn(5, generator=draws, dtype=torch.float64)
    for size in (1e-6, 0.3, 0.699, 50.0):
        wanted = torch.randn(5, generator=draws, dtype=torch.float64)
        wanted = tie.project(wanted * size / wanted.norm())
        theta = tie.model_for(rho, wanted, distance=3.0)
        if isinstance(tie, L2) and float(wanted.norm()) < 0.7 * (1 - 1e-6):
            assert torch.equal(theta, rho)
            continue
        torch.testing.assert_close(tie.gradient(rho, theta), wanted, rtol=1e-6, atol=1e-12)
    if not math.isinf(tie.reach):
        with pytest.raises(ConfigError, match="no model gives a gradient of length 9"):
            tie.model_for(rho, 9 * rho / rho.norm())


def test_projection_is_the_nearest_point_of_the_ball() -> None:
    draws = torch.Generator().manual_seed(0)
    g = 5 * torch.randn(3, generator=draws, dtype=torch.float64)
    found = L2(1.0).project(g)
    others = torch.randn(2000, 3, generator=draws, dtype=torch.float64)
    others = others / others.norm(dim=1, keepdim=True) * torch.rand(2000, 1, generator=draws, dtype=torch.float64)
    assert float((others - g).norm(dim=1).min()) >= float((found - g).norm())
    inside = g / g.norm() / 2
    assert torch.equal(L2(1.0).project(inside), inside)
    assert torch.equal(SquaredL2(1.0).project(1e30 * g), 1e30 * g)
    assert float(SmoothL2(1.0).project(g).norm()) < 1


def test_equal_models_and_huge_ones() -> None:
    rho = torch.ones(3)
    for tie in ALL:
        assert tie.gradient(rho, rho).tolist() == [0, 0, 0]
        assert bool(torch.isfinite(tie.gradient(rho, torch.full((3,), 1e15))).all())


def test_bad_strengths_and_names() -> None:
    for strength in (0.0, -1.0, math.inf, math.nan):
        for kind in (SquaredL2, L2, SmoothL2):
            with pytest.raises(ConfigError, match="strength must be finite and positive"):
                kind(strength)
    assert REGULARIZERS.build({"kind": "smooth-l2", "strength": 2.0}) == SmoothL2(2.0)
