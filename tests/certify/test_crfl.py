from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from bezoar.certify import (
    ABSTAINED,
    NoisyRound,
    certified_labels,
    distance_radius,
    divergence,
    label_divergence,
    total_shift,
)
from bezoar.certify.crfl import contraction, mean_shift, published_radius
from bezoar.errors import ConfigError


def kl(q: np.ndarray, p: np.ndarray) -> float:
    return float(np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300) / np.maximum(p, 1e-300)), 0.0)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.02, 1.0), min_size=3, max_size=5))
def test_the_label_divergence_is_that_of_the_nearest_tie(raw: list[float]) -> None:
    p = np.sort(np.array(raw) / sum(raw))[::-1]
    bound = float(label_divergence(p[0], p[1]))
    # The tie that attains it: geometric mean of the two, everything normalised.
    tie = p.copy()
    tie[:2] = math.sqrt(p[0] * p[1])
    assert kl(tie / tie.sum(), p) == pytest.approx(bound, abs=1e-12)
    # No other distribution in which class 1 beats class 0 is nearer.
    rng = np.random.default_rng(0)
    for _ in range(50):
        q = rng.dirichlet(np.ones(len(p)) * 3)
        q[:2] = np.sort(q[:2])
        assert kl(q, p) >= bound - 1e-12

    def gap(free: np.ndarray) -> float:
        q = np.exp(np.concatenate([[free[0]], free]))
        return kl(q / q.sum(), p)

    assert minimize(gap, np.zeros(len(p) - 1)).fun == pytest.approx(bound, abs=1e-5)


def test_the_distance_radius_is_tight_for_a_linear_classifier() -> None:
    """Noise on the weights, score <w, x>: the label changes exactly at the radius along -x."""
    rng = np.random.default_rng(0)
    x, w, std = rng.normal(size=20), rng.normal(size=20), 0.7
    if w @ x < 0:
        w = -w
    p = norm.cdf(w @ x / (std * np.linalg.norm(x)))
    radius = float(distance_radius(p, 1 - p, std))
    inside, outside = (w - s * radius * x / np.linalg.norm(x) for s in (0.999, 1.001))
    assert inside @ x > 0 > outside @ x


def test_contraction_is_the_largest_total_variation() -> None:
    for radius, std in ((0.5, 1.0), (2.0, 0.3), (0.1, 5.0)):
        grid = np.linspace(-radius - 12 * std, radius + 12 * std, 200_001)
        gap = np.abs(norm.pdf(grid, radius, std) - norm.pdf(grid, -radius, std)).sum() * (grid[1] - grid[0]) / 2
        assert contraction(radius, std) == pytest.approx(gap, abs=1e-6)
        assert contraction(radius, std) == pytest.approx(2 * norm.cdf(radius / std) - 1)
    assert contraction(1.0, 0.0) == 1.0


def density(start: float, shifts: list[float], rounds: list[NoisyRound], grid: np.ndarray) -> np.ndarray:
    """The law of a scalar model after the rounds, exactly up to the grid: w <- clip(0.9 w + 0.1 + shift) + noise."""
    step = grid[1] - grid[0]
    law = np.zeros_like(grid)
    law[np.abs(grid - start).argmin()] = 1 / step
    for shift, one in zip(shifts, rounds, strict=True):
        center = np.clip(0.9 * grid + 0.1 + shift, -one.radius, one.radius)
        kernel = norm.pdf(grid[:, None], center[None, :], one.std)
        law = kernel @ law * step
    return law


