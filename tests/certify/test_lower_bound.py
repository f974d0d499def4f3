from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Mean, Median, Rule, TrimmedMean
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.nnm import NNM
from bezoar.aggregation.subsets import MVA
from bezoar.attacks.gradient_to_data import LinearPoint
from bezoar.certify import aggregation_floor, dilemma, dissimilarity, kappa, learnable, learning_floor
from bezoar.errors import ConfigError

N, F = 11, 3
RULES: list[Rule] = [
    Mean(),
    Median(),
    TrimmedMean(f=F),
    GeometricMedian(),
    Krum(f=F),
    MVA(f=F),
    NNM(f=F) >> TrimmedMean(f=F),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_rule_beats_the_floor_on_the_two_point_construction(rule: Rule, seed: int) -> None:
    # The order of clients must not matter: ties would otherwise be broken in favour of one story.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(N))
    kinds = torch.tensor([1.0] * F + [-1.0] * F + [0.0] * (N - 2 * F), dtype=torch.float64)[order, None]
    answer = rule(kinds)
    errors = []
    for honest in (kinds[:, 0] >= 0, kinds[:, 0] <= 0):
        rows = kinds[honest]
        assert len(rows) == N - F
        variance = float(rows.var(correction=0))
        errors.append((float(answer - rows.mean()) ** 2) / aggregation_floor(N, F, variance))
    assert max(errors) >= 1 - 1e-9
    if isinstance(rule, TrimmedMean):
        assert max(errors) == pytest.approx(1)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(3, 40), share=st.floats(0.01, 0.6), b=st.floats(0, 3), g=st.floats(0.1, 9), mu=st.floats(0.1, 9))
def test_the_dilemma_is_dissimilar_as_promised_and_costs_the_floor(
    n: int, share: float, b: float, g: float, mu: float
) -> None:
    f = max(1, int(share * n))
    if n - (2 + b * b) * f < 0.05:
        return
    d = dilemma(n, f, g, b, mu)
    scale = float(d.centres.abs().max())
    for story in range(2):
        honest = d.honest[story]
        assert int(honest.sum()) == n - f
        assert float(d.curvatures[honest].mean()) == pytest.approx(mu)
        assert float(d.curvatures.min()) >= 0
        thetas = np.linspace(-50, 50, 4001) * scale
        grads = d.curvatures[honest].numpy() * (thetas[:, None] - d.centres[honest].numpy())
        slack = g * g + b * b * grads.mean(1) ** 2 - grads.var(1)
        assert slack.min() >= -1e-7 * (g * g + (mu * scale) ** 2)
    # In both stories the truth is equally far from the only answer that favours neither.
    assert d.excess(0.0) == pytest.approx(learning_floor(n, f, g, b, mu))
    for theta in np.random.default_rng(0).normal(size=20) * scale:
        assert d.excess(float(theta)) >= d.excess(0.0)


@pytest.mark.parametrize("b", [0.0, 0.6])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_robust_gradient_descent_on_the_dilemma(rule: Rule, b: float) -> None:
    d = dilemma(N, F, 2.0, b, 0.5)
    for start in (0.7, -0.7):
        theta = start
        for _ in range(100):
            theta -= 0.5 * float(rule(d.gradients(theta)))
        floor = learning_floor(N, F, 2.0, b, 0.5)
        assert d.excess(theta) >= floor * (1 - 1e-9)
    if isinstance(rule, TrimmedMean):
        # What the trimmed mean is promised to reach, kappa G^2 / (2 mu (1 - kappa B^2)), is the floor.
        promised = kappa(rule, N) * 4 / (2 * 0.5 * (1 - kappa(rule, N) * b * b))
        assert floor == pytest.approx(promised)
        assert d.excess(theta) <= promised * (1 + 1e-6)


def test_the_gradients_of_the_dilemma_come_from_data() -> None:
    d = dilemma(N, F, 1.0, 0.5)
    for theta in (-1.0, 0.3):
        model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.fill_(theta)
        for c, a, g in zip(d.curvatures.tolist(), d.centres.tolist(), d.gradients(theta), strict=True):
            x, y = math.sqrt(c), math.sqrt(c) * a
            assert (x * theta - y) * x == pytest.approx(float(g))
            point = LinearPoint(residual=(x * theta - y) or 1.0)(model, g)
            assert float(point.inputs) == pytest.approx(x if x * theta != y else 0.0)


def test_breakdown_point() -> None:
    # n - 2f clients without an opinion, f for +a, f for -a: G = 0 and B^2 = (n - 2f)/f, and a is any number.
    n, f = 10, 3
    b = math.sqrt((n - 2 * f) / f)
    for a in (1.0, 1e6):
        curvatures = np.array([1.0] * f + [0.0] * (n - 2 * f))
        for theta in (-3.0, 0.0, 2.5):
            grads = curvatures * (theta - a)
            assert grads.var() == pytest.approx(b * b * grads.mean() ** 2)
    assert not learnable(n, f, b * (1 + 1e-12))
    assert learnable(n, f, b * (1 - 1e-6))
    assert learning_floor(n, f, 0.0, b * (1 + 1e-12)) == math.inf
    assert [learnable(10, f) for f in (0, 4, 5, 10)] == [True, True, False, False]


def test_numbers() -> None:
    assert aggregation_floor(9, 3, 2.0) == 2.0
    assert aggregation_floor(9, 0, 2.0) == 0.0
    assert aggregation_floor(6, 3, 0.0) == math.inf
    # At least the published G^2/(4 mu).
    assert learning_floor(20, 3, 2.0, 1.0, 0.5) == 2 * (3 / (20 - 9)) * 4 / (4 * 0.5)
    assert learning_floor(20, 0, 2.0) == 0.0
    assert dissimilarity([4.0, 9.0], [0.0, 6.0], 0.0) == 3.0
    assert dissimilarity([4.0, 9.0], [0.0, 6.0], 1.0) == 2.0
    assert dissimilarity(torch.tensor([1.0]), torch.tensor([2.0]), 1.0) == 0.0
    # The square of B overflows.
    assert dissimilarity([4.0, 9.0], [0.0, 1.0], 1e200) == 2.0


def test_bad_numbers() -> None:
    for make in (
        lambda: aggregation_floor(0, 0, 1.0),
        lambda: aggregation_floor(5, 6, 1.0),
        lambda: aggregation_floor(5, -1, 1.0),
        lambda: aggregation_floor(5, 1, -1.0),
        lambda: aggregation_floor(5, 1, math.nan),
        lambda: learning_floor(5, 1, 1.0, mu=0.0),
        lambda: learning_floor(5, 1, math.inf),
        lambda: learnable(5, 1, -1.0),
        lambda: dilemma(5, 0),
        lambda: dilemma(6, 3),
        lambda: dissimilarity([], [], 0.0),
        lambda: dissimilarity([1.0], [1.0, 2.0], 0.0),
        lambda: dissimilarity([1.0], [-1.0], 0.0),
        lambda: dissimilarity([1.0], [1.0], -1.0),
        lambda: dissimilarity([1.0], [1.0], math.nan),
        lambda: dissimilarity([1.0], [1.0], math.inf),
        lambda: dissimilarity([1.0, math.nan], [1.0, 1.0], 0.0),
        lambda: dissimilarity([1.0, math.inf], [1.0, 1.0], 0.0),
        lambda: dissimilarity([1.0, 1.0], [1.0, math.nan], 1.0),
        lambda: dissimilarity([1.0, 1.0], [1.0, math.inf], 1.0),
    ):
        with pytest.raises(ConfigError):
            make()
