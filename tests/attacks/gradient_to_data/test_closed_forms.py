from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import lambertw
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bezoar.attacks.gradient_to_data import (
    GRADIENT_TO_DATA,
    Equiprobable,
    GradientToData,
    LinearPoint,
    LogisticCopies,
    Match,
    Points,
    SoftmaxExact,
    compare,
    equiprobable_points,
    match,
    points_gradient,
    sample_losses,
)
from bezoar.attacks.gradient_to_data.logistic import W, sample_length
from bezoar.attacks.gradient_to_data.softmax import even_factors
from bezoar.errors import ConfigError
from bezoar.models import make_model


def linear(p: int, c: int, bias: bool, seed: int, scale: float = 1.0) -> nn.Linear:
    model = nn.Linear(p, c, bias=bias, dtype=torch.float64)
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(scale * draws.normal(size=tuple(parameter.shape))))
    return model


def parts(model: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    w = model.weight.detach().numpy()
    return w, np.zeros(len(w)) if model.bias is None else model.bias.detach().numpy()


def oracle(model: nn.Linear, points: Points, ridge: float = 0.0, half: bool = True) -> np.ndarray:
    """The gradient sample by sample, from the textbook."""
    w, b = parts(model)
    gw, gb = 2 * ridge * w, 2 * ridge * b
    for x, y in zip(points.inputs.double().numpy(), points.targets.numpy(), strict=True):
        z = w @ x + b
        if points.targets.is_floating_point() and points.targets.ndim == 1:
            error = (z - y) * (1 if half else 2)
        elif len(w) == 1:
            error = 1 / (1 + np.exp(-z)) - y
        else:
            e = np.exp(z - z.max())
            error = e / e.sum() - (y if points.targets.ndim == 2 else np.eye(len(w))[y])
        gw, gb = gw + np.outer(error, x), gb + error
    return np.concatenate([gw.reshape(-1), *([] if model.bias is None else [gb])])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [1.0, -3.0, 1e-3])
@pytest.mark.parametrize("loss", ["half-square", "square"])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_linear_regression_takes_any_gradient(bias: bool, residual: float, loss: str, ridge: float) -> None:
    model = linear(6, 1, bias, seed=1)
    target = np.random.default_rng(2).normal(size=6 + bias)
    points = LinearPoint(residual, loss, ridge)(model, torch.from_numpy(target))  # type: ignore[arg-type]
    assert len(points) == 1 + bias
    np.testing.assert_allclose(oracle(model, points, ridge, loss == "half-square"), target, atol=1e-10)
    if not bias and not ridge:
        np.testing.assert_allclose(points.inputs[0].numpy(), target / residual)


def test_a_linear_model_with_bias_takes_gradients_without_a_bias_part() -> None:
    model = linear(3, 1, True, seed=1)
    for target in ([1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, -2.0], [0.0] * 4):
        points = LinearPoint()(model, torch.tensor(target, dtype=torch.float64))
        np.testing.assert_allclose(oracle(model, points), target, atol=1e-12)


