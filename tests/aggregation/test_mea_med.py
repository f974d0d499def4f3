from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import Mean, Median
from bezoar.aggregation.mea_med import MeaMed
from bezoar.certify import constants, kappa
from bezoar.errors import ConfigError, HostileRowsError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
SIZES = [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 3), (9, 1), (20, 6), (40, 19)]


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(values: torch.Tensor, f: int) -> np.ndarray:
    """By fractions, so that ties are ties and nothing is rounded before the end."""
    answer = []
    for column in values.double().numpy().T.tolist():
        exact = sorted(map(Fraction, column))
        n = len(exact)
        median = (exact[(n - 1) // 2] + exact[n // 2]) / 2
        nearest = sorted(exact, key=lambda value: (abs(value - median), value))[: n - f]
        answer.append(float(sum(nearest) / len(nearest)))
    return np.array(answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_vector(dtype: torch.dtype) -> None:
    np.testing.assert_allclose(MeaMed(f=1)(GOLDEN.to(dtype)).numpy(), [2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_agrees_with_exact_arithmetic(n: int, f: int) -> None:
    draws = torch.Generator().manual_seed(n)
    spread = rows(n, 6, n)
    for kind, values in {
        "random": spread,
        "tied": torch.randint(-2, 3, (n, 8), generator=draws).double(),
        # Whole numbers: midpoints, and so ties, are then exact.
        "copies": (spread * 100).round()[torch.randint(max(1, n // 3), (n,), generator=draws)],
        "near": 1e3 + 1e-4 * spread,
        "near in single": (1e3 + 1e-3 * spread).float(),
        "tiny": spread.float() * 1e-30,
        "huge": spread * 1e30,
        "huge in single": spread.float() * 1e30,
    }.items():
        expected = oracle(values, f)
        rtol = 1e-12 if values.dtype == torch.float64 else 2e-6
        # Relative to the values, not to an answer that may nearly cancel.
        atol = rtol * float(values.double().abs().max())
        np.testing.assert_allclose(MeaMed(f=f)(values).numpy(), expected, rtol=rtol, atol=atol, err_msg=kind)


def test_of_two_values_equally_far_the_lower_one_is_kept() -> None:
    assert MeaMed(f=1)(torch.tensor([[0.0], [1.0], [2.0]])).tolist() == [0.5]
    assert MeaMed(f=1)(torch.tensor([[2.0], [1.0], [0.0], [3.0]])).tolist() == [1.0]
    assert MeaMed(f=2)(torch.tensor([[4.0], [1.0], [2.0], [3.0], [0.0]])).tolist() == [2.0]


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_symmetries(seed: int, n: int) -> None:
    values, rule = rows(n, seed=seed), MeaMed(f=(n - 1) // 2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    answer = rule(values).numpy()
    np.testing.assert_allclose(rule(values[order]).numpy(), answer, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(rule(values * 3 + 7).numpy(), answer * 3 + 7, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(MeaMed(f=0)(values).numpy(), values.mean(0).numpy(), rtol=1e-12, atol=1e-13)


HOSTILE = {
    "1e30": torch.tensor([[1e30]]),
    "1e38": torch.tensor([[1e38], [-1e38]]),
    "3e38": torch.tensor([[3e38], [3e38]]),
    "one side": torch.tensor([[-4.0], [-5.0]]),
    "inside": torch.tensor([[5.7], [5.7]]),
    "NaN": torch.tensor([[float("nan")]]),
    "inf": torch.tensor([[float("inf")], [-float("inf")]]),
    "NaN and huge": torch.tensor([[float("nan")], [1e30]]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_two_hostile_rows_of_nine_keep_the_answer_within_the_constant(kind: str) -> None:
    for seed in range(5):
        values = 5 + rows(9, 4, seed, torch.float32)
        values[:2] = HOSTILE[kind]
        honest = values[2:].double()
        spread = (honest - honest.mean(0)).square().mean(0)
        error = (MeaMed(f=2)(values).double() - honest.mean(0)).square()
        assert (error <= kappa(MeaMed(f=2), 9) * spread).all()


def test_unusable_rows_are_excluded_and_counted() -> None:
    values = rows()
    values[3, 1] = float("nan")
    answer = MeaMed(f=2).aggregate(values)
    others = values[[0, 1, 2, 4, 5, 6, 7, 8]]
    assert answer.excluded == {3: "not finite"}
    np.testing.assert_allclose(answer.vector.numpy(), oracle(others, 1), rtol=1e-12, atol=1e-14)
    values[[0, 1]] = float("inf")
    with pytest.raises(HostileRowsError, match="3 of 9"):
        MeaMed(f=2)(values)


def test_input_dtype_and_kind_are_kept() -> None:
    tolerances = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float32: 1e-6, torch.float64: 1e-14}
    for dtype, tolerance in tolerances.items():
        values = rows().to(dtype)
        before = values.clone()
        answer = MeaMed(f=2)(values)
        assert answer.dtype == dtype
        assert torch.equal(values, before)
        np.testing.assert_allclose(answer.double().numpy(), oracle(values, 2), rtol=tolerance, atol=tolerance)
    assert isinstance(MeaMed(f=2)(rows().numpy()), np.ndarray)
    for size in (1e-30, 3e38):
        assert MeaMed(f=2)(torch.full((7, 2), size)).tolist() == pytest.approx([size] * 2, rel=1e-6)


def test_rows_that_lie_in_memory_as_columns_are_not_sorted_in_place() -> None:
    for values in (rows(7, 1), rows(4, 7).T, rows(1, 4).expand(7, 4)):
        before = values.clone()
        np.testing.assert_allclose(MeaMed(f=2)(values).numpy(), oracle(before, 2), rtol=1e-12, atol=1e-14)
        assert torch.equal(values, before)


def test_range_of_f_and_constants() -> None:
    with pytest.raises(ConfigError, match=r"MeaMed: f=4 is out of range for n=8 rows; f must be between 0 and 3"):
        MeaMed(f=4)(rows(8))
    (constant,) = constants(MeaMed(f=2), 9)
    assert constant.source == "proved"
    assert constant.value == pytest.approx(8 / 7 * (8 / 6 + 1))
    assert kappa(MeaMed(f=2), 9, q=1) == pytest.approx(8 / 7 * (1 + 1))
    assert kappa(MeaMed(f=0), 8) == 0.0
    assert MeaMed(f=0)(GOLDEN).tolist() == pytest.approx(Mean()(GOLDEN).tolist(), rel=1e-6)
    assert MeaMed(f=2)(rows(3).repeat(3, 1)[:5]).shape == Median()(rows(5)).shape
