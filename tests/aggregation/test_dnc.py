from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation.base import Context
from bezoar.aggregation.dnc import DnC
from bezoar.errors import ConfigError
from bezoar.updates.dense import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def rows(n: int = 9, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(values: np.ndarray, f: int, c: float = 1.0) -> np.ndarray:
    """All coordinates, one iteration, by a singular value decomposition."""
    centred = values - values.mean(0)
    direction = np.linalg.svd(centred)[2][0]
    scores = (centred @ direction) ** 2
    keep = np.argsort(scores, kind="stable")[: len(values) - math.floor(c * f + 0.5)]
    return values[np.sort(keep)].mean(0)


def test_golden() -> None:
    answer = DnC(f=1).aggregate(GOLDEN)
    assert answer.vector.tolist() == [2.0, 2.0]
    assert list(answer.excluded) == [4]
    assert answer.selected.tolist() == [True] * 4 + [False]
    scores = (GOLDEN.double() - GOLDEN.double().mean(0)).numpy()
    expected = (scores @ np.linalg.svd(scores)[2][0]) ** 2
    np.testing.assert_allclose(answer.scores.numpy(), expected, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 2, 5, 8, 9, 40]),
    d=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
)
def test_agrees_with_a_singular_value_decomposition(n: int, d: int, seed: int, size: float) -> None:
    values = rows(n, d, seed)
    for f in {0, (n - 1) // 4, (n - 1) // 2}:
        expected = oracle(values.numpy(), f)
        np.testing.assert_allclose(DnC(f)(values * size).numpy() / size, expected, rtol=1e-9, atol=1e-9)


def test_sees_the_spread_of_rows_that_nearly_coincide() -> None:
    start, gaps = rows(1, 50, 1), rows(11, 50, 2)
    gaps[3] *= 20
    values = 1e3 * start / start.norm() + 1e-4 * gaps
    answer = DnC(f=1).aggregate(values)
    assert list(answer.excluded) == [3]
    np.testing.assert_allclose(answer.vector.numpy(), oracle(values.numpy(), 1), rtol=1e-13)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permutation_and_translation(seed: int) -> None:
    values, shift = rows(seed=seed), rows(1, seed=seed + 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    rule = DnC(f=2, iterations=3, columns=4)
    np.testing.assert_allclose(rule(values[order]).numpy(), rule(values).numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(rule(values + shift).numpy(), (rule(values) + shift[0]).numpy(), rtol=1e-9, atol=1e-11)


def test_f_zero_is_the_mean_and_identical_rows_give_that_row() -> None:
    values = rows()
    np.testing.assert_allclose(DnC(f=0)(values).numpy(), values.mean(0).numpy(), rtol=1e-12)
    same = values[:1].expand(7, -1)
    np.testing.assert_allclose(DnC(f=3, iterations=4)(same).numpy(), values[0].numpy(), rtol=1e-14)
    assert DnC(f=0)(values[:1]).tolist() == values[0].tolist()
    # Ties go to the lowest row.
    assert DnC(f=3).aggregate(same).selected.tolist() == [True] * 4 + [False] * 3


def test_an_empty_intersection_keeps_the_rows_kept_most_often() -> None:
    # Every column has an outlier of its own; one column an iteration drops three rows each time.
    values = 0.01 * rows(7, 12, 3)
    for column in range(12):
        for k in range(3):
            values[(column + 2 * k) % 7, column] = 50.0 + column
    for seed in range(20):
        rule = DnC(f=3, iterations=40, columns=1, seed=seed)
        answer = rule.aggregate(values)
        assert answer.selected.any()
        assert torch.isfinite(answer.vector).all()
    few = DnC(f=3, iterations=1, columns=1).aggregate(values).selected.sum()
    assert int(few) == 4
    assert int(answer.selected.sum()) < 4


def test_samples_only_the_columns_it_says_and_depends_on_seed_and_round() -> None:
    asked: list[list[int]] = []

    class Watched(DenseUpdates):
        def columns(self, index: torch.Tensor) -> torch.Tensor:
            asked.append(index.tolist())
            return super().columns(index)

        def blocks(self, max_bytes: int = 0):  # type: ignore[no-untyped-def]
            raise AssertionError("DnC looks at columns only")

    watched = Watched(rows(9, 100))
    DnC(f=1, iterations=2, columns=10).aggregate(watched, context=Context(round=3))
    DnC(f=1, iterations=2, columns=10).aggregate(watched, context=Context(round=3))
    DnC(f=1, columns=10).aggregate(watched, context=Context(round=4))
    DnC(f=1, columns=10, seed=1).aggregate(watched, context=Context(round=3))
    assert [len(set(index)) for index in asked] == [10] * 6
    assert asked[:2] == asked[2:4]
    assert asked[0] != asked[1]
    assert asked[4] not in (asked[0], asked[5])


@pytest.mark.parametrize("evil", [1e30, -1e30, 1e38, 1e6, 0.0, "mirror", "copy", float("nan"), float("inf")])
def test_hostile_rows_leave_the_answer_near_the_honest_ones(evil: float | str) -> None:
    values = rows(11, 200).float() + 1
    honest = [i for i in range(11) if i not in (2, 5, 8)]
    if isinstance(evil, str):
        values[[2, 5, 8]] = -30 * values[honest].mean(0) if evil == "mirror" else values[0].clone()
    else:
        values[[2, 5, 8]] = evil
    before = values.clone()
    answer = DnC(f=3, iterations=3).aggregate(values)
    assert torch.equal(values.nan_to_num(), before.nan_to_num())
    mean = values[honest].mean(0)
    spread = (values[honest] - mean).norm(dim=1).max()
    assert float((answer.vector - mean).norm()) <= 1.5 * float(spread)
    if evil in (1e30, 1e6, "mirror"):
        assert {2, 5, 8} <= set(answer.excluded)


def test_dtype_is_kept() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert DnC(f=1)(GOLDEN.to(dtype)).dtype == dtype
        assert DnC(f=1)(GOLDEN.to(dtype)).tolist() == [2.0, 2.0]


def test_parameters_are_checked() -> None:
    for wrong in ({"iterations": 0}, {"columns": 1.5}, {"c": 0.0}, {"c": float("nan")}, {"f": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DnC(**{"f": 1, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="between 0 and 2"):
        DnC(f=3)(GOLDEN)
    assert DnC(f=0, c=3.0).largest_f(9) == 2
    assert DnC(f=2, c=3.0)(rows()).isfinite().all()
    assert int(DnC(f=1, c=1.5).aggregate(rows()).selected.sum()) == 7


def test_a_huge_row_does_not_hide_another_outlier() -> None:
    values = rows(9, 50)
    values[2], values[5] = 1e30, 10 * rows(1, 50, 9)[0]
    answer = DnC(f=2).aggregate(values)
    assert sorted(answer.excluded) == [2, 5]
    assert "norm" in answer.excluded[2]
    others = [0, 1, 3, 4, 6, 7, 8]
    np.testing.assert_allclose(answer.vector.numpy(), values[others].mean(0).numpy(), rtol=1e-12)