def test_lambert() -> None:
    assert pytest.approx(float(lambertw(math.exp(-1)).real), abs=1e-16) == W
    for s in (-3.0, -0.2):
        alphas = np.linspace(1e-3, 200, 400_000) / abs(s)
        best = (alphas / (1 + np.exp(-alphas * s))).max()
        assert best == pytest.approx(W / abs(s), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(r=st.floats(1e-8, 1e6), s=st.floats(-40, 40))
def test_sample_length_solves_its_equation(r: float, s: float) -> None:
    if s < 0:
        r = min(r, W / abs(s))
    alpha = sample_length(r, s)
    found = alpha / (1 + math.exp(-alpha * s)) if -alpha * s < 700 else 0.0
    # At the top of the curve the left side is flat: alpha has half the digits, the equation all of them.
    assert found == pytest.approx(r, rel=1e-9)
    if s >= 0:
        assert r * (1 - 1e-12) <= alpha <= 2 * r * (1 + 1e-12)
    else:
        assert alpha <= (1 + W) / abs(s) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_logistic_regression_takes_any_gradient(seed: int, scale: float) -> None:
    model = linear(5, 1, False, seed, scale)
    target = torch.from_numpy(np.random.default_rng(seed + 50).normal(size=5) * scale)
    points = LogisticCopies()(model, target)
    np.testing.assert_allclose(oracle(model, points), target.numpy(), atol=1e-10)
    s = float(target @ model.weight.detach()[0]) / float(target.norm())
    assert len(points) == (1 if s >= 0 else max(1, math.ceil(float(target.norm()) * -s / W)))
    assert match(model, points, target).cosine == pytest.approx(1)


def test_too_many_copies_are_refused() -> None:
    model = linear(2, 1, False, 0)
    against = -model.weight.detach()[0] * 1e6
    with pytest.raises(ConfigError, match="copies were needed; most=100"):
        LogisticCopies(most=100)(model, against)
    zero = LogisticCopies()(model, torch.zeros(2, dtype=torch.float64))
    assert oracle(model, zero).tolist() == [0, 0]


def softmax_target(c: int, p: int, seed: int, bias: bool = True, rank: int | None = None) -> np.ndarray:
    draws = np.random.default_rng(seed)
    g = draws.normal(size=(c, rank or c)) @ draws.normal(size=(rank or c, p + bias))
    return g - g.mean(0)


def flat(g: np.ndarray, bias: bool) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([g[:, :-1].reshape(-1), g[:, -1]]) if bias else g.reshape(-1))


@pytest.mark.parametrize(("c", "p", "bias"), [(4, 5, True), (3, 2, True), (10, 20, True), (2, 6, True), (4, 5, False)])
@pytest.mark.parametrize("radius", [None, 2.0])
def test_softmax_regression_takes_any_gradient(c: int, p: int, bias: bool, radius: float | None) -> None:
    for seed in range(3):
        model = linear(p, c, bias, seed, 0.3)
        target = flat(softmax_target(c, p, seed + 10, bias), bias)
        points = SoftmaxExact(radius)(model, target)
        assert points.targets.ndim == 2
        assert bool((points.targets >= 0).all())
        torch.testing.assert_close(points.targets.sum(1), torch.ones(len(points), dtype=torch.float64))
        np.testing.assert_allclose(oracle(model, points), target.numpy(), atol=1e-9)
        if radius is not None:
            torch.testing.assert_close(points.inputs.norm(dim=1), torch.full((len(points),), radius).double())


@pytest.mark.parametrize("bias", [False, True])
def test_a_model_that_is_sure_of_itself_takes_more_samples_but_not_all_there_are(bias: bool) -> None:
    counts = []
    for scale in (0.3, 3.0, 30.0):
        model = linear(20, 5, bias, 1, scale)
        target = flat(softmax_target(5, 20, 2, bias), bias)
        points = SoftmaxExact()(model, target)
        np.testing.assert_allclose(oracle(model, points), target.numpy(), atol=1e-8)
        counts.append(len(points))
    assert counts == sorted(counts)
    assert counts[-1] < 10_000
    with pytest.raises(ConfigError, match="the model is too sure"):
        SoftmaxExact(radius=20.0)(model, target)


WAYS = [
    (LinearPoint(), 1, False),
    (LinearPoint(), 1, True),
    (LogisticCopies(), 1, False),
    (SoftmaxExact(), 4, False),
    (SoftmaxExact(), 4, True),
    (SoftmaxExact(2.0), 4, True),
    (Equiprobable(points=20), 4, True),
    (Equiprobable(points=20, labels="sampled"), 4, False),
]


