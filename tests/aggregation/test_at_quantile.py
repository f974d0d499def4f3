"""Rules that are told f by a prior, and the mean with a prior's weights."""

from __future__ import annotations

import pytest
import torch

from bezoar.aggregation import CVA, NNM, RULES, AtQuantile, Mean, Median, PriorMean, TrimmedMean
from bezoar.aggregation.at_quantile import declaring
from bezoar.certify import expected_loss, kappa
from bezoar.errors import ConfigError
from bezoar.priors import Explicit, Groups, Independent, Subsets
from bezoar.updates import DenseUpdates

PRIOR = Groups((4, 2, 2, 2), p=(0.02, 0.2, 0.2, 0.2))


def rows(n: int = 10) -> torch.Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2, 0.6])
def test_every_part_gets_the_quantile(delta: float) -> None:
    f = PRIOR.f_quantile(delta)
    law = PRIOR.bad_count()
    assert law[: f + 1].sum() >= 1 - delta > law[:f].sum()
    for base, wanted in (
        (TrimmedMean(f=0), TrimmedMean(f=f)),
        (NNM(f=1) >> TrimmedMean(f=0), NNM(f=f) >> TrimmedMean(f=f)),
        (CVA(f=0, pivot=TrimmedMean(f=1)), CVA(f=f, pivot=TrimmedMean(f=f))),
    ):
        rule = AtQuantile(PRIOR, base, delta=delta)
        if f > 4:
            with pytest.raises(ConfigError, match="clip=True"):
                rule(rows())
            clipped = AtQuantile(PRIOR, base, delta=delta, clip=True)
            assert torch.equal(clipped(rows()), declaring(wanted, 4)(rows()))
            continue
        assert torch.equal(rule(rows()), wanted(rows()))
        assert rule.tolerated == f
        assert kappa(rule, 10) == kappa(wanted, 10)


def test_cohorts_and_unusable_rows() -> None:
    rule = AtQuantile(PRIOR, TrimmedMean(f=0), delta=0.05)
    ids = torch.tensor([4, 5, 6, 7, 8, 9])
    part = PRIOR.among(ids.tolist())
    f = min(part.f_quantile(0.05), 2)
    clipped = AtQuantile(PRIOR, TrimmedMean(f=0), delta=0.05, clip=True)
    wanted = TrimmedMean(f=f)(rows(6))
    assert torch.equal(clipped.aggregate(DenseUpdates(rows(6), ids)).vector, wanted)
    values = rows()
    values[2] = torch.inf
    answer = rule.aggregate(values)
    assert set(answer.excluded) == {2}
    kept = torch.cat([values[:2], values[3:]])
    assert torch.equal(answer.vector, TrimmedMean(f=PRIOR.f_quantile(0.05) - 1)(kept))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no f"):
        AtQuantile(PRIOR, Median())
    with pytest.raises(ConfigError, match="needs a prior"):
        AtQuantile()(rows())
    with pytest.raises(ConfigError, match="delta"):
        AtQuantile(PRIOR, delta=2.0)
    rule = RULES.build(
        {"kind": "chance-constrained", "base": [{"kind": "nnm", "f": 0}, {"kind": "trimmed-mean", "f": 0}]}
    )
    assert RULES.build(RULES.table(rule)) == rule


def test_prior_weights() -> None:
    weights = torch.from_numpy(PRIOR.weights().copy())
    torch.testing.assert_close(PriorMean(PRIOR)(rows()), weights @ rows())
    torch.testing.assert_close(PriorMean(Subsets(3, clients=10))(rows()), Mean()(rows()))
    values = rows()
    values[0] = torch.nan
    known = torch.from_numpy(PRIOR.given_bad([0]).weights().copy())
    torch.testing.assert_close(PriorMean(PRIOR)(values), known[1:] @ values[1:])
    ids = torch.tensor([9, 0, 5])
    own = torch.from_numpy(PRIOR.among([9, 0, 5]).weights().copy())
    torch.testing.assert_close(PriorMean(PRIOR).aggregate(DenseUpdates(rows(3), ids)).vector, own @ rows(3))
    assert kappa(PriorMean(Independent(0.1)), n=5, f=0) == 0


def test_descent_along_the_prior_mean_minimises_the_expected_loss() -> None:
    prior = Explicit(4, bad=((), (0, 1), (2,)), p=(0.5, 0.3, 0.2))
    centres, curvatures = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None]
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(400):
        theta = theta - 0.3 * PriorMean(prior)(curvatures * (theta - centres))
    w = torch.from_numpy(prior.weights().copy())[:, None] * curvatures
    best = (w * centres).sum(0) / w.sum()
    torch.testing.assert_close(theta, best)

    def loss(at: torch.Tensor) -> float:
        return expected_loss((curvatures[:, 0] / 2 * (at - centres).square().sum(1)).numpy(), prior)

    assert all(loss(theta) <= loss(theta + 0.01 * step) for step in torch.eye(3, dtype=torch.float64))
