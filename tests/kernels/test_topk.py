from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import DivergedError
from bezoar.kernels.topk import SAMPLE, top_k


def oracle(values: torch.Tensor, k: int) -> list[int]:
    size = values.abs().tolist()
    return sorted(sorted(range(len(size)), key=lambda i: (-size[i], i))[:k])


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.data())
def test_small_vectors_with_many_ties(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    vector = torch.tensor(values, dtype=torch.float32)
    assert top_k(vector, k).tolist() == oracle(vector, k)


@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["normal", "heavy", "sorted", "ties", "constant", "sparse"])
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
    elif kind == "sparse":
        values[torch.rand(d, generator=draws) < 0.9999] = 0
    k = max(1, round(share * d))
    expected = torch.sort(values.abs(), descending=True, stable=True).indices[:k].sort().values
    assert torch.equal(top_k(values, k), expected)


@pytest.mark.parametrize("d", [10, 5 * SAMPLE])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_an_error(d: int, value: float) -> None:
    values = torch.ones(d)
    values[d // 2] = value
    for k in (1, 5, d):
        with pytest.raises(DivergedError):
            top_k(values, k)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="k must be between 1 and 10"):
        top_k(torch.ones(10), k)
