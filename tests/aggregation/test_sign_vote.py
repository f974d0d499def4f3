from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation.sign_vote import SignVote
from bezoar.errors import ConfigError, HostileRowsError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def oracle(values: np.ndarray, scale: float) -> np.ndarray:
    answer = []
    for column in values.T.tolist():
        up, down = sum(x > 0 for x in column), sum(x < 0 for x in column)
        answer.append(scale if up > down else -scale if down > up else 0.0)
    return np.array(answer)


def test_golden() -> None:
    assert SignVote()(GOLDEN).tolist() == [1.0, 1.0]
    assert SignVote(scale=0.5)(-GOLDEN).tolist() == [-0.5, -0.5]


@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), scale=st.sampled_from([1.0, 0.25, 1e-30]))
def test_agrees_with_counting(n: int, seed: int, scale: float) -> None:
    values = torch.randint(-1, 2, (n, 7), generator=torch.Generator().manual_seed(seed)).double()
    expected = oracle(values.numpy(), scale)
    for size in (1.0, 1e30, 1e-30):
        np.testing.assert_array_equal(SignVote(scale)(values * size).numpy(), expected)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(SignVote(scale)(values[order]).numpy(), expected)


def test_ties_and_zeros_give_zero() -> None:
    assert SignVote()(torch.tensor([[1.0, 0.0], [-5.0, 0.0]])).tolist() == [0.0, 0.0]
    assert SignVote()(torch.tensor([[1.0], [0.0], [0.0]])).tolist() == [1.0]


def test_no_minority_changes_a_unanimous_sign() -> None:
    values = torch.rand(9, 30) + 0.1
    values[:4] = -1e38
    before = values.clone()
    assert torch.equal(SignVote()(values), torch.ones(30))
    assert torch.equal(values, before)
    values[0, 3], values[1, 4] = torch.nan, torch.inf
    answer = SignVote().aggregate(values)
    assert set(answer.excluded) == {0, 1}
    assert torch.equal(answer.vector, torch.ones(30))
    with pytest.raises(HostileRowsError):
        SignVote()(torch.full((3, 2), torch.nan))


def test_half_precision_counts_beyond_2048() -> None:
    values = torch.ones(4099, 1)
    values[:2047] = -1
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        answer = SignVote()(values.to(dtype))
        assert answer.dtype == dtype
        assert answer.tolist() == [1.0]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan"), "1"])
def test_scale_must_be_positive(bad: object) -> None:
    with pytest.raises(ConfigError, match="scale"):
        SignVote(bad)  # type: ignore[arg-type]
