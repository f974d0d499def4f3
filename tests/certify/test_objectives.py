"""Objectives by brute force, and the chain between them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import PriorMean
from bezoar.certify import expected_loss, worst_case_loss, worst_case_weights
from bezoar.errors import ConfigError
from bezoar.priors import Explicit, Groups, Independent, Subsets

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=8), st.data())
def test_the_worst_case_is_the_largest_mean_of_a_subset(losses: list[float], data: st.DataObject) -> None:
    n = len(losses)
    f = data.draw(st.integers(0, n - 1))
    brute = max(np.mean(subset) for subset in itertools.combinations(losses, n - f))
    assert worst_case_loss(losses, f) == pytest.approx(brute, rel=1e-12, abs=1e-9)
    weights = worst_case_weights(losses, f)
    assert (weights > 0).sum() == n - f
    assert weights.sum() == pytest.approx(1)


@given(st.lists(finite, min_size=5, max_size=5), st.floats(0, 0.9), st.floats(0, 0.9))
def test_the_expected_loss_is_that_of_the_listed_sets(losses: list[float], p: float, q: float) -> None:
    values = np.array(losses)
    for prior in (Groups((2, 3), (p, q), 0.5), Independent(p, clients=5), Subsets(2, clients=5)):
        family = prior.support()
        brute = float(np.exp(family.log_prob) @ (family.honest @ values / family.sizes))
        assert expected_loss(losses, prior) == pytest.approx(brute, rel=1e-9, abs=1e-6)


def test_the_best_expected_loss_lies_between_the_expected_best_and_the_worst_case() -> None:
    """E_S min L_S <= min E_S L_S <= min max_S L_S, for quadratic losses on a grid."""
    draws = np.random.default_rng(0)
    theta = np.linspace(-4, 4, 2001)
    for _ in range(20):
        n, f = 6, int(draws.integers(0, 3))
        centres, curvatures = draws.normal(size=n), draws.uniform(0.2, 3, size=n)
        losses = curvatures[:, None] / 2 * (theta - centres[:, None]) ** 2
        family = Subsets(f, clients=n).support()
        of_sets = family.honest @ losses / family.sizes[:, None]
        p = np.exp(family.log_prob)
        first = float(p @ of_sets.min(1))
        second = min(expected_loss(losses[:, j], Subsets(f, clients=n)) for j in range(0, len(theta), 10))
        third = min(worst_case_loss(losses[:, j], f) for j in range(0, len(theta), 10))
        assert first <= second + 1e-12
        assert second <= third + 1e-12


def test_subgradient_steps_with_the_worst_weights_descend_to_the_minimax() -> None:
    centres = np.array([-3.0, 0.0, 0.5, 1.0, 1.5])
    grid = np.linspace(-4, 4, 8001)
    best = min(worst_case_loss((theta - centres) ** 2 / 2, 1) for theta in grid)
    theta, seen = 2.0, []
    for t in range(1, 2000):
        weights = worst_case_weights((theta - centres) ** 2 / 2, 1)
        theta -= 0.5 / t**0.5 * float(weights @ (theta - centres))
        seen.append(worst_case_loss((theta - centres) ** 2 / 2, 1))
    assert min(seen) == pytest.approx(best, rel=1e-3)


def test_steps_by_the_prior_weighted_mean_minimise_the_expected_loss() -> None:
    """Training on objective (2): with everybody honest prior-mean descends sum w_i L_i and nothing else."""
    prior = Groups((3, 2, 1), p=(0.1, 0.3, 0.5))
    draws = np.random.default_rng(2)
    curvatures, centres = draws.uniform(0.5, 2, size=(6, 4)), draws.normal(size=(6, 4))
    weights, theta = prior.weights(), np.zeros(4)
    for _ in range(200):
        rows = curvatures * (theta - centres)
        step = PriorMean(prior)(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(step, weights @ rows, atol=1e-12)
        theta = theta - 0.5 * step
    best = (weights @ (curvatures * centres)) / (weights @ curvatures)
    np.testing.assert_allclose(theta, best, atol=1e-9)

    def loss(point: Any) -> float:
        return expected_loss((curvatures * (point - centres) ** 2).sum(1) / 2, prior)

    assert all(loss(theta) <= loss(theta + 0.01 * draws.normal(size=4)) for _ in range(20))
    plain = centres.mean(0)
    assert loss(theta) < loss(plain) - 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_case_loss([1.0, 2.0], 2), "f must be a whole number from 0 to 1"),
        (lambda: worst_case_loss([], 0), "one for each client"),
        (lambda: worst_case_loss([1.0, float("nan")], 0), "one for each client"),
        (lambda: expected_loss([1.0, 2.0], [0.5]), "as many weights"),
        (lambda: expected_loss([1.0, 2.0], Explicit(3, bad=((),), p=(1.0,))), "about 3 clients, not about 2"),
    ],
)
def test_nonsense_is_refused(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]
