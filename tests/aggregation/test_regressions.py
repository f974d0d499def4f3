"""Inputs that once gave a wrong answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bezoar.aggregation import (
    ARC,
    CVA,
    FABA,
    Bucketing,
    Clip,
    Context,
    DnC,
    FoolsGold,
    GeometricMedian,
    MeaMed,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    Rule,
    TrimmedMean,
)
from bezoar.certify import breakdown
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.updates import DenseUpdates, Mixed
from bezoar.updates.convert import as_updates


@pytest.mark.parametrize("n", [3, 6, 10, 25, 59])
def test_nothing_of_a_row_that_is_trimmed_whole_is_left(n: int) -> None:
    for f in range(1, (n - 1) // 2 + 1):
        values = torch.ones(n, 1)
        values[-f:] = 1e30
        for weight in (1.0, 20.0, 0.1):
            assert TrimmedMean(f=f, weighted=True)(values, weights=[weight] * n).item() == pytest.approx(1)


@pytest.mark.parametrize("rule", [Mean(weighted=True), TrimmedMean(f=1, weighted=True)], ids=repr)
def test_the_row_with_all_the_weight_is_excluded(rule: Rule) -> None:
    values = torch.tensor([[torch.nan, 1.0], [1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ConfigError, match="the clients that remain have no weight"):
        rule(values, weights=[1.0, 0.0, 0.0])


def test_a_client_that_claims_no_weight_at_all_is_excluded_and_counted() -> None:
    values = torch.arange(10.0).reshape(5, 2)
    for claim in (torch.nan, torch.inf, -1.0):
        context = Context(client_weights=torch.tensor([1.0, 1.0, claim, 1.0, 1.0]))
        answer = TrimmedMean(f=1, weighted=True).aggregate(values, context=context)
        assert list(answer.excluded) == [2]
        assert "claims a weight of" in answer.excluded[2]
        assert answer.vector.tolist() == values[[0, 1, 3, 4]].mean(0).tolist()
    with pytest.raises(HostileRowsError, match="2 of 5"):
        TrimmedMean(f=1, weighted=True)(values, weights=[1.0, -1.0, torch.nan, 1.0, 1.0])


@pytest.mark.parametrize(
    "rule",
    [
        Bucketing(s=1) >> Mean(weighted=True),
        Bucketing(s=2) >> MoNNA(f=1, trusted=0),
        Bucketing(s=2) >> FoolsGold(),
        Bucketing(s=2) >> CVA(f=1, pivot=FoolsGold()),
    ],
    ids=repr,
)
def test_rules_that_know_clients_do_not_follow_bucketing(rule: Rule) -> None:
    with pytest.raises(ConfigError, match="takes rows for clients"):
        rule.aggregate(torch.randn(8, 3), context=Context(client_weights=torch.ones(8)))


def test_scores_of_buckets_are_no_scores_of_clients() -> None:
    answer = (Bucketing(s=1) >> MultiKrum(f=1)).aggregate(torch.randn(8, 3))
    assert answer.selected is None
    assert answer.scores is None
    assert answer.weights.shape == (8,)


@pytest.mark.parametrize("mixing", [Clip(500.0), ARC(f=2)], ids=repr)
@pytest.mark.parametrize("d", [10, 1000])
def test_clipped_rows_that_nearly_coincide(mixing: Clip | ARC, d: int) -> None:
    draws = torch.Generator().manual_seed(1)
    for _ in range(30):
        base = torch.randn(d, generator=draws, dtype=torch.float64)
        base *= 1e3 / base.norm()
        values = (base + 1e-3 * torch.randn(11, d, generator=draws, dtype=torch.float64) / d**0.5).float()
        mixed = mixing(DenseUpdates(values))
        exact = mixed.matrix[:, None] * values.double()
        gaps = (exact[:, None] - exact[None]).square().sum(2)
        assert ((mixed.squared_distances() - gaps).abs() <= 1e-3 * gaps + 1e-12).all()


@pytest.mark.parametrize(
    "rule", [Mean(), TrimmedMean(f=0), TrimmedMean(f=5), MeaMed(f=5), Mean(weighted=True)], ids=repr
)
def test_many_clients_lose_no_digits(rule: Rule) -> None:
    n = 50000
    for value in (0.1, 1000.0):
        values = torch.full((n, 3), value)
        weights = torch.ones(n, dtype=torch.float64) if rule.weighted else None
        np.testing.assert_allclose(rule(values, weights=weights).numpy(), value, rtol=3e-6)
        if weights is None:
            np.testing.assert_allclose(rule(list(values[:5000])).numpy(), value, rtol=3e-6)


def test_another_type_does_not_split_the_majority() -> None:
    rows = [torch.zeros(3)] * 2 + [torch.ones(10)] * 2 + [torch.ones(10).double()]
    assert TrimmedMean(f=2)(rows).tolist() == [1.0] * 10
    answer = Mean().aggregate(rows)
    assert list(answer.excluded) == [0, 1]


def test_breakdown_does_not_promise_too_much() -> None:
    assert breakdown(DnC(f=2), 9) == 0
    assert breakdown(CVA(f=2, pivot=Mean()), 9) == 0
    assert breakdown(CVA(f=2, pivot=Median()), 9) == 4
    assert breakdown(MultiKrum(f=1, m=8), 9) == 1
    assert breakdown(MultiKrum(f=1), 9) == 3


def test_diagnostics_are_the_callers_own() -> None:
    rows = DenseUpdates(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    rule = MoNNA(f=1, trusted=0)
    first = rule.aggregate(rows)
    first.scores.mul_(-1)
    assert rule(rows).tolist() == first.vector.tolist()


def test_scales_of_rows_that_the_rule_excludes_are_no_clipping() -> None:
    answer = (Clip(50.0) >> FABA(f=1)).aggregate(torch.tensor([[1.0, 1.0]] * 7 + [[-4.0, -4.0]]))
    assert (answer.scales == 1).all()
    assert list(answer.excluded) == [7]


def test_arrays_are_shared_whatever_their_order() -> None:
    array = np.asfortranarray(np.random.default_rng(0).random((5, 7), dtype=np.float32))
    rows = as_updates(array)[0]
    assert isinstance(rows, DenseUpdates)
    assert rows.values.data_ptr() == array.ctypes.data
    np.testing.assert_array_equal(as_updates(array[::-1])[0].materialise().numpy(), array[::-1])
    scalar = Mean()([{"w": np.ones(2), "n": np.array(3.0)}] * 2)["n"]
    assert scalar.shape == ()
    mixed = [{"w": torch.ones(2), "n": torch.tensor(3.0)}] * 2 + [{"w": np.ones(2, "f4"), "n": np.array(3.0, "f4")}]
    assert Mean().aggregate(mixed).excluded == {}
    assert Mean()([{0: torch.ones(2)}] * 2)[0].tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="numbers that torch has"):
        Mean()(np.array([["a", "b"]]))


def test_a_subnormal_weight_breaks_no_cap() -> None:
    weights = torch.tensor([1.0, 1.0, 1e-310], dtype=torch.float64)
    assert float(Mean(weighted=True, cap=0.4)(torch.eye(3), weights=weights).sum()) == pytest.approx(1)


def test_selected_rows_keep_the_ids_they_were_given() -> None:
    ids = torch.tensor([7, 8, 9, 6, 5])
    mixed = Mixed(DenseUpdates(torch.ones(5, 2)), torch.ones(5), clients=ids)
    assert mixed.select(torch.tensor([0, 1])).clients.tolist() == [7, 8]


@pytest.mark.parametrize("spread", [0.0, 1e-16, 1e-14, 1e-12, 1e-10, 1e-9, 1e-8, 3e-8, 1e-7, 1e-6])
def test_geometric_median_does_not_stop_among_near_copies(spread: float) -> None:
    draws = torch.Generator().manual_seed(0)
    honest = torch.randn(11, 30, dtype=torch.float64, generator=draws)
    clique = torch.ones(3, 30, dtype=torch.float64) + spread * torch.randn(3, 30, dtype=torch.float64, generator=draws)
    rows = torch.cat([honest, clique])
    found = GeometricMedian()(rows)
    exact = GeometricMedian()(torch.cat([honest, torch.ones(3, 30, dtype=torch.float64)]))
    assert float((found - exact).norm()) < 1e-6 + 10 * spread
    assert float((rows - found).norm(dim=1).sum()) <= float((rows - exact).norm(dim=1).sum()) * (1 + 1e-9)
