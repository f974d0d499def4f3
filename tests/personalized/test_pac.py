from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data import Points
from bezoar.errors import ConfigError
from bezoar.personalized import (
    LinearRegression,
    LogisticRegression,
    SoftmaxRegression,
    TorchLoss,
    UserLoss,
    gradient_pac,
    labelled,
)
from bezoar.personalized.pac_plot import pac_plot


def normal(size: int, draws: torch.Generator) -> Tensor:
    return torch.randn(size, 3, generator=draws, dtype=torch.float64)


def in_a_plane(size: int, draws: torch.Generator) -> Tensor:
    x = normal(size, draws)
    x[:, 2] = x[:, 0] + x[:, 1]
    return x


def test_least_squares() -> None:
    loss = LinearRegression(3)
    found = gradient_pac(loss, labelled(loss, normal))
    assert found.holds
    # Central limit: noise grows with the root of I. Standard normal inputs: all curvatures are near 1.
    assert found.alpha == pytest.approx(0.5, abs=0.15)
    assert 0.5 < found.a < 1
    assert found.growth[-1] == pytest.approx(1, abs=0.15)
    noises = np.asarray(found.b) * np.asarray(found.sizes) ** found.alpha
    assert bool((noises >= np.asarray(found.noise) * (1 - 1e-12)).all())


def test_the_constants_satisfy_the_inequality_on_the_data_they_come_from() -> None:
    loss = LogisticRegression(3)
    sample = labelled(loss, normal)
    kept: list[tuple[Tensor, Points]] = []

    def keep(theta: Tensor, size: int, draws: torch.Generator) -> Points:
        kept.append((theta, sample(theta, size, draws)))
        return kept[-1][1]

    found = gradient_pac(loss, keep, k=2.0)
    assert found.holds
    assert found.alpha == pytest.approx(0.5, abs=0.2)
    draws = torch.Generator().manual_seed(9)
    for truth, data in kept:
        assert float(truth.norm()) == pytest.approx(2)
        size = len(data)
        for r in (0.03, 1.0, 30.0):
            u = torch.randn(3, generator=draws, dtype=torch.float64)
            u = u / u.norm()
            left = r * float(u @ loss.value_and_gradient(truth + r * u, data)[1])
            assert left >= 0.5 * found.a * size * min(r, r * r) - found.b * size**found.alpha * r


def test_inputs_in_a_plane_do_not_pull_back() -> None:
    for loss in (LinearRegression(3), LogisticRegression(3)):
        found = gradient_pac(loss, labelled(loss, in_a_plane))
        assert not found.holds
        assert abs(found.a) < 1e-6


@pytest.mark.parametrize(("unit", "k"), [(100.0, 1.0), (1.0, 100.0), (1e-4, 1.0), (1e-4, 1e6)])
def test_the_verdict_does_not_depend_on_units_or_on_how_sure_the_model_is(unit: float, k: float) -> None:
    loss = LogisticRegression(3)
    for seed in range(2):
        spans = gradient_pac(loss, labelled(loss, lambda size, draws: unit * normal(size, draws)), k=k, seed=seed)
        assert spans.holds is True
        assert 0.5 < spans.spread <= 1
        flat = gradient_pac(loss, labelled(loss, lambda size, draws: unit * in_a_plane(size, draws)), k=k, seed=seed)
        assert flat.holds is False
        assert flat.spread < 1e-9


@pytest.mark.parametrize(("unit", "k"), [(1.0, 300.0), (1.0, 3000.0), (100.0, 100.0), (1e4, 1.0)])
def test_a_model_that_is_too_sure_for_so_few_samples_is_no_counterexample(unit: float, k: float) -> None:
    loss = LogisticRegression(3)
    for seed in range(2):
        few = gradient_pac(loss, labelled(loss, lambda size, draws: unit * normal(size, draws)), k=k, seed=seed)
        # Whatever noise was met, it must not be called a loss that does not learn.
        assert few.holds is not False
        if unit * k > 1000:
            assert few.holds is None
            assert few.a < 1e-9 * few.strongest
        flat = gradient_pac(loss, labelled(loss, lambda size, draws: unit * in_a_plane(size, draws)), k=k, seed=seed)
        assert flat.holds is False


