from __future__ import annotations

import pytest
import torch

from bezoar.kernels.quiet import CHUNK, added, clear_, scaled, take


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_entries_are_taken_and_cleared(dtype: torch.dtype) -> None:
    values, index = torch.arange(10, dtype=dtype), torch.tensor([2, 5, 9])
    taken = take(values, index)
    assert taken.tolist() == [2, 5, 9]
    clear_(values, index)
    assert values.tolist() == [0, 1, 0, 3, 4, 0, 6, 7, 8, 0]
    assert taken.tolist() == [2, 5, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (3, CHUNK + 5)])
def test_sums_and_products_have_the_bits_of_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    values, others = (torch.randn(shape, generator=draws).to(dtype) for _ in range(2))
    kept = values.clone(), others.clone()
    for factor in (0.3, 1.0, -2.0, 0.0):
        assert torch.equal(scaled(values, factor), factor * values)
        assert torch.equal(added(values, others, factor), torch.add(values, others, alpha=factor))
        swapped = added(values.movedim(0, -1), others.movedim(0, -1), factor)
        assert torch.equal(swapped, torch.add(values, others, alpha=factor).movedim(0, -1))
    assert torch.equal(values, kept[0])
    assert torch.equal(others, kept[1])


def test_what_overflows_is_infinite_and_no_warning() -> None:
    for factor in (1e30, 1e300):
        assert scaled(torch.tensor([1e30, -1e30]), factor).tolist() == [float("inf"), -float("inf")]
    assert scaled(torch.tensor([float("inf")]), 0.0).isnan().all()
    assert added(torch.tensor([3e38]), torch.tensor([3e38]), 1.0).tolist() == [float("inf")]
