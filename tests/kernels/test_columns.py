from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.kernels import columns
from bezoar.kernels.gram import Tall


def values(n: int, b: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((n, b)).astype(np.float32)


def median(data: torch.Tensor) -> torch.Tensor:
    return columns.over_sorted(Tall(data), columns.median_of_sorted)


def trimmed_mean(data: torch.Tensor, f: int) -> torch.Tensor:
    return columns.over_sorted(Tall(data), columns.trimmed_mean_of_sorted(f))


def test_sorting_works_in_inference_mode() -> None:
    data = torch.from_numpy(values(9, 100000))
    expected = trimmed_mean(data, 2)
    with torch.inference_mode():
        assert torch.equal(trimmed_mean(data, 2), expected)
        assert torch.equal(trimmed_mean(data * 1.0, 2), expected)


def weighted_oracle(column: np.ndarray, shares: np.ndarray, trim: float) -> float:
    """Spread every row over an interval as long as its share, cut the ends off, average what is left."""
    order = np.argsort(column, kind="stable")
    total, at = 0.0, 0.0
    for i in order:
        low, high = max(at, trim), min(at + shares[i], 1 - trim)
        total += max(0.0, high - low) * float(column[i])
        at += shares[i]
    return total / (1 - 2 * trim)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 100, 130])
def test_median_and_trimmed_mean_agree_with_sorting(n: int) -> None:
    data = values(n, 3000)
    found = median(torch.from_numpy(data)).numpy()
    np.testing.assert_allclose(found, np.median(data.astype(np.float64), axis=0), rtol=2e-7, atol=1e-12)
    for f in range((n - 1) // 2 + 1):
        ordered = np.sort(data.astype(np.float64), axis=0)[f : n - f]
        found = trimmed_mean(torch.from_numpy(data), f).numpy()
        np.testing.assert_allclose(found, ordered.mean(0), rtol=1e-5, atol=1e-6)


def test_the_answer_does_not_depend_on_threads_or_layout() -> None:
    data = torch.from_numpy(values(50, 40001))
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            answers.append(trimmed_mean(data, 7))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[0], trimmed_mean(data.T.contiguous().T, 7))
    assert torch.equal(answers[0][100:20000], trimmed_mean(data[:, 100:20000], 7))


def test_an_error_in_a_thread_is_not_lost() -> None:
    def fail(ordered: np.ndarray) -> np.ndarray:
        raise RuntimeError("in a thread")

    with pytest.raises(RuntimeError, match="in a thread"):
        columns.over_sorted(Tall(torch.zeros(10, 100000)), fail)


@given(st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 0.45))
def test_weighted_trimmed_mean_agrees_with_the_oracle(n: int, seed: int, trim: float) -> None:
    draws = np.random.Generator(np.random.Philox(seed))
    data = draws.integers(-3, 4, (n, 5)).astype(np.float64)
    shares = draws.exponential(size=n)
    shares /= shares.sum()
    found = columns.column_weighted_trimmed_mean(torch.from_numpy(data), torch.from_numpy(shares), trim)
    expected = [weighted_oracle(column, shares, trim) for column in data.T]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_equal_weights_are_no_weights() -> None:
    data = torch.from_numpy(values(11, 2000))
    shares = torch.full((11,), 1 / 11, dtype=torch.float64)
    plain = trimmed_mean(data, 3)
    weighted = columns.column_weighted_trimmed_mean(data, shares, 3 / 11)
    np.testing.assert_allclose(weighted.numpy(), plain.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_entries_that_are_not_finite_are_seen(bad: float) -> None:
    for place in ((0, 0), (8, 99999), (4, 50000)):
        data = torch.from_numpy(values(9, 100000).astype(np.float64))
        data[place] = bad
        with pytest.raises(columns.NotFiniteError):
            trimmed_mean(data, 2)
    assert torch.isfinite(trimmed_mean(torch.full((5, 3), 3e38), 1)).all()
