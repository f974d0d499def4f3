"""Certified predictions: the worst move within the radius does not change them, one a little longer does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bezoar.certify.prediction import certified, endurance, margins
from bezoar.errors import ConfigError


def worst(weights: Tensor, x: Tensor, norm: str) -> Tensor:
    """The move of length 1 that lowers the margin of the predicted class over the second most."""
    first, second = (weights @ x).topk(2).indices.tolist()
    move = torch.zeros_like(weights)
    if norm == "l1":
        i = int(x.abs().argmax())
        move[second, i] = x[i].sign()
        return move
    move[second], move[first] = x, -x
    return move / move.norm()


@given(st.integers(0, 10**6), st.sampled_from(["l1", "l2"]))
def test_endurance_is_exact(seed: int, norm: str) -> None:
    draws = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, 5, generator=draws, dtype=torch.float64)
    x = torch.randn(1, 5, generator=draws, dtype=torch.float64)
    logits = x @ weights.T
    room = float(endurance(logits, x, norm)[0])  # type: ignore[arg-type]
    label = int(logits.argmax())
    for factor, same in ((0.999, True), (1.001, False)):
        moved = weights + factor * room * worst(weights, x[0], norm)
        assert (int((moved @ x[0]).argmax()) == label) == same
        sure = certified(logits, x, math.log(factor * room), norm)  # type: ignore[arg-type]
        assert bool(sure[0]) == same
    # Other moves of the same length change nothing either.
    for _ in range(20):
        move = torch.randn(4, 5, generator=draws, dtype=torch.float64)
        move /= move.abs().sum() if norm == "l1" else move.norm()
        assert int(((weights + 0.999 * room * move) @ x[0]).argmax()) == label


def test_margins() -> None:
    assert margins(torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, 0.0]])).tolist() == [2.0, 0.0]


def test_nothing_is_certified_without_a_margin_a_number_or_a_bound() -> None:
    x = torch.ones(3, 2)
    logits = torch.tensor([[1.0, 1.0], [math.nan, 0.0], [5.0, 0.0]])
    assert certified(logits, x, -math.inf, "l1").tolist() == [False, False, True]
    assert certified(logits, x, 1e9, "l2").tolist() == [False, False, False]


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"\[N, C\]"):
        margins(torch.ones(3))
    with pytest.raises(ConfigError, match="rows"):
        endurance(torch.ones(3, 2), torch.ones(2, 2), "l1")
    with pytest.raises(ConfigError, match="norm"):
        endurance(torch.ones(3, 2), torch.ones(3, 2), "l3")  # type: ignore[arg-type]
