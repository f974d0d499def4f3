"""The trimmed mean with weights of least conditional value at risk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Mean, PriorTrimmedMean, TrimmedMean, pipeline, pipeline_tables
from bezoar.certify import family_constants
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.priors import Explicit, Family, Groups, Independent
from bezoar.priors.cvar import cvar_weights, quantile


def cvar(w: np.ndarray, family: Family, delta: float) -> float:
    """Conditional value at risk by its definition: the mean over the worst share delta of all cases."""
    held = ~family.honest @ w
    order = np.argsort(-held)
    p = np.exp(family.log_prob)[order]
    p /= p.sum()
    taken = np.diff(np.minimum(np.cumsum(p), delta), prepend=0.0)
    return float(taken @ held[order]) / delta


def objective(w: np.ndarray, family: Family, delta: float, eta: float) -> float:
    return cvar(w, family, delta) + eta * float(((w - 1 / len(w)) ** 2).sum())


def test_a_planted_optimum() -> None:
    # One of three groups is bad: the least that a bad group can hold is a third, whatever the groups' sizes.
    cases = Explicit(20, (tuple(range(12)), tuple(range(12, 16)), tuple(range(16, 20))), (0.2, 0.3, 0.5)).support()
    w = cvar_weights(cases, 0.1)
    assert [float(w[:12].sum()), float(w[12:16].sum()), float(w[16:].sum())] == pytest.approx([1 / 3] * 3)
    # With a penalty, the weights within a group are equal.
    spread = cvar_weights(cases, 0.1, 0.5)
    assert spread[:12] == pytest.approx(np.full(12, 1 / 36), abs=1e-3)
    # One client that is never bad takes all, unless that is penalised.
    trusted = Explicit(4, ((), (1, 2), (3,)), (0.5, 0.3, 0.2)).support()
    assert cvar_weights(trusted, 0.1) == pytest.approx([1, 0, 0, 0])
    assert cvar_weights(trusted, 0.1, 1e4) == pytest.approx([0.25] * 4, abs=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.3, 3.0])
def test_no_weights_near_or_far_do_better(eta: float) -> None:
    draws = np.random.default_rng(1)
    for _ in range(6):
        n, delta = int(draws.integers(2, 9)), float(draws.uniform(0.02, 0.6))
        cases = Family.uniform(np.unique(draws.random((12, n)) < 0.7, axis=0)[1:])
        w = cvar_weights(cases, delta, eta)
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        best = objective(w, cases, delta, eta)
        for other in draws.dirichlet(np.ones(n), 200):
            for share in (1.0, 0.1, 0.001):
                assert objective((1 - share) * w + share * other, cases, delta, eta) >= best - 1e-6


def test_large_groups_that_fall_together_weigh_less() -> None:
    rule = PriorTrimmedMean(Groups((12, *[1] * 8), p=0.1), delta=0.05, eta=0.1)
    w, phi = rule.weighting(20)
    assert w[:12].mean() < 0.2 * w[12:].mean()
    assert phi < 0.5
    # A plain trimmed mean would have to trim twelve of twenty.
    values = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:12] = 1e6
    assert float(rule(values).abs().max()) < 4
    assert rule.weighting(20)[0] is w


def test_the_share_is_what_bad_clients_hold_but_for_delta() -> None:
    prior = Independent(tuple(np.linspace(0.01, 0.3, 30).tolist()))
    rule = PriorTrimmedMean(prior, delta=0.1)
    w, phi = rule.weighting(30)
    held = ~prior.sample(20000, 77) @ w
    assert (held > phi).mean() == pytest.approx(0.1, abs=0.03)
    assert w[:5].mean() > w[-5:].mean()
    assert quantile(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.5, 0.4]), 0.1) == 2.0
    assert quantile(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.5, 0.4]), 0.0) == 3.0


def test_equal_weights_are_the_trimmed_mean() -> None:
    n, f = 9, 2
    cases = Explicit(n, tuple((i, (i + 1) % n) for i in range(n)), (1 / n,) * n)
    rule = PriorTrimmedMean(cases, delta=0.01, eta=100.0)
    w, _ = rule.weighting(n)
    assert w == pytest.approx(np.full(n, 1 / n), abs=1e-4)
    values = torch.randn(n, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rule(values), TrimmedMean(f=f)(values), atol=1e-3, rtol=0)
    assert family_constants(rule, cases.support()) == pytest.approx(f / (n - 2 * f), abs=5e-3)
    everyone = Family.uniform(np.ones((1, n), dtype=np.bool_))
    assert family_constants(rule, everyone) == pytest.approx(f / (n - f), abs=5e-3)


def test_the_constants_hold_for_weighted_and_plain_means_and_are_infinite_beyond_phi() -> None:
    draws = np.random.default_rng(4)
    largest = 0.0
    for _ in range(25):
        n = int(draws.integers(4, 9))
        bad = {tuple(sorted(draws.permutation(n)[: draws.integers(0, n // 2)].tolist())) for _ in range(3)}
        cases = Explicit(n, tuple(sorted(bad)), (1 / len(bad),) * len(bad))
        rule = PriorTrimmedMean(cases, delta=0.001, eta=float(draws.random()))
        w, phi = rule.weighting(n)
        if phi >= 0.5:
            continue
        sets = cases.support()
        limits = family_constants(rule, sets)
        assert np.isfinite(limits).all()
        for _ in range(40):
            values = draws.integers(-1, 2, (n, 3)) * 10.0 ** draws.integers(0, 5, (n, 1)) + draws.normal(size=(n, 3))
            answer = rule(torch.from_numpy(values)).numpy()
            for honest, limit in zip(sets.honest, limits, strict=True):
                own = values[honest]
                error = float(((answer - own.mean(0)) ** 2).sum())
                assert error <= limit * float(own.var(0).sum()) * (1 + 1e-9) + 1e-18
                if limit:
                    largest = max(largest, error / (limit * float(own.var(0).sum())))
                share = w[honest] / w[honest].sum()
                mean = share @ own
                spread = float((share @ (own - mean) ** 2).sum())
                promised = phi / (w[honest].sum() - phi)
                assert float(((answer - mean) ** 2).sum()) <= promised * spread * (1 + 1e-9) + 1e-18
    assert largest > 0.3
    far = Family.uniform(np.array([[True] + [False] * 8]))
    assert family_constants(PriorTrimmedMean(Explicit(9, ((8,),), (1.0,))), far).tolist() == [math.inf]


def test_unusable_rows_use_up_the_weight_they_held() -> None:
    prior = Explicit(5, ((), (3, 4)), (0.5, 0.5))
    rule = PriorTrimmedMean(prior, eta=1.0)
    w, phi = rule.weighting(5)
    assert phi == pytest.approx(w[3] + w[4])
    values = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[3:] = torch.nan
    # All that may be trimmed is gone: the weighted mean of the others.
    torch.testing.assert_close(rule(values), values[:3].mean(0), atol=2e-3, rtol=0)
    values[0] = torch.nan
    with pytest.raises(HostileRowsError, match=r"clients \[0, 3, 4\] hold .* more than phi"):
        rule(values)


def test_bad_input() -> None:
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="PriorTrimmedMean needs a prior"):
        PriorTrimmedMean()(values)
    with pytest.raises(ConfigError, match="half of it or more can not be trimmed: raise delta"):
        PriorTrimmedMean(Independent(0.6))(values)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"delta": 0.0}, "delta must be"),
        ({"delta": math.nan}, "delta must be"),
        ({"eta": -1.0}, "eta must be"),
        ({"eta": math.inf}, "eta must be"),
        ({"draws": 0}, "draws must be"),
        ({"prior": Mean()}, "prior must be"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            PriorTrimmedMean(**options)
    for delta, eta in ((0.0, 0.0), (2.0, 0.0), (0.1, -1.0), (0.1, math.nan)):
        with pytest.raises(ConfigError):
            cvar_weights(Family.uniform(np.ones((1, 2), dtype=np.bool_)), delta, eta)
    rule = pipeline({"kind": "prior-trimmed-mean", "prior": {"kind": "groups", "sizes": [12, 8], "p": 0.1}})
    assert pipeline(pipeline_tables(rule)) == rule
