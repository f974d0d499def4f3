"""Expected guarantees by enumeration, and against quadratic tasks with attackers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import NNM, SIP, AtQuantile, GeometricMedian, Mean, PriorMean, TrimmedMean
from bezoar.certify import (
    Frontier,
    Looks,
    Reading,
    best_f,
    dilemma,
    expected_guarantee,
    family_constants,
    frontiers,
    kappa,
    learning_floor,
)
from bezoar.certify.expected import bound
from bezoar.certify.frontier import without_noise
from bezoar.errors import ConfigError
from bezoar.priors import Explicit, Family, Groups, HonestPrior, Independent, Ising, Subsets

GROUPS = Groups((3, 2, 2, 2), p=(0.1, 0.2, 0.2, 0.2))


def brute(rule: Any, prior: HonestPrior, g: Any, b: Any, mu: float | None) -> tuple[float, float]:
    family = prior.support()
    value = breakdown = 0.0
    for mask, p in zip(family.honest, np.exp(family.log_prob), strict=True):
        k = float(family_constants(rule.given(prior), Family.uniform(mask[None]))[0])
        size, slope = (x(mask) if callable(x) else x for x in (g, b))
        if k * slope**2 < 1 and math.isfinite(k):
            value += p * k * size**2 / (1 - k * slope**2) / (1 if mu is None else 2 * mu)
        else:
            breakdown += p
    return value, breakdown


@pytest.mark.parametrize("mu", [None, 0.3])
@pytest.mark.parametrize("prior", [GROUPS, Independent(0.15, clients=9), Groups((3, 3, 3), 0.2, 0.5)], ids=repr)
@pytest.mark.parametrize(
    "rule",
    [TrimmedMean(f=3), NNM(f=2) >> TrimmedMean(f=2), GeometricMedian(), Mean(), AtQuantile(clip=True)],
    ids=repr,
)
def test_numbers_by_the_law_of_the_number_of_bad_clients(rule: Any, prior: HonestPrior, mu: float | None) -> None:
    for b in (0.0, 0.9):
        found = expected_guarantee(rule, prior, g=1.7, b=b, mu=mu)
        value, breakdown = brute(rule, prior, 1.7, b, mu)
        assert found.value == pytest.approx(value, rel=1e-9, abs=1e-15)
        assert found.breakdown == pytest.approx(breakdown, abs=1e-12)
        assert found.half_width == 0
        assert found.reading is Reading.R1
        assert sum(row[1] for row in found.rows) == pytest.approx(1)


def test_functions_of_the_set_and_rules_for_the_priors_own_sets() -> None:
    def g(mask: Any) -> float:
        return float(1 + mask[0] + 0.5 * mask.sum())

    def b(mask: Any) -> float:
        return 0.3 * float(mask[1])

    for rule in (TrimmedMean(f=3), SIP(base=Mean())):
        found = expected_guarantee(rule, GROUPS if isinstance(rule, TrimmedMean) else _one_group(), g, b, mu=0.5)
        value, breakdown = brute(rule, GROUPS if isinstance(rule, TrimmedMean) else _one_group(), g, b, 0.5)
        assert found.value == pytest.approx(value, rel=1e-9)
        assert found.breakdown == pytest.approx(breakdown, abs=1e-12)
    # SIP serves every candidate, also a majority; a threshold rule does not.
    prior = _one_group()
    assert expected_guarantee(SIP(base=Mean()), prior, 1.0, mu=0.5).breakdown == 0
    assert expected_guarantee(TrimmedMean(f=4), prior, 1.0, mu=0.5).breakdown == pytest.approx(0.2)


def _one_group() -> Explicit:
    return Explicit(9, bad=((), (0, 1, 2, 3, 4), (5, 6), (7, 8)), p=(0.5, 0.2, 0.2, 0.1))


def test_draws_agree_with_the_list_within_their_interval_and_say_what_they_missed() -> None:
    ring = tuple((i, (i + 1) % 24, 0.2) for i in range(24)) + tuple((i, (i + 7) % 24, 0.2) for i in range(24))
    prior = Ising(p=0.1, edges=ring, clients=24, sweeps=20)
    found = expected_guarantee(TrimmedMean(f=6), prior, lambda mask: 1.0 + float(mask[0]), mu=0.5, draws=600, seed=1)
    again = expected_guarantee(TrimmedMean(f=6), prior, lambda mask: 1.0 + float(mask[0]), mu=0.5, draws=600, seed=1)
    assert found == again
    assert found.half_width > 0
    # Independent clients of the same size can be listed by number; draws must come near.
    easy = Independent(0.1, clients=24)
    exact = expected_guarantee(TrimmedMean(f=6), easy, 1.0, mu=0.5)
    drawn = expected_guarantee(TrimmedMean(f=6), easy, lambda mask: 1.0, mu=0.5, draws=600, seed=3)
    # Each number of bad clients has draws and its own probability: nothing is left to chance but G.
    assert drawn.unseen == 0
    assert drawn.value == pytest.approx(exact.value, rel=1e-12)
    assert drawn.breakdown == pytest.approx(exact.breakdown, rel=1e-9)
    assert drawn.breakdown_half_width == 0


def test_intervals_hold_what_repeated_draws_show() -> None:
    """Also where the law of the number of bad clients is not known, so that it is part of what is uncertain."""
    ring = tuple((i, (i + 1) % 24, 0.2) for i in range(24)) + tuple((i, (i + 7) % 24, 0.2) for i in range(24))
    for prior, size in (
        (Ising(p=0.1, edges=ring, clients=24, sweeps=20), lambda mask: 1.0),
        (Independent(0.1, clients=24), _size),
    ):
        found = [
            expected_guarantee(TrimmedMean(f=4), prior, size, mu=0.5, draws=200, seed=seed)  # type: ignore[arg-type]
            for seed in range(40)
        ]
        values = [one.value for one in found]
        assert np.mean([one.half_width for one in found]) == pytest.approx(1.96 * np.std(values), rel=0.4)
        inside = [abs(one.value - np.mean(values)) <= one.half_width for one in found]
        assert np.mean(inside) >= 0.8
    linked = Ising(p=0.1, edges=ring, clients=24, sweeps=20)
    chosen = best_f(TrimmedMean, linked, 2.0, 1.0, draws=200)
    bad = np.sort((~linked.sample(200, 0)).sum(1))
    assert chosen.quantile == bad[189]
    few = expected_guarantee(TrimmedMean(f=11), Ising(p=0.01, edges=ring, clients=24, sweeps=20), 1.0, mu=0.5, draws=50)
    assert few.breakdown == 0 or few.breakdown_half_width > 0
    sure = expected_guarantee(
        TrimmedMean(f=11), Ising(p=0.001, edges=ring, clients=24, sweeps=20), _size, mu=0.5, draws=50
    )
    assert (sure.breakdown, sure.breakdown_half_width) == (0, 3 / 50)


def _size(mask: Any) -> float:
    return 1.0 + float(mask[0]) + float(mask[5])


def test_the_prior_weighted_mean_promises_something_where_nobody_is_bad() -> None:
    weights = GROUPS.weights()
    found = expected_guarantee(PriorMean(), GROUPS, g=2.0, mu=0.5)
    nobody = GROUPS.bad_count()[0]
    assert found.value == pytest.approx(nobody * (9 * (weights**2).sum() - 1) * 4)
    assert found.breakdown == pytest.approx(1 - nobody)
    # Rows that lie as the weights do attain the constant.
    rows = torch.from_numpy(weights)[:, None]
    off = float(PriorMean(GROUPS)(rows)) - float(rows.mean())
    assert off**2 == pytest.approx(kappa(PriorMean(GROUPS), 9, f=0) * float(rows.var(correction=0)))
    assert expected_guarantee(PriorMean(), Subsets(0, clients=9), g=2.0, mu=0.5).value == 0


def test_correlation_enters_the_breakdown_probability() -> None:
    """The same rate for each client: groups of four break a rule that independent clients hardly ever break."""
    apart = expected_guarantee(TrimmedMean(f=6), Independent(0.1, clients=20), 1.0, mu=0.5)
    together = expected_guarantee(TrimmedMean(f=6), Groups((4,) * 5, p=0.1), 1.0, mu=0.5)
    assert apart.breakdown < 0.003 < 0.08 < together.breakdown
    assert apart.given > 0


def test_the_f_that_promises_most() -> None:
    prior = Groups((4,) * 5, p=0.1)
    found = best_f(TrimmedMean, prior, cost=10.0, g=1.0, mu=0.5)
    totals = {f: total for f, _, _, total in found.curve}
    for f, total in totals.items():
        value, breakdown = brute(TrimmedMean(f=f), prior, 1.0, 0.0, 0.5)
        assert total == pytest.approx(value + 10 * breakdown)
    assert totals[found.f] == min(totals.values())
    # Between two numbers of bad clients that occur, a larger f only costs.
    assert found.f in (0, 4, 8)
    assert found.quantile == 8
    assert best_f(TrimmedMean, prior, cost=0.01, g=1.0, mu=0.5).f == 0


def test_frontiers_from_grams_are_those_of_the_gradients() -> None:
    draws = np.random.default_rng(0)
    gradients = draws.normal(size=(5, 7, 11)) + draws.normal(size=(5, 1, 11))
    honest = np.array([[True] * 7, [True, False] * 3 + [True], [False] * 6 + [True]])
    grams = gradients @ gradients.transpose(0, 2, 1)
    for mask, found in zip(honest, frontiers(grams, honest), strict=True):
        own = gradients[:, mask]
        np.testing.assert_allclose(found.gradients, (own.mean(1) ** 2).sum(1), rtol=1e-9)
        np.testing.assert_allclose(found.variances, ((own - own.mean(1, keepdims=True)) ** 2).sum(2).mean(1), atol=1e-9)
        squares = [found.squared(b) for b in np.sqrt(np.linspace(0, 4, 30))]
        assert (np.diff(squares) <= 1e-12).all()
        assert (np.diff(squares, 2) >= -1e-9).all()
        best = found.best(0.3, mu=0.7)
        assert best is not None
        grid = [bound(0.3, found.squared(b) ** 0.5, b, 0.7) for b in np.sqrt(np.linspace(0, 3.3, 4000))]
        assert best.value <= min(grid) * (1 + 1e-9)


def test_looks_are_a_function_that_gives_frontiers() -> None:
    draws = np.random.default_rng(3)
    gradients = draws.normal(size=(6, 9, 4)) + 2 * draws.normal(size=(6, 1, 4))
    looks = Looks(gradients @ gradients.transpose(0, 2, 1))
    for rule in (TrimmedMean(f=3), SIP(delta=0.2, base=Mean())):
        fast = expected_guarantee(rule, GROUPS, looks, mu=0.5)
        slow = expected_guarantee(rule, GROUPS, lambda mask: looks(mask), mu=0.5)
        assert fast == slow
    # Sets may have been looked at a different number of times.
    short = expected_guarantee(TrimmedMean(f=3), GROUPS, lambda mask: _first(looks(mask), 6 - int(mask[0])), mu=0.5)
    assert 0 < short.value <= expected_guarantee(TrimmedMean(f=3), GROUPS, looks, mu=0.5).value


def _first(look: Frontier, count: int) -> Frontier:
    return Frontier(look.variances[:count], look.gradients[:count])


def test_minibatch_noise_is_subtracted() -> None:
    draws = np.random.default_rng(1)
    true = draws.normal(size=(6, 40))
    wanted = ((true - true.mean(0)) ** 2).sum(1).mean()
    seen = []
    for _ in range(4000):
        noisy = true + 0.5 * draws.normal(size=true.shape)
        seen.append(((noisy - noisy.mean(0)) ** 2).sum(1).mean())
    found = without_noise(np.array([np.mean(seen)]), np.array([0.25 * 40]), 6)[0]
    assert found == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("b", [0.0, 0.5])
def test_the_lower_bound_is_met(b: float) -> None:
    """On the dilemma the trimmed mean ends where it is promised to, and no algorithm can do better for both stories."""
    n, f, g, mu = 10, 3, 2.0, 0.5
    task = dilemma(n, f, g, b, mu)
    prior = Subsets(f, clients=n)
    found = expected_guarantee(TrimmedMean(f=f), prior, g=g, b=b, mu=mu)
    # The published floor is half of this one.
    assert found.value == pytest.approx(learning_floor(n, f, g, b, mu))
    assert found.breakdown == 0
    theta = 3.0
    for _ in range(400):
        theta -= 0.5 / mu * float(TrimmedMean(f=f)(task.gradients(theta)))
    # The attackers of a story are the honest clients of the other one: they send their true gradients.
    assert task.excess(theta) == pytest.approx(found.value, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["far", "alie", "flip", "random"]), st.booleans())
def test_the_theorem_with_its_constants(seed: int, q: int, attack: str, flat: bool) -> None:
    """Both claims in full, optimisation terms included, on quadratics with different curvatures in each direction."""
    n, f, d, rounds = 9, 3, 3, 30
    draws = np.random.default_rng(seed)
    curvatures, centres = draws.uniform(0.3, 2.0, (n, d)), draws.normal(size=(n, d))
    honest = np.arange(n) >= q
    mean = curvatures[honest].mean(0)
    best = (curvatures * centres)[honest].mean(0) / mean
    smooth, convex = float(mean.max()), float(mean.min())
    rule, step = TrimmedMean(f=f), 1 / smooth

    def excess(theta: Any) -> float:
        return float(mean @ (theta - best) ** 2) / 2

    theta = best + draws.normal(size=d) * (0.01 if flat else 3.0)
    start, grams, squares = excess(theta), [], []
    for _ in range(rounds):
        rows = curvatures * (theta - centres)
        grams.append(rows @ rows.T)
        good = rows[honest]
        squares.append(float((good.mean(0) ** 2).sum()))
        sent = {
            "far": np.full((q, d), 1e3),
            "alie": np.repeat((good.mean(0) + 1.2 * good.std(0))[None], q, 0),
            "flip": np.repeat(-2 * good.mean(0)[None], q, 0),
            "random": draws.normal(size=(q, d)),
        }[attack]
        theta = theta - step * rule(torch.from_numpy(np.concatenate([sent, good]))).numpy()
    look = frontiers(np.stack(grams), honest[None])[0]
    k = kappa(rule, n, q=q)
    for b in (0.0, 0.3, 0.6):
        c = 1 - k * b * b
        left = bound(k, look.squared(b) ** 0.5, b, convex)
        assert excess(theta) <= (1 - step * convex * c) ** rounds * start + left + 1e-12
        residual = bound(k, look.squared(b) ** 0.5, b)
        assert np.mean(squares) <= 2 * start / (step * c * rounds) + residual + 1e-12


def test_robust_descent_on_quadratics_stays_below_the_expected_bound() -> None:
    """Every S trained anew with attackers; gradients of the run itself give (G_S, B_S)."""
    n, d, rounds = 9, 4, 300
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(n, d, generator=draws, dtype=torch.float64)
    rule = TrimmedMean(f=3)
    family = GROUPS.support()
    measured = promised = 0.0
    for mask, p in zip(family.honest, np.exp(family.log_prob), strict=True):
        good = torch.from_numpy(mask)
        if (~good).sum() > 3:
            continue
        theta, grams = torch.zeros(d, dtype=torch.float64), []
        for _ in range(rounds):
            rows = theta - centres
            grams.append((rows @ rows.T).numpy())
            honest = rows[good]
            rows = rows.clone()
            rows[~good] = honest.mean(0) + 1.5 * honest.std(0, correction=0)
            theta = theta - 0.5 * rule(rows)
        optimum = centres[good].mean(0)
        excess = 0.5 * float((theta - optimum).square().sum())
        best = frontiers(np.stack(grams), mask[None])[0].best(kappa(rule, n, q=int((~good).sum())), mu=1.0)
        assert best is not None
        assert excess <= best.value + 1e-9
        measured += p * excess
        promised += p * best.value
    assert 0 < measured <= promised


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_guarantee(Mean(), Independent(0.1), 1.0), "of how many clients"),
        (lambda: expected_guarantee(Mean(), GROUPS, -1.0), "g must be finite"),
        (lambda: expected_guarantee(Mean(), GROUPS, 1.0, b=math.inf), "b must be finite"),
        (lambda: expected_guarantee(Mean(), GROUPS, 1.0, mu=0.0), "mu must be"),
        (lambda: expected_guarantee(TrimmedMean(f=5), GROUPS, 1.0), "f=5 is out of range"),
        (lambda: best_f(TrimmedMean, GROUPS, cost=math.nan, g=1.0), "cost must be"),
        (lambda: best_f(TrimmedMean, GROUPS, cost=1.0, g=1.0, fs=[7]), "works with no f"),
        (lambda: frontiers(np.zeros((2, 3, 3)), np.ones((1, 4), dtype=bool)), "need Gram matrices"),
        (lambda: frontiers(np.zeros((2, 3, 3)), np.zeros((1, 3), dtype=bool)), "empty"),
        (lambda: expected_guarantee(Mean(), GROUPS, lambda mask: math.nan), "g of the set"),
        (lambda: expected_guarantee(Mean(), GROUPS, 1.0, lambda mask: -1.0), "b of the set .* must be finite"),
        (lambda: expected_guarantee(Mean(), GROUPS, _sometimes), "frontiers for all sets or for none"),
        (lambda: Looks(np.zeros((0, 3, 3))), "needs Gram matrices"),
        (lambda: Looks(np.full((1, 3, 3), math.nan)), "diverge"),
        (lambda: expected_guarantee(Mean(), GROUPS, Looks(np.zeros((2, 3, 3)))), "sets of 9 clients"),
        (lambda: Frontier(np.array([1.0, math.inf]), np.zeros(2)), "diverge"),
    ],
)
def test_nonsense_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def _sometimes(mask: Any) -> Any:
    return Frontier(np.ones(1), np.ones(1)) if mask[0] else 1.0
