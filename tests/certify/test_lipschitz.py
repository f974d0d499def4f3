"""Proved constants of softmax regression against numerical suprema, and what the empirical estimate finds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bezoar.certify.lipschitz import (
    SOFTMAX,
    lower_estimate,
    products,
    softmax_constant,
    softmax_growth,
    softmax_smoothness,
    with_bias,
)
from bezoar.errors import ConfigError


def gradient(weights: Tensor, x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Of the mean cross-entropy, float64 [classes * m]."""
    p = torch.softmax(x @ weights.view(classes, -1).T, 1) - torch.nn.functional.one_hot(y, classes)
    return (p.T @ x / len(x)).reshape(-1)


def hessian(weights: Tensor, x: Tensor, classes: int) -> Tensor:
    p = torch.softmax(x @ weights.view(classes, -1).T, 1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    full = torch.einsum("sab,si,sj->aibj", inner, x, x) / len(x)
    return full.reshape(len(weights), len(weights))


def ascend(value: Callable[..., Tensor], *start: Tensor, steps: int = 150) -> tuple[float, list[Tensor]]:
    """The largest ``value`` that gradient ascent meets, and where; steps shrink, so that it settles."""
    here = [tensor.clone().requires_grad_() for tensor in start]
    best, where = -math.inf, [tensor.clone() for tensor in start]
    for step in range(steps):
        found = value(*here)
        if float(found.detach()) > best:
            best, where = float(found.detach()), [tensor.detach().clone() for tensor in here]
        slopes = torch.autograd.grad(found, here)
        with torch.no_grad():
            for tensor, slope in zip(here, slopes, strict=True):
                size = slope.abs().max()
                tensor += 0.5 * 0.97**step * slope / (size if size > 0 else 1)
    return best, where


def climb(x: Tensor, classes: int, draws: torch.Generator, value: Callable[[Tensor], Tensor]) -> float:
    """The largest ``value`` of the Hessian over all models that a few ascents find."""
    starts = [torch.randn(classes * x.shape[1], generator=draws, dtype=torch.float64) for _ in range(4)]
    return max(ascend(lambda w: value(hessian(w, x, classes)), start)[0] for start in starts)


def test_the_quarter_is_approached_and_never_exceeded() -> None:
    """An optimiser over features in [0, 1] and models that looks for the largest ratio."""
    draws = torch.Generator().manual_seed(0)
    best, y = 0.0, torch.tensor([0, 1])
    for _ in range(3):
        start = torch.randn(12, generator=draws, dtype=torch.float64), torch.randn(2, 4, generator=draws).double()
        top, (weights, raw) = ascend(lambda w, r: hessian(w, torch.sigmoid(r), 3).abs().max(), *start)
        assert top <= SOFTMAX
        features = torch.sigmoid(raw)
        best = max(best, lower_estimate(lambda w, f=features: gradient(w, f, y, 3), weights, draws, starts=12))  # type: ignore[misc]
        assert best <= SOFTMAX
    assert best > 0.95 * SOFTMAX


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=40)
def test_ratios_stay_below_the_constants_of_the_data(seed: int, classes: int, m: int, n: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(n, m, generator=draws, dtype=torch.float64) - 2
    y = torch.randint(classes, (n,), generator=draws)
    scale = 10 ** (2 * float(torch.rand(1, generator=draws)) - 1)
    first, second = scale * torch.randn(2, classes * m, generator=draws, dtype=torch.float64)
    change = (gradient(first, x, y, classes) - gradient(second, x, y, classes)).abs()
    apart = first - second
    assert float(change.max()) <= softmax_constant(x) * float(apart.abs().sum()) * (1 + 1e-9)
    mean = products(x)
    for width in range(1, classes * m + 1):
        chosen = float(change.topk(width).values.sum())
        growth = softmax_growth(mean, width)
        assert chosen <= growth * float(apart.abs().sum()) * (1 + 1e-9)
        assert growth <= width * softmax_constant(x) * (1 + 1e-12)
    assert float(change.norm()) <= softmax_smoothness(x) * float(apart.norm()) * (1 + 1e-9)
    # From l1 to l2, as the certificate needs it of clients that clipping may reach.
    mixed = math.sqrt(2) / 4 * float((x.norm(dim=1) * x.abs().amax(1)).mean())
    assert float(change.norm()) <= mixed * float(apart.abs().sum()) * (1 + 1e-9)
    lengths = gradient(first, x, y, classes).norm()
    assert float(lengths) <= math.sqrt(2) * float(x.norm(dim=1).mean()) * (1 + 1e-9)


def test_constants_of_the_data_are_nearly_attained() -> None:
    """Not only bounds: where all samples are alike, a model attains each."""
    draws = torch.Generator().manual_seed(1)
    x = torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.float64)
    assert climb(x, 3, draws, lambda h: h.abs().max()) == pytest.approx(softmax_constant(x), rel=0.01)
    assert climb(x, 2, draws, lambda h: h.abs().sum(0).max()) == pytest.approx(softmax_growth(products(x), 6), rel=0.01)
    assert climb(x, 2, draws, lambda h: torch.linalg.eigvalsh(h)[-1]) == pytest.approx(softmax_smoothness(x), rel=0.01)


