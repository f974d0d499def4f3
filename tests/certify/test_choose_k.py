"""The choice of k, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.certify import LossCurve, choose_k, loss_curve
from bezoar.errors import ConfigError


def exact(vectors: list[list[float]], relative: bool = True) -> list[Fraction]:
    """loss(k) for k = 0, ..., d, by the definition."""
    d, losses = len(vectors[0]), []
    used = [v for v in vectors if any(v)] if relative else vectors
    for k in range(d + 1):
        total = Fraction(0)
        for v in used:
            sizes = sorted((abs(Fraction(x)) for x in v), reverse=True)
            lost = sum(sizes) - sum(sizes[:k])
            total += lost / sum(sizes) if relative else lost
        losses.append(total / max(1, len(used)))
    return losses


VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
VECTORS = st.integers(1, 9).flatmap(
    lambda d: st.lists(
        st.lists(st.one_of(VALUES, st.integers(-3, 3).map(float)), min_size=d, max_size=d), min_size=1, max_size=4
    )
)
ULP = Fraction(1, 2**44)


@settings(max_examples=300, deadline=None)
@given(VECTORS, st.floats(0, 1), st.sampled_from([torch.float32, torch.float64]))
def test_losses_and_k_are_those_of_the_definition(vectors: list[list[float]], omega: float, dtype: Any) -> None:
    curve = loss_curve([torch.tensor(v, dtype=dtype) for v in vectors])
    wanted = exact(vectors)
    assert all(abs(Fraction(found) - loss) <= ULP for found, loss in zip(curve.losses.tolist(), wanted, strict=True))
    assert (np.diff(curve.losses) <= 0).all()
    k = curve.smallest(omega)
    assert 1 <= k <= curve.d
    assert wanted[k] <= Fraction(omega) + ULP
    assert k == 1 or wanted[k - 1] > Fraction(omega) - ULP


@settings(max_examples=100, deadline=None)
@given(VECTORS, st.floats(0, 1e38))
def test_absolute_losses_are_l1_distances(vectors: list[list[float]], omega: float) -> None:
    curve = loss_curve([np.array(v, dtype=np.float32) for v in vectors], relative=False)
    wanted = exact(vectors, relative=False)
    for found, loss in zip(curve.losses.tolist(), wanted, strict=True):
        assert abs(Fraction(found) - loss) <= wanted[0] * ULP
    k = curve.smallest(omega)
    assert k == 1 or curve.losses[k - 1] > omega
    assert curve.losses[k] <= omega * (1 + 1e-11)


@settings(max_examples=100, deadline=None)
@given(VECTORS, st.floats(0, 1), st.data())
def test_the_linear_listing_stops_at_the_first_step_that_suffices(
    vectors: list[list[float]], omega: float, data: st.DataObject
) -> None:
    curve = loss_curve(vectors)
    r = data.draw(st.integers(1, curve.d))
    tried = [-(-i * curve.d // r) for i in range(1, r + 1)]
    assert curve.smallest(omega, steps=r) == next(k for k in tried if k >= curve.smallest(omega))


def test_the_value_at_omega_counts() -> None:
    # Ten equal entries: k of them lose (10 - k)/10, and 1/10 is at most 0.1.
    assert choose_k([torch.ones(10)], 0.1) == 9
    assert choose_k([torch.ones(10)], 0.0) == 10
    assert choose_k([torch.ones(10)], 1.0) == 1


@pytest.mark.parametrize("m", [1, 2, 3, 7, 10, 11])
@pytest.mark.parametrize(("d", "lost"), [(10, 1), (10, 3), (5, 1), (100, 7), (1000, 1), (100_000, 9)])
def test_rounding_of_the_mean_does_not_decide_ties(m: int, d: int, lost: int) -> None:
    # 1/10 three times, divided by three, is more than 0.1 in floating point.
    vectors = [torch.full((d,), float(i)) for i in range(1, m + 1)]
    assert choose_k(vectors, lost / d) == d - lost
    curve = loss_curve(vectors, relative=False)
    assert curve.smallest(lost * (m + 1) / 2) == d - lost


def test_the_next_vector_may_be_written_where_the_last_one_was() -> None:
    rows = torch.randn(6, 200_000, generator=torch.Generator().manual_seed(0))
    buffer, threads = torch.empty(200_000), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = loss_curve(buffer.copy_(row) for row in rows)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found.losses, loss_curve(list(rows)).losses)


def test_the_mean_over_vectors_decides() -> None:
    # One vector loses nothing beyond its first entry, the other 3/4, 1/2, 1/4: means 3/8, 1/4, 1/8.
    vectors = [torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.ones(4)]
    assert [choose_k(vectors, omega) for omega in (0.4, 0.25, 0.2)] == [1, 2, 3]


def test_zero_vectors_lose_nothing_and_do_not_dilute_the_mean() -> None:
    curve = loss_curve([torch.zeros(4), torch.ones(4)])
    assert (curve.vectors, curve.zeros) == (2, 1)
    assert curve.losses.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    only = loss_curve([torch.zeros(4), np.zeros(4)])
    assert only.losses.tolist() == [0.0] * 5
    assert only.smallest(0.0) == 1
    # An absolute loss of zero is one of those averaged.
    assert loss_curve([torch.zeros(2), torch.ones(2)], relative=False).losses.tolist() == [1.0, 0.5, 0.0]


def test_blocks_and_threads_do_not_show() -> None:
    """Longer than several blocks: against sums of the whole array, and the same bits with one thread and two."""
    rng = np.random.default_rng(0)
    vectors = [rng.standard_t(2, size=100_001).astype(np.float32) for _ in range(5)]
    wanted = np.zeros(100_002)
    for v in vectors:
        ordered = np.sort(np.abs(v.astype(np.longdouble)))[::-1]
        wanted[1:] += (np.cumsum(ordered) / ordered.sum()).astype(np.float64) / 5
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(loss_curve(iter(vectors)).losses)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)
    assert np.abs(found[0] - (1 - wanted)).max() < 1e-12


def test_extreme_sizes() -> None:
    for size in (1e30, 1e-30, 5e-324):
        assert choose_k([np.array([size, size, 0.0, 0.0])], 0.0) == 2
    assert choose_k([np.array([1.7e308] * 4)], 0.5) == 2
    with pytest.raises(ConfigError, match="more than float64 can hold"):
        loss_curve([np.array([1.7e308] * 4)], relative=False)


def test_vectors_are_taken_one_after_the_other_and_left_alone() -> None:
    kept = torch.tensor([-1.0, 2.0])
    loss_curve([kept, kept])
    assert kept.tolist() == [-1.0, 2.0]
    alive: list[int] = []

    def vectors() -> Any:
        for i in range(50):
            alive.append(i)
            yield torch.full((3,), float(i + 1))

    assert loss_curve(vectors()).vectors == len(alive) == 50
    for dtype in (torch.float16, torch.bfloat16):
        assert choose_k([torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=dtype)], 0.1) == 3


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "at least one vector"),
        ([[]], "vector 0 must be a vector of numbers"),
        ([[1.0], [[2.0]]], "vector 1 must be a vector of numbers"),
        ([[1.0, 2.0], [1.0]], "vector 1 has 1 entries, those before it 2"),
        ([[1.0, 2.0], [1.0, float("nan")]], "vector 1 holds NaN or infinity"),
        ([torch.tensor([float("-inf"), 2.0])], "vector 0 holds NaN or infinity"),
        ([["a", "b"]], "vector 0 must be a vector of numbers"),
    ],
)
def test_bad_vectors_are_named(vectors: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss_curve(vectors)


def test_bad_omega_and_steps() -> None:
    curve = loss_curve([torch.ones(4)])
    for omega in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="omega must be a share between 0 and 1"):
            curve.smallest(omega)
    with pytest.raises(ConfigError, match="omega must be a number >= 0"):
        loss_curve([torch.ones(4)], relative=False).smallest(float("inf"))
    for steps in (0, 5, True):
        with pytest.raises(ConfigError, match="steps must be a whole number between 1 and d=4"):
            curve.smallest(0.1, steps)
    assert isinstance(curve, LossCurve)