def test_each_reason_for_the_verdict() -> None:
    loss = LinearRegression(3)
    good = gradient_pac(loss, labelled(loss, normal), sizes=(20, 40), draws=1, directions=1)
    weak = {"a": 1e-4 * good.strongest}
    for changes, verdict in (
        ({}, True),
        ({"spread": 0.0}, True),
        (weak, True),
        ({**weak, "spread": 1e-10}, False),
        ({**weak, "alpha": 1.0}, None),
        ({"a": 1e-10 * good.strongest}, None),
        ({"a": -1e-10 * good.strongest}, None),
        ({"a": -1e-8 * good.strongest}, False),
        ({"alpha": 0.95}, False),
        ({"growth_by_radius": (1.0, 1.0, 1.0, 0.11, 1.0)}, True),
        ({"growth_by_radius": (1.0, 1.0, 1.0, 0.09, 1.0)}, False),
    ):
        assert dataclasses.replace(good, **changes).holds is verdict, changes  # type: ignore[arg-type]


def test_softmax_regression_leaves_open_what_classes_have_in_common() -> None:
    loss = SoftmaxRegression(3, 3)
    found = gradient_pac(loss, labelled(loss, normal), sizes=(100, 1000))
    assert not found.holds
    assert abs(found.a) < 1e-6


def test_heavy_tails_make_noise_that_grows_like_the_data() -> None:
    loss = LinearRegression(3)

    def cauchy(theta: Tensor, size: int, draws: torch.Generator) -> Points:
        x = normal(size, draws)
        a, b = (torch.randn(size, generator=draws, dtype=torch.float64) for _ in range(2))
        return Points(x, x @ theta + a / b)

    found = gradient_pac(loss, cauchy, draws=40, directions=1)
    assert found.alpha > 0.9
    assert not found.holds


def test_a_loss_that_saturates_lets_far_models_be() -> None:
    class Squash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 1, bias=False, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.line(x))

    loss: UserLoss = TorchLoss(Squash())

    def sample(theta: Tensor, size: int, draws: torch.Generator) -> Points:
        x = normal(size, draws)
        return Points(x, torch.sigmoid(x @ theta))

    found = gradient_pac(loss, sample, sizes=(100, 300), radii=(0.1, 1.0, 10.0, 1e3, 1e5), draws=2)
    assert not found.holds
    assert found.growth_by_radius[0] > 0.01
    assert found.growth_by_radius[-1] < 1e-4


def test_same_seed_same_numbers_and_bad_parameters() -> None:
    loss = LinearRegression(3)
    quick = {"sizes": (20, 40), "draws": 2, "directions": 2}
    first = gradient_pac(loss, labelled(loss, normal), **quick)  # type: ignore[arg-type]
    assert first == gradient_pac(loss, labelled(loss, normal), **quick)  # type: ignore[arg-type]
    assert first != gradient_pac(loss, labelled(loss, normal), seed=1, **quick)  # type: ignore[arg-type]
    for bad in ({"sizes": (10,)}, {"radii": ()}, {"radii": (0.0,)}, {"draws": 0}, {"k": -1.0}):
        with pytest.raises(ConfigError, match="gradient_pac: needs"):
            gradient_pac(loss, labelled(loss, normal), **bad)  # type: ignore[arg-type]
    odd = TorchLoss(nn.Linear(3, 1).double())
    with pytest.raises(ConfigError, match="TorchLoss labels"):
        gradient_pac(odd, labelled(odd, normal))


def test_plot(tmp_path: Path) -> None:
    loss = LinearRegression(3)
    found = gradient_pac(loss, labelled(loss, normal), sizes=(20, 40), draws=1, directions=1)
    plot = pac_plot(found)
    assert len(plot.svgs()) == 2
    files = plot.write(tmp_path)
    assert all(file.stat().st_size > 1000 for file in files)
    assert "Looks like" in plot.caption
    assert "Does not" in pac_plot(dataclasses.replace(found, alpha=1.0)).caption
    assert "Too few samples" in pac_plot(dataclasses.replace(found, a=0.0)).caption
