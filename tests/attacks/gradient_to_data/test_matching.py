from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data import (
    GRADIENT_TO_DATA,
    GradientMatching,
    Points,
    compare,
    match,
    points_gradient,
    sample_losses,
)
from bezoar.errors import ConfigError
from bezoar.models import make_model


def softmax_model(d: int = 50, classes: int = 10) -> nn.Linear:
    model = nn.Linear(d, classes, bias=False, dtype=torch.float64)
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        model.weight.copy_(0.1 * torch.randn(classes, d, generator=draws, dtype=torch.float64))
    return model


def mlp(hidden: int = 5, d: int = 4, classes: int = 3) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(kind: str, model: nn.Linear) -> Tensor:
    """Gradients [C d] that softmax regression can have: their columns sum to zero over the classes."""
    classes, d = model.weight.shape
    if kind == "random":
        matrix = normal(classes, d, seed=1)
        return (matrix - matrix.mean(0)).flatten()
    if kind == "rank one":
        column = normal(classes, 1, seed=2)
        return ((column - column.mean()) * normal(1, d, seed=3)).flatten()
    labels = torch.arange(200) % classes
    return points_gradient(model, Points(normal(200, d, seed=6) + labels[:, None] / 10, classes - 1 - labels))


def mlp_gradient(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of the summed cross-entropy of a tanh network, sample by sample, from the textbook."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in model.parameters())
    total = [np.zeros_like(part) for part in (w1, b1, w2, b2)]
    for a, label in zip(x.reshape(len(x), -1), y, strict=True):
        h = np.tanh(w1 @ a + b1)
        z = w2 @ h + b2
        e = np.exp(z - z.max())
        error = e / e.sum() - np.eye(len(z))[label]
        back = (w2.T @ error) * (1 - h**2)
        for part, more in zip(total, (np.outer(back, a), back, np.outer(error, h), error), strict=True):
            part += more
    return np.concatenate([part.ravel() for part in total])


def objective(method: GradientMatching, g: np.ndarray, wanted: np.ndarray) -> float:
    cosine = g @ wanted / np.linalg.norm(g) / np.linalg.norm(wanted)
    if method.mode == "direction":
        return float(1 - cosine)
    return float(np.sum((g - wanted) ** 2) / np.sum(wanted**2))


@pytest.mark.parametrize("kind", ["random", "rank one", "flipped labels"])
@pytest.mark.parametrize("points", [10, 32])
def test_softmax_regression_is_matched(kind: str, points: int) -> None:
    model = softmax_model()
    if (kind, points) == ("rank one", 10):
        # One point of each class reaches 2e-4 only where the model prefers some classes, and 0 where it does not.
        torch.nn.init.zeros_(model.weight)
    wanted = targets(kind, model)
    method = GradientMatching(points=points, optimiser="adam", steps=1000 if points == 10 else 400, restarts=2)
    assert match(model, method(model, wanted), wanted).distance < 1e-4


@pytest.mark.parametrize("classes", [2, 10])
def test_one_point_has_a_gradient_of_rank_one(classes: int) -> None:
    model = softmax_model(d=20, classes=classes)
    wanted = targets("random", model)
    values = torch.linalg.svdvals(wanted.reshape(classes, 20))
    limit = 1 - float(values[0] / values.norm())
    found = GradientMatching(points=1, optimiser="adam", steps=600, restarts=2)(model, wanted)
    distance = match(model, found, wanted).distance
    assert distance >= limit - 1e-9
    if classes == 2:
        assert distance < 1e-4
    else:
        assert limit > 0.3
        assert distance < 1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_exact_matching_has_the_length_as_well(reduction: Any) -> None:
    model = softmax_model(d=20)
    wanted = 3 * targets("flipped labels", model) / 200
    base = Points(normal(32, 20, seed=8), torch.arange(32) % 10)
    for mode in ("exact", "direction"):
        method = GradientMatching(
            mode=mode,  # type: ignore[arg-type]
            optimiser="adam",
            steps=500,
            restarts=1,
            reduction=reduction,
        )
        found = method.find(model, wanted, base)
        gradient = points_gradient(model, found.points, reduction=reduction)
        assert compare(gradient, wanted) == found.match
        error = float((gradient - wanted).norm() / wanted.norm())
        assert (error < 1e-3) == (mode == "exact"), (mode, error)


@pytest.mark.parametrize("mode", ["direction", "exact"])
@pytest.mark.parametrize("restarts", [2, 4])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_objective_and_slope_against_finite_differences(mode: Any, restarts: int, reduction: Any) -> None:
    model, x = mlp(), normal(restarts, 3, 1, 2, 2, seed=9)
    labels = torch.tensor([0, 2, 1])
    wanted = 0.5 * normal(sum(p.numel() for p in model.parameters()), seed=10)
    method = GradientMatching(mode=mode, restarts=restarts, reduction=reduction)
    values, slopes = method._objective(model, wanted, labels, sample_losses)(x)

    def oracle(inputs: np.ndarray) -> float:
        g = mlp_gradient(model, inputs, labels.numpy()) / (3 if reduction == "mean" else 1)
        return objective(method, g, wanted.numpy())

    assert values.tolist() == pytest.approx([oracle(part) for part in x.numpy()], rel=1e-9)
    for r in range(restarts):
        for i in range(3):
            for j in range(4):
                step = np.zeros((3, 1, 2, 2))
                step[i, 0, j // 2, j % 2] = 1e-5
                start = x[r].numpy()
                slope = (oracle(start + step) - oracle(start - step)) / 2e-5
                assert float(slopes[r, i, 0, j // 2, j % 2]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("optimiser", ["sign-adam", "adam"])
def test_descent_is_that_of_torch_with_signs_and_decay(optimiser: Any) -> None:
    model, base = mlp(), Points(normal(3, 1, 2, 2, seed=11), torch.tensor([0, 1, 2]))
    wanted = normal(sum(p.numel() for p in model.parameters()), seed=12)
    method = GradientMatching(steps=16, restarts=1, spread=0.0, optimiser=optimiser, lr=0.05)
    x = base.inputs.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05)
    decay = torch.optim.lr_scheduler.MultiStepLR(adam, [6, 10, 14], gamma=0.1)
    best = (math.inf, x.detach().clone())
    parameters = list(model.parameters())
    for _ in range(17):
        loss = sample_losses(model(x), base.targets).sum()
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=True)])
        value = 1 - torch.nn.functional.cosine_similarity(g, wanted, dim=0)
        if float(value.detach()) < best[0]:
            best = (float(value.detach()), x.detach().clone())
        (slope,) = torch.autograd.grad(value, x)
        x.grad = slope.sign() if optimiser == "sign-adam" else slope
        adam.step()
        decay.step()
    found = method.find(model, wanted, base)
    assert torch.allclose(found.points.inputs, best[1], atol=1e-9)
    assert found.match.distance == pytest.approx(best[0], abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.floats(-250, 250), st.integers(0, 5))
