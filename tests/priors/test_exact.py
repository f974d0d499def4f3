"""Every kind of prior against all its sets, enumerated from the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import ConfigError
from bezoar.priors import (
    PRIORS,
    Count,
    Explicit,
    Groups,
    HonestPrior,
    Independent,
    Ising,
    KnownBad,
    Mixture,
    Subsets,
    contaminated,
)
from tests.priors.oracle import law

RATES = (0.1, 0.5, 0.9, 0.02, 0.3, 0.7, 0.15)
RING = tuple((i, (i + 1) % 7, 0.3 + 0.1 * i) for i in range(7))
CHAIN = ((0, 1, 0.4), (1, 2, 0.8), (1, 3, 1.5), (4, 5, 0.2))
PAIRS: list[HonestPrior] = [
    Independent(RATES),
    Independent(0.3, 7),
    Independent((0.0, 1.0, 0.5, 0.0, 0.2, 1.0, 0.9)),
    Independent(RATES, at_most=2),
    Independent(0.2, 8, "minority"),
    Independent((0.0, 1.0, 0.5, 0.25), at_most=2),
    Independent((0.95, 0.9, 0.99, 0.8, 0.9), at_most=1),
    Subsets(3, 8),
    Subsets(0, 5),
    Count((0.4, 0.0, 0.35, 0.25), 6),
    Count((0.1, 0.2, 0.3, 0.4), 3),
    Groups((3, 1, 2), (0.2, 0.5, 0.9)),
    Groups((3, 1, 2), (0.2, 0.0, 1.0), 0.4),
    Groups(labels=("a", "b", "a", "c", "b", "a"), p=(0.2, 0.5, 0.9), within=(0.3, 1.0, 0.0)),
    Explicit(5, ((), (0, 1), (0, 1, 2, 3, 4), (3,)), (0.5, 0.2, 0.2, 0.1)),
    Ising(RATES, CHAIN),
    Ising(RATES, RING),
    Ising(RATES, ((0, 1, -0.7), (1, 2, 0.7), (2, 0, -0.2)), repulsive=True),
    Ising(fields=(0.2, -0.4, 3.0, 0.0), edges=((0, 1, 2.0), (2, 3, 0.5))),
    Mixture((Groups((2, 3), 0.5), Subsets(2, 5), Independent(0.3, 5)), (0.5, 0.2, 0.3)),
    contaminated(Groups((2, 3), (0.2, 0.6))),
    KnownBad(Independent((0.1, 0.4, 0.8)), (1, 4)),
]


@pytest.mark.parametrize("prior", PAIRS, ids=lambda prior: type(prior).__name__)
def test_all_questions_agree_with_enumeration(prior: HonestPrior) -> None:
    sets, p = law(prior)
    n = sets.shape[1]
    assert np.exp(prior.log_prob(sets)) == pytest.approx(p, rel=1e-12, abs=1e-13)
    assert prior.log_prob(np.zeros(n, dtype=bool)) == -math.inf
    assert prior.weights() == pytest.approx((p / sets.sum(1)) @ sets, abs=1e-12)
    assert prior.weights().sum() == pytest.approx(1, abs=1e-12)
    counts = np.bincount(n - sets.sum(1), p, n + 1)
    assert prior.bad_count() == pytest.approx(counts, abs=1e-12)
    for delta in (0.0, 0.01, 0.3):
        family = prior.support(delta)
        assert len(np.unique(family.honest, axis=0)) == len(family)
        chances = np.exp(family.log_prob)
        assert chances == pytest.approx(np.exp(prior.log_prob(family.honest)), rel=1e-12)
        best = np.cumsum(np.sort(p)[::-1])
        # As few sets as any family of this mass, and the likeliest first.
        assert len(family) == ((p > 0).sum() if delta == 0 else np.searchsorted(best, (1 - delta) * (1 - 1e-11)) + 1)
        assert family.mass == pytest.approx(best[len(family) - 1], abs=1e-12)
        assert (np.diff(chances) <= 1e-9).all()
        assert (family.honest == prior.support(delta).honest).all()
    assert prior.f_quantile(0.1) == int(np.searchsorted(np.cumsum(counts), 0.9 - 1e-12))
    assert prior.breakdown_probability(1) == pytest.approx(counts[2:].sum(), abs=1e-12)


@pytest.mark.parametrize("prior", PAIRS, ids=lambda prior: type(prior).__name__)
def test_cohorts_and_known_bad_clients_agree_with_enumeration(prior: HonestPrior) -> None:
    sets, p = law(prior)
    n = sets.shape[1]
    for ids in ([2, 0], [1], list(range(n))[::-1], [0, 1, n - 1]):
        part, some = sets[:, ids], sets[:, ids].any(1)
        if not p[some].sum() > 0:
            with pytest.raises(ConfigError):
                prior.among(ids).weights()
            continue
        inner = prior.among(ids)
        expected = (p[some] / p[some].sum() / part[some].sum(1)) @ part[some]
        assert inner.n == len(ids)
        assert inner.weights() == pytest.approx(expected, abs=1e-11), ids
    for ids in ([0], [n - 1, 1]):
        possible = ~sets[:, ids].any(1)
        if not p[possible].sum() > 0:
            with pytest.raises(ConfigError):
                prior.given_bad(ids).weights()
            continue
        known = prior.given_bad(ids)
        expected = p * possible / p[possible].sum()
        assert known.n == n
        assert np.exp(known.log_prob(sets)) == pytest.approx(expected, abs=1e-11), ids
        assert known.weights() == pytest.approx((expected / sets.sum(1)) @ sets, abs=1e-11)
        assert known.given_bad(ids).weights() == pytest.approx(known.weights(), abs=1e-11)


@pytest.mark.parametrize("prior", PAIRS, ids=lambda prior: type(prior).__name__)
def test_draws_have_the_probabilities_that_are_told(prior: HonestPrior) -> None:
    sets, p = law(prior)
    times = 20_000
    drawn = prior.sample(times, seed=3)
    assert (drawn == prior.sample(times, seed=3)).all()
    assert drawn.any(1).all()
    code = 2 ** np.arange(sets.shape[1])[::-1]
    seen = np.bincount(drawn @ code, minlength=len(sets) + 1)[1:]
    assert not seen[p == 0].any()
    often = p * times >= 5
    statistic = ((seen - times * p)[often] ** 2 / (times * p[often])).sum()
    freedom = max(1, int(often.sum()) - 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("prior", PAIRS, ids=lambda prior: type(prior).__name__)
def test_tables_round_trip(prior: HonestPrior) -> None:
    assert PRIORS.build(PRIORS.table(prior)) == prior


def test_values_of_the_formulas() -> None:
    assert Groups((2, 1), 0.5).weights() == pytest.approx([5 / 18, 5 / 18, 4 / 9], abs=1e-15)
    assert Independent((0.5, 0.5)).weights() == pytest.approx([0.5, 0.5], abs=1e-15)
    chain = Ising(0.3, tuple((i, i + 1, 0.4) for i in range(7)), clients=8)
    sets, p = law(chain)
    assert chain.weights() == pytest.approx((p / sets.sum(1)) @ sets, abs=1e-15)


def test_no_coupling_is_independence() -> None:
    edges = ((0, 1, 0.0), (1, 2, 0.0))
    free = Ising((0.1, 0.5, 0.9), edges)
    assert free.bad_rates() == pytest.approx([0.1, 0.5, 0.9], abs=1e-15)
    assert Ising.calibrated((0.1, 0.5, 0.9), edges).bad_rates() == pytest.approx([0.1, 0.5, 0.9], abs=1e-15)
    assert free.weights() == pytest.approx(Independent((0.1, 0.5, 0.9)).weights(), abs=1e-14)


rate = st.floats(0.0, 1.0)
inner = st.floats(0.01, 0.99)


@settings(deadline=None, max_examples=40)
@given(st.lists(rate, min_size=1, max_size=7), st.integers(0, 7))
def test_any_rates(p: list[float], most: int) -> None:
    prior = Independent(tuple(p), at_most=most)
    try:
        sets, chances = prior.support().honest, np.exp(prior.support().log_prob)
    except ConfigError:
        return
    assert prior.weights() == pytest.approx((chances / sets.sum(1)) @ sets, rel=1e-9, abs=1e-12)
    assert prior.weights().sum() == pytest.approx(1, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_graph(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 7))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    edges = tuple(
        (i, j, data.draw(st.floats(0, 3))) for i, j in data.draw(st.lists(st.sampled_from(pairs), unique=True))
    )
    prior = Ising(tuple(data.draw(inner) for _ in range(n)), edges)
    sets, p = law(prior)
    assert prior.weights() == pytest.approx((p / sets.sum(1)) @ sets, abs=1e-11)
    assert prior.bad_count() == pytest.approx(np.bincount(n - sets.sum(1), p, n + 1), abs=1e-11)


def test_far_beyond_enumeration() -> None:
    rates = tuple(np.linspace(0.0, 0.04, 60).tolist())
    family = Independent(rates).support(0.2)
    assert family.mass >= 0.8 > family.mass - np.exp(family.log_prob[-1])
    assert (np.diff(family.log_prob) <= 1e-12).all()
    assert len(np.unique(family.honest, axis=0)) == len(family)
    # All sets with up to one bad client are in it that are likelier than its last.
    single = ~np.eye(60, dtype=bool)
    inside = {row.tobytes() for row in family.honest}
    for row, log in zip(single, Independent(rates).log_prob(single), strict=True):
        assert (row.tobytes() in inside) or log <= family.log_prob[-1] + 1e-12
    sites = Groups((4,) * 30, 0.01)
    assert sites.support(0.01).n == 120
    assert sites.support(0.01).mass >= 0.99
    assert len(Subsets(2, 100).support()) == 4950
    mixed = contaminated(Groups((10,) * 4, 0.05), p0=0.001).support(0.05)
    assert mixed.mass >= 0.95
    assert mixed.mass - np.exp(mixed.log_prob[-1]) < 0.95


@pytest.mark.parametrize(
    ("prior", "delta", "says"),
    [
        (Independent(0.3, 200), 0.1, r"about .* sets are needed"),
        (Independent(0.3, 200), 0.0, r"1.61e\+60 sets"),
        (Subsets(50, 200), 0.1, r"sets are needed"),
        (Ising(0.3, tuple((i, i + 1, 0.4) for i in range(29)), clients=30), 0.1, "tree of 30"),
    ],
)
def test_too_many_sets_says_how_many(prior: HonestPrior, delta: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prior.support(delta)


def test_many_clients_stay_exact() -> None:
    # A tree is the law of its edges: with all alike, leaves and sums must agree with the small formula's symmetries.
    n = 400
    weights = Ising(0.2, tuple((0, i, 0.3) for i in range(1, n)), clients=n).weights()
    assert weights.sum() == pytest.approx(1, abs=1e-11)
    assert np.ptp(weights[1:]) < 1e-15
    assert Independent(0.3, 2000).weights() == pytest.approx(np.full(2000, 1 / 2000), rel=1e-11)
    assert Groups((1,) * 300, 0.3).weights() == pytest.approx(Independent(0.3, 300).weights(), rel=1e-12)
    few = Independent(tuple(np.linspace(0, 1, 300).tolist()), at_most=140)
    assert few.weights().sum() == pytest.approx(1, abs=1e-11)
    chances: Any = few.bad_count()
    assert chances[141:].sum() == 0
    assert chances.sum() == pytest.approx(1, abs=1e-12)
