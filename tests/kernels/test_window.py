from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.kernels.columns import mean_around_median, over_sorted
from bezoar.kernels.gram import Tall


def column_mean_around_median(values: torch.Tensor, keep: int) -> torch.Tensor:
    return over_sorted(Tall(values), mean_around_median(keep))


def oracle(column: list[float], keep: int) -> float:
    """Sort by distance from the median, in exact arithmetic, the lower value first among equals."""
    ordered = sorted(map(Fraction, column))
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    nearest = sorted(ordered, key=lambda value: (abs(value - middle), value))[:keep]
    return float(sum(nearest) / keep)


@given(st.lists(st.lists(st.integers(-6, 6), min_size=3, max_size=3), min_size=1, max_size=12), st.data())
def test_tied_columns_agree_with_sorting_by_distance(rows: list[list[int]], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(rows)))
    values = torch.tensor(rows, dtype=torch.float64)
    expected = [oracle(column, keep) for column in values.T.tolist()]
    np.testing.assert_allclose(column_mean_around_median(values, keep).numpy(), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(
        column_mean_around_median(values.flip(0), keep).numpy(), expected, rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_real_columns_agree_with_sorting_by_distance(n: int, scale: float) -> None:
    values = torch.randn(n, 50, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * scale
    for keep in {1, (n + 1) // 2, n}:
        expected = [oracle(column, keep) for column in values.T.tolist()]
        np.testing.assert_allclose(column_mean_around_median(values, keep).numpy(), expected, rtol=1e-12)


def test_the_lower_of_two_equally_near_values_is_kept() -> None:
    assert column_mean_around_median(torch.tensor([[3.0], [1.0], [2.0]]), 2).item() == 1.5
    assert column_mean_around_median(torch.tensor([[4.0], [1.0], [2.0], [3.0]]), 1).item() == 2.0


def test_extremes_are_never_added_nor_subtracted() -> None:
    values = torch.tensor([[1.0], [1.0], [1.0], [3e38], [-3e38]])
    assert column_mean_around_median(values, 3).item() == 1.0
    assert column_mean_around_median(torch.full((5, 1), 3e38), 3).item() == pytest.approx(3e38)
    assert column_mean_around_median(torch.full((4, 1), 9e149, dtype=torch.float64), 3).item() == pytest.approx(9e149)


def test_half_precision_comes_back_as_float32_and_the_input_is_kept() -> None:
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).half()
    before = values.clone()
    answer = column_mean_around_median(values, 3)
    assert answer.dtype == torch.float32
    assert torch.equal(values, before)
    np.testing.assert_allclose(answer.numpy(), column_mean_around_median(values.double(), 3).numpy(), rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 3])
def test_columns_that_lie_in_memory_as_rows_are_not_sorted_in_place(columns: int) -> None:
    values = torch.randn(columns, 5, generator=torch.Generator().manual_seed(0)).T
    before = values.clone()
    column_mean_around_median(values, 2)
    assert torch.equal(values, before)


@pytest.mark.parametrize("keep", [0, 4])
def test_keep_must_be_a_number_of_rows(keep: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 3 rows"):
        column_mean_around_median(torch.zeros(3, 1), keep)


def test_a_distance_too_small_to_be_seen_beside_one_still_decides() -> None:
    assert column_mean_around_median(torch.tensor([[-1.0], [1e-20], [1.0]]), 2).item() == 0.5
    assert column_mean_around_median(torch.tensor([[-1.0], [-1e-20], [1.0]]), 2).item() == -0.5