def test_the_length_of_the_target_does_not_matter_to_directions(exponent: float, seed: int) -> None:
    model = mlp()
    wanted = normal(sum(p.numel() for p in model.parameters()), seed=seed)
    method = GradientMatching(points=4, shape=(1, 2, 2), steps=10, restarts=3)
    distance = match(model, method(model, wanted), wanted).distance
    scaled = match(model, method(model, wanted * 10**exponent), wanted).distance
    assert 0 <= distance <= 2
    assert scaled == pytest.approx(distance, abs=1e-6)
    assert torch.equal(method(model, wanted * 2.0**40).inputs, method(model, wanted).inputs)


def test_together_and_one_after_the_other_are_the_same() -> None:
    batched = mlp()
    alone = nn.Sequential(batched, nn.Dropout())  # a layer that goes one by one, and does nothing in evaluation
    wanted = normal(sum(p.numel() for p in batched.parameters()), seed=13)
    base = Points(normal(4, 1, 2, 2, seed=14), torch.tensor([0, 1, 2, 0]))
    for mode in ("direction", "exact"):
        method = GradientMatching(steps=30, restarts=4, mode=mode)  # type: ignore[arg-type]
        one, other = method.find(batched, wanted, base), method.find(alone, wanted, base)
        assert one.restart == other.restart
        assert torch.allclose(one.points.inputs, other.points.inputs, atol=1e-6)
    assert alone.training


@pytest.mark.parametrize("epsilon", [None, 16 / 255, 1.0])
def test_inputs_stay_in_their_box(epsilon: float | None) -> None:
    model = make_model("mlp", (2, 3, 3), 4, seed=0, hidden=[6])
    low, high = torch.tensor([-1.0, 0.0])[:, None, None], torch.tensor([1.0, 0.5])[:, None, None]
    draws = torch.Generator().manual_seed(1)
    base = Points(low + (high - low) * torch.rand(8, 2, 3, 3, generator=draws), torch.arange(8) % 4)
    wanted = torch.randn(sum(p.numel() for p in model.parameters()), generator=draws)
    before = base.inputs.clone()
    method = GradientMatching(steps=40, restarts=4, epsilon=epsilon)
    found = method.find(model, wanted, base, low, high)
    x = found.points.inputs
    assert bool((x >= low).all())
    assert bool((x <= high).all())
    assert torch.equal(found.points.targets, base.targets)
    assert torch.equal(base.inputs, before)
    if epsilon is not None:
        assert bool(((x - base.inputs).abs() <= epsilon * (high - low) + 1e-6).all())
        # The first start is the base, so that the answer is never worse than it.
        assert found.match.distance <= match(model, base, wanted).distance
        assert float((x - base.inputs).abs().max()) > 0.3 * min(epsilon, 0.1)


