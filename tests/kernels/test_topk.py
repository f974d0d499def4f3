from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import DivergedError
from bezoar.kernels import topk
from bezoar.kernels.topk import SAMPLE, top_k, top_k_filled


def oracle(values: torch.Tensor, k: int) -> list[int]:
    size = values.abs().tolist()
    return sorted(sorted(range(len(size)), key=lambda i: (-size[i], i))[:k])


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.data())
def test_small_vectors_with_many_ties(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    vector = torch.tensor(values, dtype=torch.float32)
    assert top_k(vector, k).tolist() == oracle(vector, k)


@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["normal", "heavy", "sorted", "ties", "levels", "constant", "zero", "sparse"])
def test_long_vectors_take_the_sampled_path_and_are_exact(kind: str, share: float) -> None:
    d = 5 * SAMPLE
    draws = torch.Generator().manual_seed(1)
    values = torch.randn(d, generator=draws)
    if kind == "heavy":
        values = values**7
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "ties":
        values = (values * 2).round()
    elif kind == "constant":
        values = torch.ones(d)
    elif kind == "levels":
        # A few large ones, a third equal, the rest equal: the sample sees two values and may guess the lower.
        values = torch.where(torch.rand(d, generator=draws) < 0.34, -2.0, 1.0)
        values[torch.rand(d, generator=draws) < 1e-3] = 3.0
    elif kind == "zero":
        values = torch.zeros(d)
    elif kind == "sparse":
        values[torch.rand(d, generator=draws) < 0.9999] = 0
    k = max(1, round(share * d))
    expected = plain(values, k)
    assert torch.equal(top_k(values, k), expected)
    assert torch.equal(top_k(values.double(), k), expected)


def plain(values: torch.Tensor, k: int) -> torch.Tensor:
    return torch.sort(values.abs(), descending=True, stable=True).indices[:k].sort().values


@pytest.mark.parametrize("threads", [1, 3])
def test_entries_are_computed_once_and_threads_change_nothing(threads: int) -> None:
    d, before = 5 * SAMPLE + 7, torch.get_num_threads()
    source = torch.randn(d, generator=torch.Generator().manual_seed(2))
    values, calls = torch.full((d,), torch.nan), torch.zeros(d)

    def fill(start: int, stop: int) -> None:
        values[start:stop] = source[start:stop]
        calls[start:stop] += 1

    try:
        torch.set_num_threads(threads)
        index = top_k_filled(values, 1000, fill, lambda places: source[places])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(index, plain(source, 1000))
    assert torch.equal(values, source)
    assert (calls == 1).all()


@pytest.mark.parametrize("guess", [-1.0, 0.0, 1e9])
def test_a_bad_guess_costs_time_only(guess: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5 * SAMPLE, generator=torch.Generator().manual_seed(3))
    expected = [plain(values, k) for k in (1, 3000, 100_000)]
    monkeypatch.setattr(topk, "_around", lambda sample, share: (guess, guess))
    assert all(torch.equal(top_k(values, len(index)), index) for index in expected)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("levels", [2, 3, 50, 10**9])
def test_the_kth_largest_of_many(share: float, levels: int) -> None:
    draws = np.random.default_rng(levels)
    sizes = draws.integers(0, levels, 5 * SAMPLE).astype(np.float64)
    k = max(1, round(share * len(sizes)))
    assert topk._kth(sizes, k) == np.sort(sizes)[len(sizes) - k]


def test_an_unlucky_sample_costs_time_only() -> None:
    """The sample sees ones only, and most of the vector is zero."""
    values = torch.zeros(5 * SAMPLE)
    values[topk._places(len(values))] = 1.0
    ones = int(values.sum())
    for k in (ones - 1, ones, ones + 1, 2 * ones - 1, 2 * ones, 2 * ones + 1):
        assert torch.equal(top_k(values, k), plain(values, k))


def test_other_types_and_strides() -> None:
    values = torch.randn(2 * 300, generator=torch.Generator().manual_seed(4))
    assert torch.equal(top_k(values[::2], 7), plain(values[::2], 7))
    half = values.half()
    assert torch.equal(top_k(half, 7), plain(half.float(), 7))


@pytest.mark.parametrize("d", [10, 5 * SAMPLE])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_an_error(d: int, value: float) -> None:
    values = torch.ones(d)
    values[d // 2] = value
    for k in (1, 5, d):
        with pytest.raises(DivergedError):
            top_k(values, k)
    if d > SAMPLE:
        # In the sample, too.
        values[d // 2] = 1.0
        values[topk._places(d)[11]] = -value
        with pytest.raises(DivergedError):
            top_k(values, 5)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="k must be between 1 and 10"):
        top_k(torch.ones(10), k)
