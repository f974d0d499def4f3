from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import Clip, Context, Krum, Mean, TrimmedMean
from bezoar.aggregation._weights import client_shares
from bezoar.errors import ConfigError, HostileRowsError


def rows(n: int = 9, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e6), min_size=1, max_size=12), st.floats(0.05, 1))
def test_shares_add_up_and_keep_below_the_cap(weights: list[float], cap: float) -> None:
    if not any(weights):
        return
    shares = client_shares(torch.tensor(weights, dtype=torch.float64), cap)
    positive = sum(w > 0 for w in weights)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares.max()) <= max(cap, 1 / positive) * (1 + 1e-9)
    order = np.argsort(weights, kind="stable")
    assert (np.diff(shares.numpy()[order]) >= -1e-12).all()
    uncapped = client_shares(torch.tensor(weights, dtype=torch.float64), None)
    below = shares < cap * (1 - 1e-9)
    if below.sum() > 1 and (uncapped[below] > 0).all():
        ratio = shares[below] / uncapped[below]
        assert float(ratio.max()) == pytest.approx(float(ratio.min()))


def test_a_weight_of_two_is_two_rows_in_a_trimmed_mean() -> None:
    values = rows(7)
    twice = torch.cat([values, values[:2]])
    weights = [2, 2, 1, 1, 1, 1, 1]
    for f in range(4):
        # Nine equal rows with f trimmed at each end are the share f/9 of the weight.
        expected = TrimmedMean(f=f)(twice)
        trimmed = TrimmedMean(f=f, weighted=True)
        if f * 9 % 7 == 0:
            np.testing.assert_allclose(trimmed(values, weights=weights).numpy(), expected.numpy(), rtol=1e-9)
    equal = TrimmedMean(f=2, weighted=True)(values, weights=np.full(7, 3.0))
    np.testing.assert_allclose(equal.numpy(), TrimmedMean(f=2)(values).numpy(), rtol=1e-9)


def test_the_weighted_constant_holds() -> None:
    shares = torch.tensor([0.3, 0.25, 0.15, 0.1, 0.1, 0.1], dtype=torch.float64)
    rule = TrimmedMean(f=2, weighted=True)
    trim = 2 / 6
    worst = 0.0
    for bad in itertools.chain.from_iterable(itertools.combinations(range(6), k) for k in (1, 2, 3)):
        if float(shares[list(bad)].sum()) > trim + 1e-12:
            continue
        good = [i for i in range(6) if i not in bad]
        honest = shares[good] / shares[good].sum()
        bound = trim / (float(shares[good].sum()) - trim)
        for pattern in itertools.product([0.0, 1.0], repeat=len(good)):
            for evil in (-9.0, 9.0):
                values = torch.full((6, 1), evil, dtype=torch.float64)
                values[good, 0] = torch.tensor(pattern, dtype=torch.float64)
                mean = float((honest * values[good, 0]).sum())
                variance = float((honest * (values[good, 0] - mean) ** 2).sum())
                if variance > 1e-12:
                    ratio = (float(rule(values, weights=shares)) - mean) ** 2 / variance
                    worst = max(worst, ratio / bound)
    assert 0.3 < worst <= 1 + 1e-9


def test_excluded_rows_use_up_the_weight_they_held() -> None:
    values = rows(10, 1)
    values[7] = torch.nan
    values[8:] = 1e6
    weights = torch.full((10,), 0.1, dtype=torch.float64)
    weights[7], weights[8:] = 0.002, 0.149
    rule = TrimmedMean(f=3, weighted=True)
    answer = rule.aggregate(values, context=Context(client_weights=weights))
    assert list(answer.excluded) == [7]
    # Where the row is not excluded but trimmed, the same weight is cut off above, less is left below.
    values[7] = 1e6
    trimmed = rule(values, weights=weights)
    assert abs(float(answer.vector)) < 3
    assert abs(float(answer.vector) - float(trimmed)) < 0.1
    kept = [i for i in range(10) if i != 7]
    oracle = np.sort(np.repeat(values[kept, 0].numpy(), [round(1000 * w) for w in weights[kept].tolist()]))
    assert float(answer.vector) == pytest.approx(oracle[298:-298].mean(), rel=1e-6)


def test_excluded_rows_may_hold_no_more_than_is_tolerated() -> None:
    values = rows(6)
    values[1] = torch.nan
    with pytest.raises(HostileRowsError, match=r"hold 0\.952 of all weight, .* share f/n = 0\.167"):
        TrimmedMean(f=1, weighted=True)(values, weights=[1.0, 100.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "needs weights"),
        ([1.0, 2.0], r"client weights must be \[9\]"),
        ([0.0] * 9, "have no weight"),
    ],
)
def test_wrong_weights_are_refused(weights: list[float] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrimmedMean(f=1, weighted=True)(rows(), weights=weights)


def test_weights_for_a_rule_that_ignores_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not use client weights"):
        Krum(f=1)(rows(), weights=[1.0] * 9)
    with pytest.raises(ConfigError, match="weighted=True"):
        TrimmedMean(f=1)(rows(), weights=[1.0] * 9)
    with pytest.raises(ConfigError, match=r"cap=0\.2 limits client weights"):
        TrimmedMean(f=1, cap=0.2)
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        TrimmedMean(f=1, weighted=True, cap=1.5)


def test_weighted_mean() -> None:
    values = rows(4)
    weights = np.array([1.0, 2.0, 3.0, 2.0])
    answer = Mean(weighted=True)(values, weights=weights)
    np.testing.assert_allclose(answer.numpy(), np.average(values.numpy(), axis=0, weights=weights), rtol=1e-12)
    capped = Mean(weighted=True, cap=0.3)(values, weights=weights)
    shares = [1 / 8 * 0.7 / 0.625, 0.25 * 0.7 / 0.625, 0.3, 0.25 * 0.7 / 0.625]
    np.testing.assert_allclose(capped.numpy(), np.average(values.numpy(), axis=0, weights=shares), rtol=1e-12)
    values[2] = torch.inf
    answer = Mean(weighted=True).aggregate(values, context=Context(client_weights=torch.from_numpy(weights)))
    assert answer.weights.tolist() == [0.2, 0.4, 0.0, 0.4]
    assert answer.excluded == {2: "not finite"}


def test_a_cap_limits_a_liar() -> None:
    values = rows(9)
    values[0] = 100.0
    weights = [1e9] + [1.0] * 8
    pipeline = Clip(50.0) >> TrimmedMean(f=1, weighted=True, cap=1 / 9)
    plain = Clip(50.0) >> TrimmedMean(f=1)
    np.testing.assert_allclose(pipeline(values, weights=weights).numpy(), plain(values).numpy(), rtol=1e-9)