def posed(c: int, bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor]:
    """A model of ``dtype``, and a gradient in float64."""
    model = linear(6, c, bias, 3, 0.3).to(dtype)
    g = softmax_target(c, 6, 8, bias) if c > 1 else np.random.default_rng(8).normal(size=(1, 6 + bias))
    return model, flat(g, bias)


@pytest.mark.parametrize(("way", "c", "bias"), WAYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_live_where_the_model_does(way: GradientToData, c: int, bias: bool, dtype: torch.dtype) -> None:
    model, target = posed(c, bias, dtype)
    before = way(model, target)
    # Whatever is made without a word about its device now ends up on another one than the model.
    torch.set_default_device("meta")
    try:
        points = way(model, target)
    finally:
        torch.set_default_device(None)
    for made, expected in ((points.inputs, before.inputs), (points.targets, before.targets)):
        assert made.device == model.weight.device
        assert made.dtype in (model.weight.dtype, torch.int64)
        assert torch.equal(made, expected)
    # The model can take them.
    assert points_gradient(model, points).shape == target.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("way", "c", "bias"), WAYS, ids=str)
def test_every_device_gets_the_same_samples(way: GradientToData, c: int, bias: bool) -> None:
    model, target = posed(c, bias, torch.float32)
    points = way(model, target)
    there = way(model.cuda(), target.cuda())
    assert there.inputs.is_cuda
    assert there.targets.is_cuda
    torch.testing.assert_close(there.inputs.cpu(), points.inputs)
    torch.testing.assert_close(there.targets.cpu(), points.targets)
    if isinstance(way, SoftmaxExact | LogisticCopies):
        assert torch.equal(there.inputs.cpu(), points.inputs)
        assert torch.equal(there.targets.cpu(), points.targets)


def test_copies_are_made_in_the_dtype_of_the_model() -> None:
    model = linear(200, 3, True, 1, 0.5).float()
    g = flat(softmax_target(3, 200, 2) * 30, True).float()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        points = SoftmaxExact()(model, g)
    assert len(points) > 1000
    size = points.inputs.nbytes + points.targets.nbytes
    # In float64 the inputs alone take twice their final size for one operation.
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert points.inputs.nbytes <= largest < 1.5 * size


@pytest.mark.parametrize("which", ["no bias part", "one direction without a bias part", "bias only", "zero"])
def test_softmax_directions_without_a_bias_part(which: str) -> None:
    c, p = 4, 5
    model = linear(p, c, True, 3, 0.3)
    g = softmax_target(c, p, 4)
    if which == "no bias part":
        g[:, -1] = 0
    elif which == "one direction without a bias part":
        u = np.array([[1.0, -1, 0, 0], [1, 1, -2, 0]])
        g = np.outer(u[0], np.eye(6)[5] + np.eye(6)[0]) + np.outer(u[1], np.eye(6)[1])
        assert np.isclose(np.linalg.svd(g)[2][0, 5] * np.linalg.svd(g)[2][1, 5], 0)
    elif which == "bias only":
        g[:, :-1] = 0
    else:
        g[:] = 0
    points = SoftmaxExact()(model, flat(g, True))
    np.testing.assert_allclose(oracle(model, points), flat(g, True).numpy(), atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), c=st.integers(2, 6), p=st.integers(1, 7), rank=st.integers(1, 4))
def test_factors_have_even_last_entries_and_multiply_back(seed: int, c: int, p: int, rank: int) -> None:
    g = torch.from_numpy(softmax_target(c, p, seed, True, rank))
    a, v = even_factors(g)
    torch.testing.assert_close(a @ v.T, g, atol=1e-10, rtol=0)
    torch.testing.assert_close(v.T @ v, torch.eye(v.shape[1]).double())
    torch.testing.assert_close(v[-1], v[-1, :1].expand_as(v[-1]), atol=1e-10, rtol=0)