@pytest.mark.parametrize("pattern", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (1, 0, 1)])
def test_both_bounds_hold_for_exact_laws_of_a_scalar_model(pattern: tuple[int, ...]) -> None:
    grid = np.linspace(-5, 5, 501)
    step = grid[1] - grid[0]
    for size, std, radius in ((0.4, 0.5, 0.6), (0.2, 0.3, 2.0)):
        rounds = [NoisyRound(size * on, radius, std) for on in pattern]
        honest = density(0.2, [0.0] * 3, rounds, grid)
        for signs in itertools.product([-1, 1], repeat=3):
            shifts = [s * one.shift for s, one in zip(signs, rounds, strict=True)]
            attacked = density(0.2, shifts, rounds, grid)
            for p, q in ((honest, attacked), (attacked, honest)):
                measured = float(np.sum(q * np.log(np.maximum(q, 1e-300) / np.maximum(p, 1e-300))) * step)
                assert measured <= divergence(rounds) + 1e-9
            # Half lines are the sharpest events for such shifts.
            below_h, below_a = np.cumsum(honest) * step, np.cumsum(attacked) * step
            inner = (below_h > 1e-6) & (below_h < 1 - 1e-6)
            moved = np.abs(norm.ppf(below_a[inner]) - norm.ppf(below_h[inner]))
            assert moved.max() <= total_shift(rounds) + 1e-3


def test_one_attacked_round_attains_both() -> None:
    one = [NoisyRound(0.5, 10.0, 0.25)]
    assert total_shift(one) == 2.0
    assert divergence(one) == 2.0
    # A shift of more than the ball is wide is one across the ball.
    assert total_shift([NoisyRound(100.0, 1.0, 1.0)]) == 2.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 3), st.floats(0.1, 3)), min_size=1, max_size=6))
def test_bounds_grow_with_the_attack(given_rounds: list[tuple[float, ...]]) -> None:
    rounds = [NoisyRound(*one) for one in given_rounds]
    more = [NoisyRound(2 * shift, radius, std) for shift, radius, std in given_rounds]
    assert divergence(rounds) <= divergence(more)
    assert total_shift(rounds) <= total_shift(more)
    # Rest contracts the divergence, so that it can only be below that of one Gaussian shift.
    assert divergence(rounds) <= total_shift(rounds) ** 2 / 2 * (1 + 1e-12)


def test_noise_that_is_not_there_protects_nobody() -> None:
    assert divergence([NoisyRound(0.1, 1.0, 0.0)]) == math.inf
    assert total_shift([NoisyRound(0.1, 1.0, 0.0)]) == math.inf
    assert divergence([NoisyRound(0.0, 1.0, 0.0)]) == 0.0
    assert divergence([NoisyRound(0.1, 1.0, 1.0), NoisyRound(0.0, 1.0, 0.0)]) == pytest.approx(0.005)


def test_extreme_rounds_are_infinite_not_errors() -> None:
    assert (
        divergence([NoisyRound(1.0, 1e300, 1e-200)]) == total_shift([NoisyRound(math.inf, math.inf, 1.0)]) == math.inf
    )
    # Nothing contracts what is infinite.
    assert divergence([NoisyRound(1.0, 1.0, 0.0), NoisyRound(0.0, 1e-300, 1e300)]) == math.inf
    assert divergence([NoisyRound(1.0, math.inf, 1.0), NoisyRound(0.0, math.inf, 1.0)]) == 0.5
    assert mean_shift(math.inf, 1.0, 0, 10) == mean_shift(math.inf, 0.0, 1, 10) == 0.0
    assert mean_shift(math.inf, 1.0, 1, 10) == math.inf


def attacks(most: int, push: float, quiet: int = 0) -> list[list[NoisyRound]]:
    rest = [NoisyRound(0.0, 0.3, 1.0)] * quiet
    return [[NoisyRound(m * push, 5.0, 1.0), *rest] for m in range(most + 1)]


def test_certified_labels_by_hand() -> None:
    counts = [[1000, 0, 0], [900, 100, 0], [500, 450, 50]]
    found = certified_labels(counts, attacks(200, 0.01), alpha=0.003, joint=False)
    assert found.labels.tolist()[:2] == [0, 0]
    from bezoar.certify.votes import label_bounds

    least, most = label_bounds(np.array(counts), np.array([0, 0, 0]), 0.003, joint=False)
    for i in range(2):
        budget = (norm.ppf(least[i]) - norm.ppf(most[i].max())) / 2
        m = int(found.malicious[i])
        assert m * 0.01 < budget <= (m + 1) * 0.01 or m == 200
    assert found.labels[2] == found.malicious[2] == ABSTAINED
    assert found.confidence == 0.997