def test_the_bias_gives_a_quarter() -> None:
    x = with_bias(torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert x.shape == (5, 5)
    assert softmax_constant(x) == SOFTMAX


def test_a_quarter_does_not_hold_for_clipped_updates() -> None:
    """Clipping turns with the whole gradient: a clipped entry can change by more than a quarter of the l1 distance."""
    draws = torch.Generator().manual_seed(0)
    y = torch.tensor([0, 0, 2, 2])

    def largest(weights: Tensor, raw: Tensor) -> Tensor:
        x = torch.sigmoid(raw)
        g, entries = gradient(weights, x, y, 3), hessian(weights, x, 3)
        unit = g / g.norm()
        return (entries - torch.outer(unit, unit @ entries)).abs().max()

    starts = [
        (torch.randn(24, generator=draws).double(), 2 * torch.randn(4, 8, generator=draws).double()) for _ in "abc"
    ]
    best, (weights, raw) = max((ascend(largest, *start) for start in starts), key=lambda found: found[0])
    x = torch.sigmoid(raw)
    radius = 0.999 * float(gradient(weights, x, y, 3).norm())

    def clipped(model: Tensor) -> Tensor:
        g = gradient(model, x, y, 3)
        return g * min(1.0, radius / float(g.norm()))

    # Not only the derivative: two models, and what a server that clips gets from them.
    ratio = lower_estimate(clipped, weights, draws, starts=24, distance=1e-4)
    assert 1.1 * SOFTMAX < ratio <= best * 1.01


def test_estimate_finds_the_largest_entry_of_a_quadratic() -> None:
    matrix = torch.full((30, 30), 0.1, dtype=torch.float64)
    matrix[7, 19] = matrix[19, 7] = -2.5
    matrix += torch.diag(torch.linspace(0, 1, 30, dtype=torch.float64))
    draws = torch.Generator().manual_seed(0)
    found = lower_estimate(lambda w: matrix @ w, torch.zeros(30, dtype=torch.float64), draws, starts=30)
    assert found == pytest.approx(2.5, rel=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_estimate_never_exceeds_the_constant_where_it_is_known(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 4, generator=draws, dtype=torch.float64)
    y = torch.randint(3, (6,), generator=draws)
    weights = torch.randn(12, generator=draws, dtype=torch.float64)
    found = lower_estimate(lambda w: gradient(w, x, y, 3), weights, draws)
    assert 0 < found <= softmax_constant(x) * (1 + 1e-9)


def test_bad_input() -> None:
    draws = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match="finite"):
        products(torch.tensor([[math.nan]]))
    with pytest.raises(ConfigError, match=r"\[N, m\]"):
        products(torch.ones(3))
    with pytest.raises(ConfigError, match="coordinates"):
        softmax_growth(torch.eye(2), 0)
    with pytest.raises(ConfigError, match="positive distance"):
        lower_estimate(lambda w: w, torch.ones(2), draws, distance=0.0)
    with pytest.raises(ConfigError, match="finite"):
        lower_estimate(lambda w: w * math.nan, torch.ones(2), draws)
    with pytest.raises(ConfigError, match="finite"):
        lower_estimate(lambda w: w[:1], torch.ones(2), draws)
    # So large a weight that nothing is added to it: nothing is found, and nothing divided by.
    assert lower_estimate(lambda w: w, torch.full((2,), 1e30), draws) == 0