def test_a_gradient_that_no_data_have_is_refused() -> None:
    model = linear(3, 3, True, 0)
    with pytest.raises(ConfigError, match="no data have this gradient"):
        SoftmaxExact()(model, torch.arange(12.0).double())
    with pytest.raises(ConfigError, match="samples were needed"):
        SoftmaxExact(most=3)(model, flat(softmax_target(3, 3, 0) * 100, True))


@pytest.mark.parametrize("bias", [False, True])
def test_equiprobable_points_lie_where_all_outputs_are_equal(bias: bool) -> None:
    model = linear(12, 4, bias, 7)
    w, b = parts(model)
    points = equiprobable_points(
        model.weight.detach(), None if not bias else model.bias.detach(), 50, torch.Generator().manual_seed(3), noise=0
    )
    x = points.inputs.numpy()
    np.testing.assert_allclose(points.targets.numpy(), 0.25, atol=1e-10)
    # Gram-Schmidt and one plane after the other, as the paper words it, from the same start.
    start = (torch.rand(50, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 100 - 50).numpy()
    zs: list[np.ndarray] = []
    cs: list[float] = []
    for a in range(1, 4):
        y, c = w[a] - w[0], b[0] - b[a]
        z, level = y.copy(), c
        for earlier, offset in zip(zs, cs, strict=True):
            share = (y @ earlier) / (earlier @ earlier)
            z, level = z - share * earlier, level - share * offset
        zs.append(z)
        cs.append(float(level))
    for z, level in zip(zs, cs, strict=True):
        start = start - np.outer((start @ z - level) / (z @ z), z)
    np.testing.assert_allclose(x, start, atol=1e-9)


def test_equiprobable_noise_and_labels() -> None:
    model = linear(30, 4, True, 7)
    w, b = model.weight.detach(), model.bias.detach()
    exact = equiprobable_points(w, b, 4000, torch.Generator().manual_seed(1), noise=0)
    noisy = equiprobable_points(w, b, 4000, torch.Generator().manual_seed(1), noise=0.1)
    moved = noisy.inputs - exact.inputs
    assert torch.linalg.matrix_rank(moved, tol=1e-8) == 3
    assert moved.square().sum(1).mean() == pytest.approx(3 * 0.01, rel=0.1)
    torch.testing.assert_close(noisy.targets, torch.softmax(noisy.inputs @ w.T + b, dim=1))
    drawn = equiprobable_points(w, b, 4000, torch.Generator().manual_seed(1), noise=0.1, labels="sampled")
    counts = torch.bincount(drawn.targets, minlength=4) / 4000
    torch.testing.assert_close(counts, noisy.targets.mean(0).float(), atol=0.03, rtol=0)
    with pytest.raises(ConfigError, match="no input has equal outputs"):
        equiprobable_points(torch.ones(3, 5), torch.arange(3.0), 2, torch.Generator())


def test_equiprobable_is_seeded_and_points_where_it_should() -> None:
    model = linear(20, 4, True, 7, 0.2)
    target = flat(softmax_target(4, 20, 8), True)
    points = Equiprobable(points=3000, noise=0.3, seed=5)(model, target)
    again = Equiprobable(points=3000, noise=0.3, seed=5)(model, target)
    assert torch.equal(points.inputs, again.inputs)
    assert not torch.equal(points.inputs, Equiprobable(points=3000, seed=6)(model, target).inputs)
    # At theta^s the labels are right, so the gradient there is zero; at the model it points along the target.
    moved = nn.Linear(20, 4, dtype=torch.float64)
    with torch.no_grad():
        moved.weight.copy_(model.weight - target[:80].reshape(4, 20) / 2)
        moved.bias.copy_(model.bias - target[80:] / 2)
    assert np.abs(oracle(moved, points)).max() < 1e-9
    assert float(points_gradient(model, points) @ target) > 0


def test_match_and_losses() -> None:
    assert compare(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1e30])) == Match(1.0, pytest.approx(2e-30))
    assert compare(torch.tensor([1e-30, 0.0]), torch.tensor([-1e30, 0.0])).cosine == -1.0
    assert compare(torch.zeros(2), torch.ones(2)) == Match(0.0, 0.0)
    assert compare(torch.ones(2), torch.zeros(2)) == Match(0.0, math.inf)
    model = linear(4, 3, True, 0)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=draws, dtype=torch.float64)
    for targets in (torch.arange(7) % 3, torch.softmax(torch.randn(7, 3, generator=draws).double(), 1)):
        points = Points(x, targets)
        np.testing.assert_allclose(points_gradient(model, points).numpy(), oracle(model, points), atol=1e-12)
        np.testing.assert_allclose(
            points_gradient(model, points, reduction="mean").numpy() * 7, oracle(model, points), atol=1e-12
        )
    one = linear(4, 1, True, 0)
    for targets in (torch.arange(7) % 2, torch.arange(7.0).double()):
        points = Points(x, targets)
        np.testing.assert_allclose(points_gradient(one, points).numpy(), oracle(one, points), atol=1e-12)
        found = match(one, points, 3 * points_gradient(one, points))
        assert found.cosine == pytest.approx(1)
        assert found.norm_ratio == pytest.approx(1 / 3)
        assert found.distance == pytest.approx(0)
    assert sample_losses(torch.tensor([[2.0]]), torch.tensor([5.0])).tolist() == [4.5]


