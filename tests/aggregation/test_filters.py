from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Mean, Rule
from bezoar.aggregation.bayes_mean import BayesMean
from bezoar.aggregation.caf import CAF
from bezoar.aggregation.faba import FABA
from bezoar.aggregation.filter_l2 import FilterL2
from bezoar.aggregation.nearest import CVA, MoNNA
from bezoar.errors import ConfigError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

RULES: list[Rule] = [CAF(f=2), FilterL2(f=2), FilterL2(f=2, sigma=0.3), FABA(f=2), BayesMean()]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def top(values: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Mean, largest eigenvalue and projections of the rows with weights c, from the d x d covariance."""
    mean = c @ values / c.sum()
    centred = values - mean
    eigenvalues, vectors = np.linalg.eigh((centred.T * c) @ centred / c.sum())
    return mean, float(eigenvalues[-1]), (centred @ vectors[:, -1]) ** 2


def caf_oracle(values: np.ndarray, f: int) -> np.ndarray:
    c, best, least = np.ones(len(values)), values.mean(0), math.inf
    while c.sum() > len(values) - 2 * f:
        mean, value, tau = top(values, c)
        if value < least:
            best, least = mean, value
        if value == 0:
            break
        c = c * np.maximum(1 - tau / tau[c > 0].max(), 0)
    return best


def filter_oracle(values: np.ndarray, f: int, sigma: float | None) -> np.ndarray:
    if sigma is None:
        gaps = ((values[:, None] - values[None]) ** 2).sum(-1)
        centre = np.argmin(np.sort(gaps, axis=1)[:, (len(values) - 1) // 2])
        near = values[np.argsort(gaps[centre], kind="stable")[: len(values) - f]]
        sigma = top(near, np.ones(len(near)))[1]
    left, c = values, np.ones(len(values))
    for _ in range(2 * f):
        _, value, tau = top(left, c)
        if value**2 <= 20 * sigma**2:
            break
        worst = int(np.argmax(tau))
        c = np.delete(c * (1 - tau / tau[worst]), worst)
        left = np.delete(left, worst, axis=0)
    return c @ left / c.sum()


def faba_oracle(values: np.ndarray, f: int) -> np.ndarray:
    for _ in range(f):
        gaps = ((values - values.mean(0)) ** 2).sum(1)
        values = np.delete(values, int(np.argmax(gaps)), axis=0)
    return values.mean(0)


def bayes_oracle(values: np.ndarray) -> np.ndarray:
    gaps = ((values[:, None] - values[None]) ** 2).sum(-1)
    theta = values[np.argmin(np.sort(gaps, axis=1)[:, (len(values) - 1) // 2])]
    first = variance = np.sort(((values - theta) ** 2).sum(1))[len(values) // 2]
    epsilon = 0.05
    for _ in range(100):
        e = np.exp(-((values - theta) ** 2).sum(1) / (2 * variance))
        pi = e / (epsilon / (1 - epsilon) + e)
        epsilon = min(1 - pi.mean(), 0.5)
        theta = pi @ values / pi.sum()
        variance = max(pi @ ((values - theta) ** 2).sum(1) / pi.sum(), first / 2)
    return theta


def close(answer: torch.Tensor, expected: np.ndarray, scale: float = 1.0, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(answer.double().numpy() / scale, expected, rtol=tolerance, atol=tolerance)


def test_golden_vectors() -> None:
    for values in (GOLDEN, GOLDEN.double()):
        np.testing.assert_allclose(CAF(f=1)(values).numpy(), [2.000793, 1.999128], rtol=1e-6)
        np.testing.assert_allclose(FABA(f=1)(values).numpy(), [2, 2], rtol=1e-6)
        np.testing.assert_allclose(FilterL2(f=1)(values).numpy(), [2.000793, 1.999128], rtol=1e-6)
    assert set(CAF(f=1).aggregate(GOLDEN).excluded) == {4}
    assert set(FABA(f=1).aggregate(GOLDEN).excluded) == {4}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("n", "f"), [(1, 0), (3, 1), (4, 1), (9, 2), (12, 5), (40, 12)])
def test_rules_agree_with_plain_oracles(n: int, f: int, scale: float) -> None:
    for seed, d in ((n, 3), (n + 1, 7)):
        values = rows(n, d, seed)
        values[: f // 2] += 4
        table = values.numpy()
        values = values * scale
        close(CAF(f=f)(values), caf_oracle(table, f), scale, 1e-6)
        close(FilterL2(f=f)(values), filter_oracle(table, f, None), scale, 1e-6)
        close(FilterL2(f=f, sigma=0.2 * scale**2)(values), filter_oracle(table, f, 0.2), scale, 1e-6)
        close(FABA(f=min(f, (n - 1) // 3))(values), faba_oracle(table, min(f, (n - 1) // 3)), scale)
        if n > 1:
            close(BayesMean()(values), bayes_oracle(table), scale, 1e-4)


def test_nearly_equal_rows_keep_their_digits() -> None:
    spread = rows(11, 20, seed=4)
    spread[:2] += 3
    values = 1e3 + 1e-4 * spread
    table = (values - 1e3).numpy() * 1e4
    close((CAF(f=2)(values) - 1e3) * 1e4, caf_oracle(table, 2), tolerance=1e-5)
    close((FABA(f=2)(values) - 1e3) * 1e4, faba_oracle(table, 2), tolerance=1e-5)
    close((FilterL2(f=2)(values) - 1e3) * 1e4, filter_oracle(table, 2, None), tolerance=1e-5)
    close((BayesMean()(values) - 1e3) * 1e4, bayes_oracle(table), tolerance=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=10), st.integers(0, 4))
@settings(deadline=None)
def test_ties_and_copies_stay_inside_the_rows(values: list[list[int]], f: int) -> None:
    table = torch.tensor(values, dtype=torch.float64)
    n = len(values)
    # In whole numbers, so that ties are ties.
    left = np.array(values)
    for _ in range(min(f, (n - 1) // 3)):
        gaps = ((len(left) * left - left.sum(0)) ** 2).sum(1)
        left = np.delete(left, int(np.argmax(gaps)), axis=0)
    close(FABA(f=min(f, (n - 1) // 3))(table), left.mean(0))
    f = min(f, (n - 1) // 2)
    for rule in (CAF(f=f), FilterL2(f=f), FilterL2(f=f, sigma=0.0), BayesMean()):
        answer = rule.aggregate(table)
        assert answer.weights is not None
        assert (answer.weights >= 0).all()
        assert float(answer.weights.sum()) == pytest.approx(1.0)
        close(answer.vector, answer.weights.numpy() @ table.numpy())


@rules
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_order_place_and_size_of_the_rows(rule: Rule, seed: int) -> None:
    values = rows(seed=seed)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    expected = rule(values).numpy()
    close(rule(values[order]), expected, tolerance=1e-5)
    close(rule(values + 3.0) - 3.0, expected, tolerance=1e-5)
    if rule != FilterL2(f=2, sigma=0.3):
        close(rule(values * -8.0) / -8.0, expected, tolerance=1e-5)


@pytest.mark.parametrize("rule", [CAF(f=0), FilterL2(f=0), FABA(f=0)], ids=repr)
def test_f_zero_is_the_mean(rule: Rule) -> None:
    close(rule(rows()), Mean()(rows()).numpy())
    assert rule(rows(1)).tolist() == rows(1)[0].tolist()


@rules
def test_identical_rows_and_dtypes(rule: Rule) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        same = rows(1, dtype=torch.float32).to(dtype).expand(9, 5)
        answer = rule(same)
        assert answer.dtype == dtype
        close(answer, same[0].double().numpy(), tolerance=1e-2 if dtype.itemsize == 2 else 1e-6)
        values = rows().to(dtype)
        before = values.clone()
        close(rule(values), rule(values.double()).numpy(), tolerance=2e-2 if dtype.itemsize == 2 else 1e-3)
        assert torch.equal(values, before)


@rules
@pytest.mark.parametrize("evil", ["nan", "inf", "-inf", "1e30", "1e38", "1e6", "30", "copy", "mirror"])
def test_two_of_nine_can_not_break_it(rule: Rule, evil: str) -> None:
    values = rows(dtype=torch.float32) + 1
    honest = values[[0, 1, 3, 4, 6, 7, 8]].clone()
    values[[2, 5]] = honest[0] if evil == "copy" else -honest[0] if evil == "mirror" else float(evil)
    answer = rule.aggregate(values)
    assert torch.isfinite(answer.vector).all()
    assert (answer.vector - honest.mean(0)).norm() <= 1.5 * (honest - honest.mean(0)).norm(dim=1).max()
    if evil not in ("copy", "mirror"):
        assert float(answer.weights[[2, 5]].abs().max()) < 1e-3
        if not isinstance(rule, BayesMean) or evil in ("nan", "inf"):
            assert {2, 5} <= set(answer.excluded)


def test_one_step_of_the_filter_is_bounded_by_sigma() -> None:
    values = rows(12, 4)
    assert FilterL2(f=3, sigma=1e9).aggregate(values).excluded == {}
    close(FilterL2(f=3, sigma=1e9)(values), Mean()(values).numpy())
    assert len(FilterL2(f=3, sigma=1e-9).aggregate(values).excluded) == 6


def test_the_bayes_mean_of_a_tied_majority_is_that_majority() -> None:
    values = rows(9)
    values[[1, 3, 4, 6, 8]] = values[1].clone()
    answer = BayesMean().aggregate(values)
    assert answer.vector.tolist() == values[1].tolist()
    assert answer.scores.tolist() == [0, 1, 0, 1, 1, 0, 1, 0, 1]
    # No more than half: the others count.
    pair = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    assert 0 < BayesMean()(pair).item() < 3
    assert BayesMean()(torch.tensor([[0.0], [1.0]])).item() == pytest.approx(0.5, abs=0.35)


def test_the_bayes_mean_does_not_shrink_to_one_row() -> None:
    weights = BayesMean().aggregate(rows(30, 200)).weights
    assert float(weights.max()) < 1.5 / 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.1, 1 / 3, 0.7, 1.0])
def test_ties_up_to_rounding_go_to_the_lowest_row(dtype: torch.dtype, size: float) -> None:
    # All rows are equally far from each other and from their median.
    table = (torch.eye(8, dtype=torch.float64) * size).to(dtype)
    dropped = FABA(f=2).aggregate(table)
    assert list(dropped.excluded) == [0, 1]
    assert dropped.selected.tolist() == [False] * 2 + [True] * 6
    assert CVA(f=3).aggregate(table).selected.tolist() == [True] * 5 + [False] * 3
    assert MoNNA(f=3, trusted=6).aggregate(table).selected.nonzero().flatten().tolist() == [0, 1, 2, 3, 6]


def test_what_differs_by_more_than_rounding_is_no_tie() -> None:
    for dtype, gap in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        table = torch.eye(8, dtype=torch.float64)
        table[5] *= 1 + gap
        assert list(FABA(f=1).aggregate(table.to(dtype)).excluded) == [5]
        table[5] *= (1 - gap) / (1 + gap)
        near = MoNNA(f=3, trusted=7).aggregate(table.to(dtype)).selected.nonzero().flatten().tolist()
        assert near == [0, 1, 2, 5, 7]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FABA(f=3)(rows(9)), "f must be between 0 and 2"),
        (lambda: CAF(f=5)(rows(9)), "f must be between 0 and 4"),
        (lambda: FilterL2(f=1, sigma=-1.0), "sigma must be a number >= 0"),
        (lambda: FilterL2(f=1, sigma=float("nan")), "sigma must be a number >= 0"),
        (lambda: BayesMean(tolerance=-1), "tolerance must be"),
        (lambda: BayesMean(max_iterations=0), "max_iterations must be"),
    ],
)
def test_wrong_parameters_say_what_would_fit(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