def test_more_restarts_and_more_room_are_never_worse() -> None:
    model = mlp()
    wanted = normal(sum(p.numel() for p in model.parameters()), seed=15)
    base = Points(normal(3, 1, 2, 2, seed=16), torch.tensor([0, 1, 2]))
    # More starts begin with the same ones, as draws go start by start.
    few, many = (GradientMatching(steps=30, restarts=r).find(model, wanted, base) for r in (3, 9))
    assert many.match.distance <= few.match.distance + 1e-12
    tight, wide = (GradientMatching(steps=30, restarts=1, epsilon=e).find(model, wanted, base) for e in (0.01, 1.0))
    assert wide.match.distance < tight.match.distance < match(model, base, wanted).distance


def test_convolutions_are_matched_and_the_model_is_left_alone() -> None:
    model = make_model("cnn", (1, 8, 8), 4, seed=0, width=3, hidden=8)
    draws = torch.Generator().manual_seed(2)
    real = Points(torch.randn(40, 1, 8, 8, generator=draws), torch.randint(4, (40,), generator=draws))
    wanted = points_gradient(model, real)
    base = Points(torch.randn(8, 1, 8, 8, generator=draws), torch.arange(8) % 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    method = GradientMatching(steps=60, restarts=3, seed=3)
    found = method.find(model, wanted, base)
    assert found.match.cosine > match(model, base, wanted).cosine + 0.2
    assert found.match == match(model, found.points, wanted)
    assert model.training
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, old)
    assert torch.equal(method.find(model, wanted, base).points.inputs, found.points.inputs)
    other = GradientMatching(steps=60, restarts=3, seed=4).find(model, wanted, base)
    assert not torch.equal(other.points.inputs, found.points.inputs)


def test_frozen_parameters_are_no_part_of_the_gradient() -> None:
    model = mlp()
    first, *rest = model.parameters()
    first.requires_grad_(False)
    wanted = normal(sum(p.numel() for p in rest), seed=17)
    for restarts in (1, 3):
        found = GradientMatching(steps=20, restarts=restarts, points=6, shape=(1, 2, 2))(model, wanted)
        assert match(model, found, wanted).distance < 1
    assert not first.requires_grad


@pytest.mark.parametrize("size", [1e30, math.nan, math.inf])
def test_hostile_bases_do_not_break_the_search(size: float) -> None:
    model = mlp()
    wanted = normal(sum(p.numel() for p in model.parameters()), seed=18)
    base = Points(normal(4, 1, 2, 2, seed=19), torch.tensor([0, 1, 2, 0]))
    base.inputs[0] = size
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    for restarts in (1, 3):
        found = GradientMatching(steps=10, restarts=restarts).find(model, wanted, base, low, high).points.inputs
        assert found.shape == base.inputs.shape
        if not math.isnan(size):
            assert bool(found.isfinite().all())
        assert bool(found[1:].isfinite().all())


def test_what_can_not_be_matched_is_refused() -> None:
    model = mlp()
    d = sum(p.numel() for p in model.parameters())
    method = GradientMatching(points=2, shape=(1, 2, 2), steps=1, restarts=1)
    for wanted in (torch.zeros(d), torch.full((d,), torch.nan), torch.full((d,), torch.inf), torch.ones(d + 1)):
        with pytest.raises(ConfigError, match="gradient"):
            method(model, wanted)
    with pytest.raises(ConfigError, match="set shape"):
        GradientMatching()(make_model("cnn", (1, 8, 8), 4, seed=0), torch.ones(3))


@pytest.mark.parametrize(
    "options",
    [
        {"points": 0},
        {"steps": 0},
        {"restarts": 0},
        {"lr": 0.0},
        {"lr": math.inf},
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"spread": -1.0},
        {"mode": "length"},
        {"optimiser": "lbfgs"},
        {"reduction": "max"},
    ],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GradientMatching(**options)


def test_tables_round_trip() -> None:
    method = GradientMatching(steps=7, shape=(1, 28, 28), epsilon=16 / 255)
    assert GRADIENT_TO_DATA.build(GRADIENT_TO_DATA.table(method)) == method
    assert GRADIENT_TO_DATA.build("matching") == GradientMatching()