def test_bad_parameters_and_models() -> None:
    for make in (
        lambda: LinearPoint(residual=0.0),
        lambda: LinearPoint(residual=math.inf),
        lambda: LinearPoint(loss="cubic"),  # type: ignore[arg-type]
        lambda: LinearPoint(ridge=-1.0),
        lambda: LogisticCopies(most=0),
        lambda: SoftmaxExact(radius=0.0),
        lambda: SoftmaxExact(most=0),
        lambda: Equiprobable(points=0),
        lambda: Equiprobable(box=math.nan),
        lambda: Equiprobable(strength=0.0),
        lambda: Equiprobable(labels="hard"),  # type: ignore[arg-type]
        lambda: Points(torch.zeros(3), torch.zeros(3)),
        lambda: Points(torch.zeros(3, 2), torch.zeros(2)),
        lambda: Points(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32)),
    ):
        with pytest.raises(ConfigError):
            make()
    for way in (LinearPoint(), LogisticCopies(), SoftmaxExact(), Equiprobable()):
        with pytest.raises(ConfigError, match="single linear layer"):
            way(make_model("mlp", (1, 4, 4), 3, 0), torch.zeros(5))
    with pytest.raises(ConfigError, match="has 8 parameters, the gradient has shape"):
        SoftmaxExact()(linear(3, 2, True, 0), torch.zeros(6).double())
    with pytest.raises(ConfigError, match="finite numbers"):
        SoftmaxExact()(linear(2, 2, True, 0), torch.full((6,), math.nan).double())
    with pytest.raises(ConfigError, match="single output"):
        LinearPoint()(linear(3, 2, False, 0), torch.zeros(6).double())
    with pytest.raises(ConfigError, match="without a bias"):
        LogisticCopies()(linear(3, 1, True, 0), torch.zeros(4).double())
    with pytest.raises(ConfigError, match="at least two outputs"):
        SoftmaxExact()(linear(3, 1, True, 0), torch.zeros(4).double())


def test_all_are_registered_and_the_model_is_left_alone() -> None:
    for entry in GRADIENT_TO_DATA.entries():
        assert entry.summary
    model = make_model("linear", (1, 3, 3), 3, 0)
    before = [parameter.clone() for parameter in model.parameters()]
    g = softmax_target(3, 9, 0)
    points = GRADIENT_TO_DATA.build("softmax-exact")(model, flat(g, True).float())
    assert points.inputs.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    found = match(model, points, flat(g, True))
    assert found.distance < 1e-9
    assert found.norm_ratio == pytest.approx(1, abs=1e-5)