def test_rounds_of_rest_certify_more_through_the_divergence() -> None:
    counts = [[900, 100, 0]]
    short, long = (certified_labels(counts, attacks(300, 0.05, quiet)).malicious[0] for quiet in (0, 3))
    assert long > 1.5 * short > 0


def test_what_clipped_updates_can_do() -> None:
    rng = np.random.default_rng(0)
    n, radius, lr = 12, 0.8, 0.5
    rows = rng.normal(size=(n, 30))
    rows *= np.minimum(1, radius / np.linalg.norm(rows, axis=1))[:, None]
    for bad in (1, 3, 6):
        bound = mean_shift(radius, lr, bad, n)
        replaced = rows.copy()
        replaced[:bad] = -rows[:bad] / np.linalg.norm(rows[:bad], axis=1)[:, None] * radius
        assert lr * np.linalg.norm(replaced.mean(0) - rows.mean(0)) <= bound + 1e-12
        assert lr * np.linalg.norm(rows[bad:].mean(0) - rows.mean(0)) <= bound + 1e-12
    assert mean_shift(radius, lr, 50, n) == mean_shift(radius, lr, n, n) == pytest.approx(2 * radius * lr)
    aligned = np.tile([radius, 0.0], (n, 1))
    flipped = aligned.copy()
    flipped[:3] *= -1
    assert lr * np.linalg.norm(flipped.mean(0) - aligned.mean(0)) == pytest.approx(mean_shift(radius, lr, 3, n))


def test_the_published_radius_is_half_of_what_its_premise_gives() -> None:
    p_a, p_b, std, lipschitz, weights = 0.9, 0.05, 0.02, 3.0, [0.01, 0.01, 0.01]
    radius = published_radius(p_a, p_b, std=std, lipschitz=lipschitz, weights=weights)
    shift = 2 * radius * lipschitz * sum(weights)
    assert divergence([NoisyRound(shift, 100.0, std)]) == pytest.approx(float(label_divergence(p_a, p_b)))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: label_divergence(1.1, 0.0), r"\[0, 1\]"),
        (lambda: label_divergence(math.nan, 0.0), r"\[0, 1\]"),
        (lambda: distance_radius(0.9, 0.1, 0.0), "std"),
        (lambda: NoisyRound(-1.0, 1.0, 1.0), "shift >= 0"),
        (lambda: NoisyRound(math.nan, 1.0, 1.0), "shift >= 0"),
        (lambda: NoisyRound(1.0, 0.0, 1.0), "radius > 0"),
        (lambda: NoisyRound(1.0, 1.0, math.inf), "finite std"),
        (lambda: mean_shift(1.0, 1.0, 1, 0), "cohort"),
        (lambda: mean_shift(-1.0, 1.0, 1, 2), "radius"),
        (lambda: certified_labels([[3, 1]], []), "nobody attacks"),
        (lambda: certified_labels([[3, 1]], attacks(3, 0.1)[1:]), "nobody attacks"),
        (lambda: certified_labels([[3, 1]], [attacks(3, 0.1)[i] for i in (0, 2, 1)]), "no weaker"),
        (lambda: published_radius(0.9, 0.1, std=1.0, lipschitz=0.0, weights=[1.0]), "lipschitz"),
        (lambda: published_radius(0.9, 0.1, std=1.0, lipschitz=1.0, weights=[]), "weights"),
    ],
)
def test_bad_input(call: object, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        call()  # type: ignore[operator]


def test_nothing_is_certified_where_the_shares_do_not_differ() -> None:
    assert label_divergence([0.3, 0.5], [0.4, 0.5]).tolist() == [0.0, 0.0]
    assert distance_radius([0.3, 0.0, 1.0], [0.4, 0.0, 0.0], 1.0).tolist() == [0.0, 0.0, math.inf]
