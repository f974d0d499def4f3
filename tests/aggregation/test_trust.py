from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation.base import Context
from bezoar.aggregation.fltrust import FLTrust
from bezoar.aggregation.foolsgold import FoolsGold
from bezoar.errors import ConfigError
from bezoar.updates.dense import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])


def rows(n: int = 9, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rooted(values: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = FLTrust()(values, context=Context(root_gradient=root))
    return answer


def fltrust_oracle(values: np.ndarray, root: np.ndarray) -> np.ndarray:
    total, answer = 0.0, np.zeros_like(root)
    length = math.sqrt(sum(float(g) ** 2 for g in root))
    for row in values:
        norm = math.sqrt(sum(float(x) ** 2 for x in row))
        if norm == 0 or length == 0:
            continue
        trust = max(0.0, float(row @ root) / norm / length)
        total += trust
        answer = answer + trust * row * (length / norm)
    return answer / total if total else root


def foolsgold_oracle(history: np.ndarray) -> np.ndarray:
    """Loops, as the formula reads; equal weights where it has none."""
    n = len(history)
    similar = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            sizes = np.linalg.norm(history[i]) * np.linalg.norm(history[j])
            if i != j and sizes > 0:
                similar[i, j] = history[i] @ history[j] / sizes
    most = similar.max(1) + 1e-5
    for i in range(n):
        for j in range(n):
            if i != j and most[i] < most[j]:
                similar[i, j] *= most[i] / most[j]
    weights = np.clip(1 - similar.max(1), 0, 1)
    if weights.max() <= 1e-5:
        return np.full(n, 1 / n)
    weights = weights / weights.max()
    weights[weights == 1] = 0.99
    weights = np.clip(np.log(weights / (1 - weights) + 1e-5) + 0.5, 0, 1)
    return weights if weights.sum() > 0 else np.full(n, 1 / n)


def test_fltrust_golden() -> None:
    answer = FLTrust().aggregate(GOLDEN, context=Context(root_gradient=torch.tensor([1.0, 1.0])))
    np.testing.assert_allclose(answer.scores.numpy(), [0.948683, 0.948683, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(answer.vector.numpy(), [0.975017, 0.975017], atol=1e-6)
    np.testing.assert_allclose(answer.weights.float() @ GOLDEN, answer.vector, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(n=st.sampled_from([1, 2, 5, 8, 40]), d=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_fltrust_agrees_with_loops(n: int, d: int, seed: int) -> None:
    values, root = rows(n, d, seed), rows(1, d, seed + 1)[0]
    values[n // 2] = 0
    values[-1] *= 1e6
    expected = fltrust_oracle(values.numpy(), root.numpy())
    np.testing.assert_allclose(rooted(values, root).numpy(), expected, rtol=1e-9, atol=1e-12)
    for size in (1e30, 1e-30, 1e140):
        np.testing.assert_allclose(rooted(values * size, root * size).numpy() / size, expected, rtol=1e-9, atol=1e-12)
    # The size of a row never counts.
    np.testing.assert_allclose(rooted(values * rows(n, 1, 3).abs(), root).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_fltrust_without_agreement_is_the_root() -> None:
    root = torch.tensor([1.0, 0.0])
    for values in (-GOLDEN[:4], torch.zeros(3, 2), torch.tensor([[0.0, 5.0]])):
        answer = FLTrust().aggregate(values, context=Context(root_gradient=root))
        assert answer.vector.tolist() == [1.0, 0.0]
        assert not answer.selected.any()
    answer.vector[0] = 7.0
    assert root.tolist() == [1.0, 0.0]
    assert rooted(GOLDEN, torch.zeros(2)).tolist() == [0.0, 0.0]
    with pytest.raises(ConfigError, match="root_gradient"):
        FLTrust()(GOLDEN)


@pytest.mark.parametrize("evil", [1e30, 1e38, -1e38, 1e-30, 1e-45, 0.0, float("nan"), float("inf")])
def test_fltrust_is_never_longer_than_the_root(evil: float) -> None:
    for size in (1.0, 1e30, 1e-30):
        values = (rows(9, 20).float() + 1) * size
        values[:6] = evil
        root = torch.ones(20) * size
        answer = rooted(values, root)
        assert torch.isfinite(answer).all()
        assert float(answer.double().norm()) <= float(root.double().norm()) * 1.0001
        assert float(answer.double() @ root.double()) > 0


def test_fltrust_identical_rows_dtype_and_order() -> None:
    values = rows(7)
    np.testing.assert_allclose(rooted(values[:1].expand(5, -1), values[0]).numpy(), values[0].numpy(), rtol=1e-14)
    order = torch.randperm(7)
    np.testing.assert_allclose(rooted(values[order], values[0]).numpy(), rooted(values, values[0]).numpy(), rtol=1e-12)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        answer = rooted(GOLDEN.to(dtype), torch.ones(2))
        assert answer.dtype == dtype
        np.testing.assert_allclose(answer.double().numpy(), [0.975017] * 2, rtol=1e-2)


def test_foolsgold_golden() -> None:
    for rule in (FoolsGold(), FoolsGold(normalise=False), FoolsGold(features="full")):
        answer = rule.aggregate(GOLDEN)
        np.testing.assert_allclose(answer.weights.numpy(), [0, 0, 0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(answer.vector.numpy(), [100.0, -100.0], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(n=st.sampled_from([1, 2, 5, 8, 40]), d=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_foolsgold_agrees_with_loops(n: int, d: int, seed: int) -> None:
    values = rows(n, d, seed)
    values[n // 2] = values[0]
    if n > 4:
        values[4] = 0
    weights = foolsgold_oracle(values.numpy())
    for size in (1.0, 1e30, 1e-30, 1e140):
        plain = FoolsGold(normalise=False)(values * size) / size
        np.testing.assert_allclose(plain.numpy(), weights @ values.numpy(), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        FoolsGold()(values).numpy(), weights @ values.numpy() / weights.sum(), rtol=1e-7, atol=1e-9
    )


def test_foolsgold_drops_sybils_and_spares_different_clients() -> None:
    values = rows(10, 3000)
    values[6:] = values[6] + 1e-3 * rows(4, 3000, 5)
    for rule in (FoolsGold(), FoolsGold(features="full"), FoolsGold(size=64)):
        weights = rule.aggregate(values).weights
        assert weights[6:].tolist() == [0.0] * 4
        assert (weights[:6] > 0).all()


def test_foolsgold_identical_rows_give_that_row() -> None:
    values = rows(1, 5000)
    for n in (1, 2, 7):
        same = values.expand(n, -1)
        np.testing.assert_allclose(FoolsGold()(same).numpy(), values[0].numpy(), rtol=1e-13)
    assert FoolsGold()(torch.zeros(4, 3)).tolist() == [0.0] * 3
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert FoolsGold()(GOLDEN.to(dtype)).dtype == dtype


def test_foolsgold_excludes_rows_that_are_not_finite() -> None:
    values = rows()
    values[3, 0] = torch.nan
    values[4, 1] = -torch.inf
    answer = FoolsGold().aggregate(values)
    assert set(answer.excluded) == {3, 4}
    assert torch.isfinite(answer.vector).all()
    assert answer.state["clients"].tolist() == [0, 1, 2, 5, 6, 7, 8]


def test_foolsgold_parameters() -> None:
    with pytest.raises(ConfigError, match="features"):
        FoolsGold(features="everything")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size"):
        FoolsGold(size=0)
    with pytest.raises(ValueError, match="features='projection'"):
        FoolsGold(features="full", memory=1000)(rows(9, 600))
    with pytest.raises(ValueError, match="layout"):
        FoolsGold(features="last-layer")(rows())
    with pytest.raises(ValueError, match="memory"):
        FoolsGold(memory=100)(DenseUpdates(rows()))
