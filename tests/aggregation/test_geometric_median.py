from __future__ import annotations

import itertools
from typing import Any

import mpmath
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


def certified(values: np.ndarray, start: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """The median to 20 digits or more: Kuhn's condition for a row, or a gradient of at most 1e-25, prove it.

    Newton's steps in the space of the columns with 50 digits. ``start`` saves time; where it leads to does not
    depend on it, as the sum of distances is convex.
    """
    with mpmath.workdps(50):
        d = values.shape[1]
        points = [mpmath.matrix([mpmath.mpf(float(v)) for v in row]) for row in values]
        mass = [mpmath.mpf(float(v)) for v in (np.ones(len(values)) if share is None else share)]
        mass = [a / sum(mass) for a in mass]

        def total(z: Any) -> Any:
            return sum(a * mpmath.norm(z - x) for a, x in zip(mass, points, strict=True))

        best = min(points, key=total)
        pull, own = mpmath.matrix(d, 1), mpmath.mpf(0)
        for a, x in zip(mass, points, strict=True):
            if mpmath.norm(x - best) > 0:
                pull += (x - best) * (a / mpmath.norm(x - best))
            else:
                own += a
        if mpmath.norm(pull) <= own:
            return np.array([float(v) for v in best])
        z, t = mpmath.matrix([mpmath.mpf(float(v)) for v in start]), mpmath.mpf(1)
        while not total(z) < total(best):
            z, t = best + pull * t, t / 2
        for _ in range(200):
            gradient, hessian = mpmath.matrix(d, 1), mpmath.matrix(d, d)
            for a, x in zip(mass, points, strict=True):
                away = mpmath.norm(z - x)
                gradient += (z - x) * (a / away)
                hessian += (mpmath.eye(d) - (z - x) * (z - x).T / away**2) * (a / away)
            if mpmath.norm(gradient) <= mpmath.mpf(10) ** -25:
                return np.array([float(v) for v in z])
            step, t = mpmath.lu_solve(hessian, -gradient), mpmath.mpf(1)
            while total(z + step * t) > total(z) + (gradient.T * step)[0] * t / 10:
                t /= 2
            z += step * t
    raise AssertionError("the reference did not converge")


def off(values: np.ndarray, share: np.ndarray | None = None) -> float:
    """How far the answer is from the median, as a share of the median distance of the rows from it."""
    weights = None if share is None else torch.tensor(share)
    answer = GeometricMedian(weighted=share is not None)(torch.tensor(values), weights=weights).numpy()
    expected = certified(values, answer, share)
    gaps = np.linalg.norm(values - expected, axis=1)
    return float(np.linalg.norm(answer - expected) / np.median(gaps[gaps > 0]))


def test_it_does_not_stop_where_two_kinds_of_steps_differ_in_size() -> None:
    values = np.array(
        [
            [-0.16659299645723083, 0.001864967882820993],
            [1.229789455277151, 0.000648324377002746],
            [-2.5178930424594927, -0.00074867455830049],
            [0.9555763907297471, -0.0004564912516335859],
        ]
    )
    np.testing.assert_allclose(GeometricMedian()(torch.tensor(values)).numpy(), [0.544926, 0.000393], atol=1e-6)
    assert off(values) < 1e-8


def test_it_gets_there_where_thousands_of_weiszfelds_steps_do_not() -> None:
    values = np.array([[1.1, -0.03], [0.46, 0.01], [-0.45, 0.09], [-0.49, 0.1]])
    np.testing.assert_allclose(GeometricMedian()(torch.tensor(values)).numpy(), [-0.0914, 0.0622], atol=1e-4)
    assert off(values) < 1e-8


@pytest.mark.parametrize("far", [1e3, 1e4, 1e5])
def test_copies_and_outliers_do_not_set_the_scale(far: float) -> None:
    values = np.array(
        [[0.0, 0]] * 3 + [[1, 0], [-0.6, 0.8]] + [[far, 0.0], [0, far], [0.3 * far, far], [far, far]], dtype=float
    )
    if far == 1e5:
        np.testing.assert_allclose(GeometricMedian()(torch.tensor(values)).numpy(), [0.372338, 0.479896], atol=1e-6)
    assert off(values) < 1e-8
    for seed in range(8):
        table = np.random.default_rng(seed).standard_normal((11, 3))
        table[1:3] = table[0]
        table[7:] *= far
        assert off(table) < 1e-8


def test_it_is_the_median_of_few_gaussian_rows() -> None:
    assert max(off(np.random.default_rng(seed).standard_normal((4, 2))) for seed in range(200)) < 1e-8


@pytest.mark.parametrize("width", [3e-2, 1e-2, 1e-3, 1e-4])
def test_it_is_the_median_of_nearly_collinear_rows(width: float) -> None:
    for seed in range(15):
        random = np.random.default_rng(seed)
        n = int(random.integers(4, 11))
        values = np.stack([random.standard_normal(n), width * random.standard_normal(n)], axis=1)
        assert off(values) < (1e-8 if width > 1e-4 else 1e-6)


def test_it_is_the_median_of_weighted_rows_of_clusters_and_near_or_on_a_row() -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        values = random.standard_normal((8, 3))
        assert off(values, random.exponential(size=8) ** 3) < 1e-8
        values[4:] += 1e3
        assert off(values) < 1e-8
        assert off(values * 10.0 ** random.integers(-5, 1, size=(8, 1))) < 1e-8
    for gap in (1e-2, 1e-4, 1e-6):
        # The pull of both others on row 0 has 1 + gap times its own weight; then 1 - gap times.
        for sign in (1, -1):
            along = (1 + sign * gap) / 2
            across = (1 - along**2) ** 0.5
            values = np.array([[0, 0], [along, across], [2 * along, -2 * across]])
            assert off(values) < 2e-8
            assert (GeometricMedian().aggregate(torch.tensor(values)).weights[0] == 1) == (sign < 0)


def test_the_weights_are_those_that_the_distances_imply() -> None:
    values = rows(12, 4)
    values[3] = values[5]
    answer = GeometricMedian().aggregate(values)
    pull = 1 / (values - answer.vector).norm(dim=1)
    np.testing.assert_allclose(answer.weights.numpy(), (pull / pull.sum()).numpy(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_on_a_line_that_are_medians_up_to_rounding_are_averaged(dtype: torch.dtype) -> None:
    for seed, d in itertools.product(range(20), (7, 1000)):
        along = rows(1, d, seed)[0].to(dtype)
        line = torch.tensor([-1, 1, 2, 7, 8, 9], dtype=dtype)[:, None] * along
        np.testing.assert_allclose(GeometricMedian()(line).numpy(), 4.5 * along.numpy(), rtol=1e-5)


def test_many_rows() -> None:
    values = rows(1000, 20)
    values[:300] *= 1e3
    answer = GeometricMedian()(values)
    away = values - answer
    assert float((away / away.norm(dim=1, keepdim=True)).mean(0).norm()) < 1e-12


def test_few_iterations_give_the_best_point_so_far() -> None:
    values = rows(9, 2)
    sums = [cost(values.numpy(), GeometricMedian(max_iterations=m)(values).numpy()) for m in (1, 2, 3, 20)]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] < min(cost(values.numpy(), row) for row in values.numpy())


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
