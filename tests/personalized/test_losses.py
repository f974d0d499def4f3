from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bezoar.attacks.gradient_to_data import Points, points_gradient
from bezoar.errors import ConfigError
from bezoar.models import make_model
from bezoar.personalized import (
    LinearRegression,
    LogisticRegression,
    Problem,
    SoftmaxRegression,
    SquaredL2,
    TorchLoss,
    UserLoss,
)


def cases() -> list[tuple[UserLoss, Points]]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, generator=draws, dtype=torch.float64)
    soft = torch.softmax(torch.randn(9, 3, generator=draws, dtype=torch.float64), 1)
    mlp = make_model("mlp", (1, 2, 2), 3, 0, hidden=[5]).double()
    return [
        (LinearRegression(4), Points(x, torch.randn(9, generator=draws, dtype=torch.float64))),
        (LogisticRegression(4), Points(x, torch.arange(9) % 2)),
        (SoftmaxRegression(4, 3), Points(x, torch.arange(9) % 3)),
        (SoftmaxRegression(4, 3), Points(x, soft)),
        (SoftmaxRegression(4, 3), Points(x, 2 * soft)),
        (TorchLoss(mlp), Points(x, torch.arange(9) % 3)),
    ]


@pytest.mark.parametrize("index", range(6))
def test_gradients_against_finite_differences_and_torch(index: int) -> None:
    loss, data = cases()[index]
    theta = torch.randn(loss.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    value, gradient = loss.value_and_gradient(theta, data)
    for i in range(0, loss.size, 3):
        step = torch.zeros(loss.size, dtype=torch.float64)
        step[i] = 1e-6
        slope = float(loss.value(theta + step, data) - loss.value(theta - step, data)) / 2e-6
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-7, rel=1e-6)
    torch.testing.assert_close(gradient, points_gradient(loss.module(theta), data))
    # Summed over the samples, not averaged.
    twice = loss.value_and_gradient(theta, Points.join(data, data))
    torch.testing.assert_close(twice[0], 2 * value)
    torch.testing.assert_close(twice[1], 2 * gradient)
    torch.testing.assert_close(loss.outputs(theta, data.inputs), loss.module(theta)(data.inputs).detach())


def test_values_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    theta = torch.tensor([1.0, -1.0], dtype=torch.float64)
    line = Points(x, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert float(LinearRegression(2).value(theta, line)) == (9 + 1) / 2
    two = Points(x, torch.tensor([1, 0]))
    assert float(LogisticRegression(2).value(theta, two)) == pytest.approx(
        math.log(1 + math.e) + math.log(1 + 1 / math.e)
    )
    w = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    scores = np.array([[1.5, 4.0], [0.5, 2.0]])
    expected = -sum(s[t] - math.log(np.exp(s).sum()) for s, t in zip(scores, (1, 0), strict=True))
    assert float(SoftmaxRegression(2, 2).value(w, two)) == pytest.approx(expected)


def test_fresh_models_are_drawn_as_torch_does() -> None:
    loss = SoftmaxRegression(100, 10)
    drawn = loss.initial(torch.Generator().manual_seed(0))
    layer = nn.Linear(100, 10)
    bound = float(layer.weight.detach().abs().max())
    assert drawn.abs().max() <= 0.1 < bound * 1.01
    assert drawn.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert torch.equal(drawn, loss.initial(torch.Generator().manual_seed(0)))
    mlp = make_model("mlp", (1, 2, 2), 3, 0)
    before = torch.get_rng_state()
    assert len(TorchLoss(mlp).initial(torch.Generator())) == TorchLoss(mlp).size
    loss.module(drawn)
    assert torch.equal(before, torch.get_rng_state())


def test_objective_of_a_problem() -> None:
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    data = (Points(x, torch.tensor([0.0, 0.0]).double()), Points(x[:1], torch.tensor([1.0]).double()))
    rho, thetas = torch.tensor([1.0]).double(), torch.tensor([[2.0], [3.0]]).double()
    total = Problem(LinearRegression(1), data, SquaredL2(0.5), ridge=0.1)
    own = [(4 + 16) / 2 + 0.4, 4 / 2 + 0.9]
    assert total.objective(rho, thetas) == pytest.approx(sum(own) + 0.5 * (1 + 4))
    mean = Problem(LinearRegression(1), data, SquaredL2(0.5), ridge=0.1, reduction="mean")
    assert mean.objective(rho, thetas) == pytest.approx(own[0] - 5 + own[1] + 0.5 * (1 + 4))
    to_rho, to_thetas = total.gradients(rho, thetas)
    assert to_rho.tolist() == pytest.approx([2 * 0.5 * (-1 - 2)])
    assert to_thetas.flatten().tolist() == pytest.approx([2 + 8 + 0.4 + 1, 2 + 0.6 + 2])
    assert total.with_user(data[0]).users == 3


def test_bad_problems() -> None:
    good = Points(torch.zeros(2, 1), torch.zeros(2))
    for make in (
        lambda: Problem(LinearRegression(1), (), SquaredL2()),
        lambda: Problem(LinearRegression(1), (Points(torch.zeros(0, 1), torch.zeros(0)),), SquaredL2()),
        lambda: Problem(LinearRegression(1), (good,), SquaredL2(), ridge=-1),
        lambda: Problem(LinearRegression(1), (good,), SquaredL2(), reduction="max"),  # type: ignore[arg-type]
        lambda: LinearRegression(0),
        lambda: LogisticRegression(0),
        lambda: SoftmaxRegression(1, 1),
    ):
        with pytest.raises(ConfigError):
            make()
