from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bezoar.aggregation import Context
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.errors import ConfigError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cost(values: np.ndarray, z: np.ndarray, share: np.ndarray | None = None) -> float:
    gaps = np.sqrt(((values - z) ** 2).sum(1))
    return float(gaps.mean() if share is None else gaps @ share / share.sum())


def least_cost(values: np.ndarray, share: np.ndarray | None = None) -> float:
    """A lower bound is not at hand, but two independent searches and all rows are good upper ones."""
    starts = [values.mean(0), np.median(values, axis=0)]
    found = [minimize(lambda z: cost(values, z, share), z, method="BFGS", options={"gtol": 1e-10}).fun for z in starts]
    return min(*found, *(cost(values, row, share) for row in values))


def test_golden_vector() -> None:
    np.testing.assert_allclose(GeometricMedian()(GOLDEN.double()).numpy(), [2.020411, 1.945995], atol=1e-6)
    np.testing.assert_allclose(GeometricMedian()(GOLDEN).numpy(), [2.020411, 1.945995], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (3, 2), (4, 2), (9, 5), (12, 3), (40, 6)])
def test_no_point_has_a_smaller_sum_of_distances(n: int, d: int, scale: float) -> None:
    values = rows(n, d, seed=n)
    values[: n // 3] += 5
    answer = GeometricMedian()(values * scale).numpy() / scale
    assert cost(values.numpy(), answer) <= least_cost(values.numpy()) * (1 + 1e-10) + 1e-15


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_rows_that_are_medians_ties_and_copies(values: list[list[int]]) -> None:
    table = np.array(values, dtype=float)
    answer = GeometricMedian()(torch.tensor(table)).numpy()
    assert cost(table, answer) <= least_cost(table) * (1 + 1e-7) + 1e-12


def test_a_row_that_is_the_median_is_returned_exactly() -> None:
    cross = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.25, 0.125], [0.0, -1.0]])
    answer = GeometricMedian().aggregate(cross)
    assert answer.weights.tolist() == [0, 0, 0, 1, 0]
    assert answer.vector.tolist() == [0.25, 0.125]


def test_it_leaves_the_best_row_if_that_is_not_the_median() -> None:
    # Three corners of a triangle: the median is the Fermat point inside, no row.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
    np.testing.assert_allclose(GeometricMedian()(triangle).numpy(), [0.5, 3**0.5 / 6], atol=1e-8)


def test_on_a_line_it_is_the_median() -> None:
    for line in ([0.0, 1, 2, 10], [5.0, 0, 1], [0.0, 1], [3.0, 3, 3, 8, 9, 10], [0.0, 0, 1, 1]):
        values = torch.tensor(line, dtype=torch.float64)[:, None]
        order = torch.arange(len(line) - 1, -1, -1)
        assert GeometricMedian()(values).item() == pytest.approx(float(np.median(line)))
        assert GeometricMedian()(values[order]).item() == pytest.approx(float(np.median(line)))


def test_nearly_equal_rows_keep_their_digits() -> None:
    spread = rows(11, 20, seed=4)
    values = 1e3 + 1e-4 * spread
    table = (values - 1e3).numpy() * 1e4
    expected = GeometricMedian()(torch.tensor(table)).numpy()
    np.testing.assert_allclose((GeometricMedian()(values).numpy() - 1e3) * 1e4, expected, atol=1e-5)
    assert cost(table, expected) <= least_cost(table) * (1 + 1e-10)


@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_order_place_and_size_of_the_rows(seed: int) -> None:
    values, rule = rows(8, seed=seed), GeometricMedian()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(rows(5, 5, seed + 1)).Q
    expected = rule(values).numpy()
    for other in (rule(values[order]), rule(values + 3) - 3, rule(values * -7) / -7, turn @ rule(values @ turn)):
        np.testing.assert_allclose(other.numpy(), expected, atol=1e-6)


def test_client_weights() -> None:
    values = rows(7)
    counts = torch.tensor([1.0, 2, 0, 1, 3, 1, 1])
    rule = GeometricMedian(weighted=True)
    answer = rule(values, weights=counts)
    repeated = values.repeat_interleave(counts.long(), dim=0)
    np.testing.assert_allclose(answer.numpy(), GeometricMedian()(repeated).numpy(), atol=1e-7)
    context = Context(client_weights=counts * 1e-30)
    np.testing.assert_allclose(rule.aggregate(values, context=context).vector.numpy(), answer.numpy(), atol=1e-9)
    heavy = torch.tensor([1.0, 1, 9, 1, 1, 1, 1])
    assert rule(values, weights=heavy).tolist() == values[2].tolist()
    with pytest.raises(ConfigError, match="weights"):
        rule(values)
    with pytest.raises(ConfigError, match="does not use client weights"):
        GeometricMedian()(values, weights=counts)
    values[1] = float("nan")
    with pytest.raises(ConfigError, match="have no weight"):
        rule(values, weights=torch.tensor([0.0, 1, 0, 0, 0, 0, 0]))
    assert rule.constants(7, 1, 1) == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identical_rows_and_dtypes(dtype: torch.dtype) -> None:
    same = rows(1, dtype=torch.float32).to(dtype).expand(6, 5)
    answer = GeometricMedian()(same)
    assert answer.dtype == dtype
    assert torch.equal(answer, same[0])
    values = rows().to(dtype)
    before = values.clone()
    wide = GeometricMedian()(values.double())
    assert (GeometricMedian()(values).double() - wide).norm() <= (2e-2 if dtype.itemsize == 2 else 1e-5)
    assert torch.equal(values, before)


@pytest.mark.parametrize("evil", ["nan", "inf", "-inf", "1e30", "1e38", "1e6", "-1e3", "copy", "mirror"])
def test_four_of_nine_stay_within_the_constant(evil: str) -> None:
    values = rows(dtype=torch.float32) + 1
    honest = values[[0, 1, 3, 6, 8]].clone()
    values[[2, 4, 5, 7]] = honest[0] if evil == "copy" else -honest[0] if evil == "mirror" else float(evil)
    answer = GeometricMedian()(values)
    (kappa,) = GeometricMedian().constants(9, 4, 4)
    assert kappa.value == pytest.approx(100.0)
    spread = float((honest - honest.mean(0)).square().sum(1).mean())
    assert float((answer - honest.mean(0)).square().sum()) <= kappa.value * spread


def test_the_published_constant_holds_for_all_honest_sets() -> None:
    random, worst = np.random.default_rng(0), 0.0
    (kappa,) = GeometricMedian().constants(7, 2, 2)
    for _ in range(60):
        values = random.choice([0.0, 0.0, 1.0, 3.0], (7, 2))
        answer = GeometricMedian()(torch.tensor(values)).numpy()
        for honest in itertools.combinations(range(7), 5):
            inside = values[list(honest)]
            spread = float(((inside - inside.mean(0)) ** 2).sum(1).mean())
            worst = max(worst, float(((answer - inside.mean(0)) ** 2).sum()) / spread) if spread else worst
    assert 0.3 < worst <= kappa.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 1.0}, "tolerance must be"),
        ({"max_iterations": 0}, "max_iterations must be"),
        ({"smoothing": -1.0}, "smoothing must be"),
        ({"smoothing": float("nan")}, "smoothing must be"),
        ({"weighted": 1}, "weighted must be true or false"),
    ],
)
def test_wrong_parameters_say_what_would_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeometricMedian(**arguments)  # type: ignore[arg-type]
