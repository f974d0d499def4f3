from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Mean
from bezoar.attacks import ATTACKS, MinMax, MinSum
from bezoar.errors import ConfigError
from tests.attacks.context import bare

Array = np.ndarray[Any, Any]
GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0]], dtype=torch.float64)


def direction(rows: Array, kind: str) -> Array:
    mean = rows.mean(0)
    if kind == "unit":
        return mean / np.sqrt((mean**2).sum())
    if kind == "sign":
        return np.sign(mean)
    return np.asarray(rows.std(0, ddof=1))


def inside(name: str, rows: Array, vector: Array) -> bool:
    """The attack's constraint, spelt out."""
    pairs = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    away = np.array([((a - vector) ** 2).sum() for a in rows])
    return bool(away.max() <= pairs.max()) if name == "min-max" else bool(away.sum() <= pairs.sum(1).min())


def bisection(name: str, rows: Array, kind: str) -> float:
    """The largest gamma that the constraint allows, as the paper's code looks for it."""
    mean, p = rows.mean(0), direction(rows, kind)
    low, high = 0.0, 1.0
    while inside(name, rows, mean - high * p):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(name, rows, mean - middle * p) else (low, middle)
    return low


@pytest.mark.parametrize("name", ["min-max", "min-sum"])
@pytest.mark.parametrize("kind", ["unit", "sign", "std"])
@pytest.mark.parametrize(
    ("h", "d", "scale", "shift"), [(2, 3, 1, 0), (9, 5, 1, 0.5), (12, 40, 1e-3, 7), (6, 8, 1e20, 0)]
)
def test_closed_forms_agree_with_bisection(name: str, kind: str, h: int, d: int, scale: float, shift: float) -> None:
    rows = (np.random.default_rng(h).normal(0, 1, (h, d)) + shift) * scale
    view, context = bare(torch.from_numpy(rows))
    sent = ATTACKS.build({"kind": name, "direction": kind}).send(view, Mean(), context)  # type: ignore[attr-defined]
    gamma = bisection(name, rows, kind)
    assert sent.report["gamma"] == pytest.approx(gamma, rel=1e-6)
    expected = rows.mean(0) - gamma * direction(rows, kind)
    np.testing.assert_allclose(sent.rows.basis[0].numpy(), expected, rtol=1e-6, atol=1e-9 * abs(rows).max())


def test_golden() -> None:
    view, context = bare(GOLDEN, 1)
    sent = MinMax().send(view, Mean(), context)
    assert sent.report["gamma"] == pytest.approx(0.821854, abs=1e-6)
    assert sent.rows.basis[0].tolist() == pytest.approx([1.418861, 1.418861], abs=1e-6)
    sent = MinSum().send(view, Mean(), context)
    assert sent.report["gamma"] == 0
    assert sent.rows.basis[0].tolist() == [2, 2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    h=st.integers(2, 9),
    d=st.integers(1, 12),
    kind=st.sampled_from(["unit", "sign", "std"]),
    power=st.integers(-30, 30),
)
def test_the_constraint_is_touched(seed: int, h: int, d: int, kind: Any, power: int) -> None:
    rows = np.random.default_rng(seed).normal(0.3, 1, (h, d)) * 10.0**power
    view, context = bare(torch.from_numpy(rows))
    for name, attack in (("min-max", MinMax(kind)), ("min-sum", MinSum(kind))):
        sent = attack.send(view, Mean(), context)
        vector = sent.rows.basis[0].numpy()
        mean = rows.mean(0)
        assert inside(name, rows, mean + (vector - mean) * (1 - 1e-6))
        # One per cent further is too far, but where an honest row is the mean and gamma is 0.
        step = (vector - mean) * 1.01 if sent.report["gamma"] > 1e-12 else -1e-3 * direction(rows, kind)
        assert not inside(name, rows, mean + step) or np.abs(step).max() == 0


@pytest.mark.parametrize("attack", [MinMax("std"), MinSum("std")], ids=str)
def test_close_rows_far_from_zero_keep_their_digits(attack: MinMax | MinSum) -> None:
    rows = 1e3 + 1e-4 * np.random.default_rng(0).normal(0, 1, (8, 300))
    # What is held in float64 is the truth; the float32 rows are rounded to multiples of 6e-5.
    view, context = bare(torch.from_numpy(rows))
    name = ATTACKS.name(attack)
    assert attack.send(view, Mean(), context).report["gamma"] == pytest.approx(bisection(name, rows, "std"), rel=1e-5)


def test_without_spread_the_mean_is_sent() -> None:
    for rows in (GOLDEN[:1], GOLDEN[:1].repeat(4, 1), torch.zeros(3, 2, dtype=torch.float64)):
        view, context = bare(rows)
        for kind in ("unit", "sign", "std"):
            for attack in (MinMax(kind), MinSum(kind)):  # type: ignore[arg-type]
                sent = attack.send(view, Mean(), context)
                assert sent.report["gamma"] == 0
                assert torch.equal(sent.rows.basis[0], rows[0])


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 3.3e38), (torch.float16, 6.5e4)])
@pytest.mark.parametrize(
    "table",
    [
        *({"kind": name, "direction": kind} for name in ("min-max", "min-sum") for kind in ("unit", "sign", "std")),
        {"kind": "alie", "z": 3.0},
        {"kind": "ipm", "epsilon": 30.0},
        {"kind": "random-direction"},
    ],
    ids=str,
)
def test_rows_near_the_end_of_their_type_are_left_within_it(
    table: dict[str, Any], dtype: torch.dtype, size: float
) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (7, 23)) * size).to(dtype)
    rows[:, :3] = size
    view, context = bare(rows)
    sent = ATTACKS.build(table).send(view, Mean(), context).rows.sent()  # type: ignore[attr-defined]
    assert torch.isfinite(sent).all()
    assert sent.abs().max() > 0.01 * size


def test_nonsense_is_refused() -> None:
    for make in (MinMax, MinSum):
        with pytest.raises(ConfigError, match="direction"):
            make(direction="up")  # type: ignore[arg-type]
