from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bezoar.kernels import gram as kernel
from bezoar.updates import DenseUpdates, Mixed, RowUpdates, Stacked, Updates


def normal(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact_distances(values: Tensor) -> Tensor:
    wide = values.double()
    return torch.stack([(row - wide).square().sum(1) for row in wide])


def layouts(values: Tensor) -> list[Updates]:
    cut = values.shape[1] // 3
    return [DenseUpdates(values), RowUpdates([[row[:cut], row[cut:]] for row in values])]


def hard_cases() -> dict[str, Tensor]:
    near = 1e3 / 300**0.5 + normal(9, 300, dtype=torch.float64) * 1e-4 / 300**0.5
    clusters = normal(3, 300, 1).repeat_interleave(4, 0) + normal(12, 300, 2) * 1e-5
    nested = normal(3, 300, 1).repeat_interleave(4, 0)
    nested[1::4] += normal(3, 300, 3) * 1e-3
    nested[2::4] += normal(3, 300, 3) * 1e-3 + normal(3, 300, 4) * 1e-6
    huge = normal(7, 300)
    huge[2] *= 1e30
    tiny = normal(7, 300)
    tiny[[2, 5]] *= 1e-30
    copies = normal(9, 300)
    copies[[1, 4, 8]] = copies[0].clone()
    zeros = normal(6, 300)
    zeros[[0, 3]] = 0
    return {
        "plain": normal(20, 70000),
        "near, norm 1e3": near.float(),
        "near, double": near,
        "clusters": clusters,
        "clusters in clusters": nested,
        "one huge": huge,
        "two tiny": tiny,
        "all huge": normal(7, 300) * 1e30,
        "all tiny": normal(7, 300) * 1e-30,
        "copies": copies,
        "zeros": zeros,
        "opposite and huge": torch.stack([torch.full((4,), 3e38), torch.full((4,), -3e38), torch.ones(4)]),
        "one row": normal(1, 5),
        "half": normal(6, 300, dtype=torch.float16),
        "bfloat": normal(6, 300, dtype=torch.bfloat16),
    }


cases = pytest.mark.parametrize("values", hard_cases().values(), ids=hard_cases())


@cases
def test_distances_agree_with_the_plain_ones(values: Tensor) -> None:
    exact = exact_distances(values)
    for rows in layouts(values):
        found = rows.squared_distances()
        assert found.dtype == torch.float64
        # The smallest distances of "two tiny" and "nested" need the second measurement.
        assert ((found - exact).abs() <= 3e-3 * exact + 1e-7 * exact.min()).all()
        assert torch.equal(found == 0, exact == 0)
        assert torch.equal(found, found.T)


@cases
def test_norms_and_inner_products_agree_with_the_plain_ones(values: Tensor) -> None:
    wide = values.double()
    norms = wide.square().sum(1)
    for rows in layouts(values):
        torch.testing.assert_close(rows.squared_norms(), norms, rtol=2e-6, atol=0.0)
        bound = 1e-5 * norms.sqrt()[:, None] * norms.sqrt()
        assert ((rows.gram() - wide @ wide.T).abs() <= bound).all()
        vector = normal(1, values.shape[1], 9)[0]
        assert ((rows.dot(vector) - wide @ vector.double()).abs() <= 1e-5 * norms.sqrt() * vector.double().norm()).all()


@cases
def test_equal_rows_are_alike(values: Tensor) -> None:
    doubled = torch.cat([values, values])
    n = len(values)
    found = DenseUpdates(doubled).squared_distances()
    assert torch.equal(found[:n, :n], found[n:, n:])
    assert torch.equal(found[:n, :n], found[:n, n:])


@cases
@pytest.mark.parametrize("kind", ["average", "scale", "both", "sparse"])
def test_distances_of_mixed_rows_agree_with_the_plain_ones(values: Tensor, kind: str) -> None:
    if not torch.isfinite(values.double().square().sum()) or values.abs().max() > 1e35:
        return
    n = len(values)
    draws = torch.Generator().manual_seed(5)
    average = torch.rand(n, n, generator=draws, dtype=torch.float64)
    average /= average.sum(1, keepdim=True)
    scale = torch.rand(n, generator=draws, dtype=torch.float64)
    sparse = torch.eye(n, dtype=torch.float64).roll(1, 0) * 0.5 + torch.eye(n, dtype=torch.float64) * 0.5
    root = DenseUpdates(values.float())
    mixed = {
        "average": lambda: Mixed(root, average),
        "scale": lambda: Mixed(root, scale),
        "both": lambda: Mixed(Mixed(root, scale), average),
        "sparse": lambda: Mixed(root, sparse),
    }[kind]()
    matrix = {"average": average, "scale": scale.diag(), "both": average * scale, "sparse": sparse}[kind]
    rows = matrix @ values.float().double()
    exact = exact_distances(rows)
    found = mixed.squared_distances()
    size = rows.norm(dim=1)[:, None] * rows.norm(dim=1)
    assert ((found - exact).abs() <= 1e-2 * exact + 1e-12 * size).all()
    torch.testing.assert_close(mixed.materialise().double(), rows, rtol=1e-4, atol=1e-6 * float(rows.abs().max()))


@cases
def test_distances_of_stacked_rows_agree_with_the_plain_ones(values: Tensor) -> None:
    if values.abs().max() > 1e35 or values.dtype.itemsize < 4:
        return
    n = len(values)
    basis = torch.stack([values[0], values.double().mean(0).to(values.dtype)])
    coefficients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    rows = torch.cat([values.double(), coefficients.double() @ basis.double()])
    order = torch.randperm(n + 4, generator=torch.Generator().manual_seed(3))
    stacked = Stacked(DenseUpdates(values), coefficients, basis, order=order)
    exact = exact_distances(rows)[order][:, order]
    found = stacked.squared_distances()
    size = rows[order].norm(dim=1)[:, None] * rows[order].norm(dim=1)
    # The stored row (1/2, 1/2) is rounded to the rows' own precision.
    bound = 3e-3 * exact + 1e-13 * size
    assert ((found - exact).abs() <= bound).all()
    twins = [int((order == n + k).nonzero()) for k in (1, 2)]
    assert found[twins[0], twins[1]] == 0
    assert torch.equal(found[twins[0]], found[twins[1]])


def test_mixed_copies_stay_equal() -> None:
    values = normal(8, 1000)
    values[[3, 5]] = values[0].clone()
    scaled = Mixed(DenseUpdates(values), torch.full((8,), 1 / 3, dtype=torch.float64)).squared_distances()
    assert (scaled[0, [3, 5]] == 0).all()
    assert scaled[3, 5] == 0


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_close_rows_anywhere(n: int, d: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** -torch.randint(0, 6, (n, 1), generator=draws)
    values = normal(1, d, seed) * 10 + normal(n, d, seed + 1) * sizes
    exact = exact_distances(values)
    found = DenseUpdates(values).squared_distances()
    assert ((found - exact).abs() <= 3e-3 * exact).all()


def test_rows_that_are_not_finite_do_not_disturb_the_others() -> None:
    values = normal(6, 100)
    values[2, 3] = torch.nan
    values[4, 1] = torch.inf
    rows = DenseUpdates(values)
    assert rows.finite().tolist() == [True, True, False, True, False, True]
    kept = torch.tensor([0, 1, 3, 5])
    torch.testing.assert_close(
        rows.select(kept).squared_distances(), exact_distances(values[kept]), rtol=1e-5, atol=1e-9
    )


def test_scaling_is_exact() -> None:
    powers = kernel.powers(torch.tensor([3.0, 0.0, torch.inf, 1e-300], dtype=torch.float64))
    assert powers.tolist()[:3] == [0.25, 0.5, 0.5]
    assert 0.4 < float(powers[3]) * 1e-300 <= 1
