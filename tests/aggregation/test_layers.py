from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import lasa as lasa_module
from bezoar.aggregation.base import Rule
from bezoar.aggregation.lasa import LASA, keep_largest
from bezoar.aggregation.lfighter import LFighter
from bezoar.errors import ConfigError, UnsupportedError
from bezoar.updates.base import Layout, Segment
from bezoar.updates.dense import DenseUpdates


def rows(n: int = 9, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    segments, start = [], 0
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        segments.append(Segment(f"p{i}", start, start + size, shape))
        start += size
    return tuple(segments)


#: A layer of 3 x 4 and one of 5 classes from 3 inputs, both with biases: 12 + 3 + 15 + 5 columns.
NET = layout_of((3, 4), (3,), (5, 3), (5,))
D = NET[-1].stop


def updates(values: torch.Tensor, layout: Layout = NET) -> DenseUpdates:
    return DenseUpdates(values, layout=layout)


def top(values: np.ndarray, k: int) -> np.ndarray:
    order = sorted(range(len(values)), key=lambda j: (-abs(values[j]), j))[:k]
    kept = np.zeros_like(values)
    kept[order] = values[order]
    return kept


def lasa_oracle(values: np.ndarray, layout: Layout, sparsity: float, limits: tuple[float, float]) -> np.ndarray:
    n, d = values.shape
    norms = np.linalg.norm(values, axis=1)
    bound = np.median(norms)
    values = np.stack([row * min(1, bound / norm) if norm else row for row, norm in zip(values, norms, strict=True)])
    answer = np.zeros(d)
    for layer in layout:
        p = layer.stop - layer.start
        part = np.stack([top(r[layer.start : layer.stop], max(1, int((1 - sparsity) * p + 0.5))) for r in values])
        lengths = np.linalg.norm(part, axis=1)
        signs = np.sign(part)
        balance = np.array([(1 + s.sum() / abs(s).sum()) / 2 if abs(s).sum() else 0.5 for s in signs])
        far = np.zeros(n)
        for a, limit in zip((lengths, balance), limits, strict=True):
            spread = a.std()
            if spread > 1e-9 * abs(a).max():
                far = np.maximum(far, abs(a - np.median(a)) / spread / limit)
        kept = [i for i in range(n) if far[i] <= 1 + 1e-9]
        kept = kept or [i for i in range(n) if far[i] <= min(far) * (1 + 1e-9)]
        answer[layer.start : layer.stop] = part[kept].mean(0)
    return answer


def movement(values: np.ndarray) -> list[float]:
    moved = [0.0] * 5
    for row in values:
        weight, bias = row[15:30].reshape(5, 3), row[30:35]
        for c in range(5):
            moved[c] += float(np.linalg.norm(weight[c])) + abs(float(bias[c]))
    return moved


def lfighter_oracle(values: np.ndarray) -> list[int]:
    """All splits into two are tried, instead of steps from a start."""
    n = len(values)
    two = sorted(sorted(range(5), key=lambda c: -movement(values)[c])[:2])
    z = np.stack([row[15:30].reshape(5, 3)[two].ravel() for row in values])

    def squares(group: list[int]) -> float:
        return float(((z[group] - z[group].mean(0)) ** 2).sum())

    def score(group: list[int]) -> float:
        unit = z[group] / np.linalg.norm(z[group], axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, 0)
        return len(group) / n * (1 - float(similar.min(1).mean()))

    best: tuple[float, list[int], list[int]] | None = None
    for mask in range(1, 2 ** (n - 1)):
        first = [i for i in range(n) if not mask >> i & 1]
        second = [i for i in range(n) if mask >> i & 1]
        total = squares(first) + squares(second)
        if best is None or total < best[0]:
            best = (total, first, second)
    assert best is not None
    _, first, second = best
    return first if score(first) >= score(second) else second


def flipped(n: int, bad: list[int], seed: int) -> torch.Tensor:
    """Honest clients push class 1 up along an axis; flippers push class 3 instead."""
    values = 0.3 * rows(n, D, seed)
    for i in range(n):
        sign = -1 if i in bad else 1
        values[i, 15 + 3 : 15 + 6] += 2 * sign
        values[i, 15 + 9 : 15 + 12] -= 2 * sign
    return values


@pytest.mark.parametrize("seed", range(6))
def test_lfighter_agrees_with_all_splits_and_finds_the_flippers(seed: int) -> None:
    bad = [1, 4, 6]
    values = flipped(9, bad, seed)
    expected = lfighter_oracle(values.numpy())
    assert expected == [0, 2, 3, 5, 7, 8]
    for size in (1.0, 1e30, 1e-30):
        answer = LFighter().aggregate(updates(values * size))
        assert answer.selected.nonzero().flatten().tolist() == expected
        assert sorted(answer.excluded) == bad
        np.testing.assert_allclose(answer.vector.numpy() / size, values[expected].mean(0).numpy(), rtol=1e-12)


def test_lfighter_looks_at_the_classes_that_move_most() -> None:
    values = flipped(9, [1, 4, 6], 0)
    # Differences in other classes and other layers, smaller than the movement, say nothing.
    values[[0, 2], 15:18] += 1.0
    values[[0, 2], :12] += 50.0
    answer = LFighter().aggregate(updates(values))
    assert sorted(answer.excluded) == [1, 4, 6]
    # A bias alone can make a class move.
    values = 0.01 * rows(9, D, 3)
    values[:, [30, 34]] += 5
    values[:3, 15:18] += 3
    assert sorted(LFighter().aggregate(updates(values)).excluded) == [0, 1, 2]


def test_lfighter_of_two_classes_and_without_bias() -> None:
    for layout in (layout_of((2, 4)), layout_of((1, 4), (1,)), layout_of((7,), (2, 4), (2, 2, 2))):
        d = layout[-1].stop
        values = 0.1 * rows(8, d)
        at = next(s for s in layout if len(s.shape) == 2)
        values[:, at.start : at.stop] += 1
        values[[3, 7], at.start : at.stop] -= 2
        assert sorted(LFighter().aggregate(updates(values, layout)).excluded) == [3, 7]


@pytest.mark.parametrize("rule", [LFighter(), LASA()], ids=repr)
def test_a_layout_is_needed_and_the_message_says_what_helps(rule: Rule) -> None:
    with pytest.raises(UnsupportedError, match="layout"):
        rule(rows())


def test_lfighter_needs_a_matrix() -> None:
    with pytest.raises(UnsupportedError, match="hand over name -> tensor mappings"):
        LFighter()(updates(rows(), layout_of((6,))))


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from([1, 2, 3, 5, 8, 20]),
    seed=st.integers(0, 2**31),
    sparsity=st.sampled_from([0.0, 0.3, 0.9]),
    size=st.sampled_from([1.0, 1e30, 1e-30]),
)
def test_lasa_agrees_with_loops(n: int, seed: int, sparsity: float, size: float) -> None:
    values = rows(n, D, seed)
    values[0, 5] = values[0, 6]
    values[-1, 12:15] = 0
    for limits in ((1.0, 1.0), (0.3, 0.2), (3.0, 1.5)):
        rule = LASA(sparsity, *limits)
        expected = lasa_oracle(values.numpy(), NET, sparsity, limits)
        np.testing.assert_allclose(rule(updates(values * size)).numpy() / size, expected, rtol=1e-9, atol=1e-12)


def test_lasa_in_small_batches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows(11, D)
    whole = LASA().aggregate(updates(values))
    monkeypatch.setattr(lasa_module, "COLUMN_BYTES", 3 * D * 8)
    parts = LASA().aggregate(updates(values))
    np.testing.assert_allclose(parts.vector.numpy(), whole.vector.numpy(), rtol=1e-13)
    assert torch.equal(parts.scores, whole.scores)


def test_keep_largest_gives_ties_to_the_first() -> None:
    values = torch.tensor([[1.0, -1.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0], [3.0, -4.0, 1.0, 2.0]])
    assert keep_largest(values, 0.5).tolist() == [[1, -1, 0, 0], [0, 0, 0, 0], [3, -4, 0, 0]]
    assert keep_largest(values, 0.99)[2].tolist() == [0, -4, 0, 0]
    assert torch.equal(keep_largest(values, 0.0), values)


@pytest.mark.parametrize("rule", [LFighter(), LASA(sparsity=0.0)], ids=repr)
def test_identical_rows_give_that_row(rule: Rule) -> None:
    row = rows(1, D)
    for n in (1, 2, 7):
        for size in (1.0, 1e30, 1e-30):
            same = (row * size).expand(n, -1)
            np.testing.assert_allclose(rule(updates(same)).numpy(), same[0].numpy(), rtol=1e-13)
    assert rule(updates(torch.zeros(4, D))).tolist() == [0.0] * D
    sparse = LASA(sparsity=0.5)(updates(row.expand(6, -1)))
    for layer in NET:
        part = row[:, layer.start : layer.stop]
        np.testing.assert_allclose(sparse[layer.start : layer.stop].numpy(), keep_largest(part, 0.5)[0].numpy())


@pytest.mark.parametrize("rule", [LFighter(), LASA()], ids=repr)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_does_not_matter(rule: Rule, seed: int) -> None:
    values = flipped(9, [0, 3], seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    shuffled, usual = rule(updates(values[order])), rule(updates(values))
    np.testing.assert_allclose(shuffled.numpy(), usual.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rule", [LFighter(), LASA()], ids=repr)
@pytest.mark.parametrize("evil", [1e30, -1e30, 1e38, 1e-30, 0.0, "mirror", "copy", float("nan"), float("inf")])
def test_hostile_rows_leave_the_answer_near_the_honest_ones(rule: Rule, evil: float | str) -> None:
    # LASA sees a mirrored row by the balance of its signs only, so honest rows must have one.
    values = flipped(11, [], 1).float() if isinstance(rule, LFighter) else rows(11, D).float() + 1.5
    bad, honest = [2, 5, 8], [i for i in range(11) if i not in (2, 5, 8)]
    if isinstance(evil, str):
        values[bad] = -values[honest].mean(0) if evil == "mirror" else values[0].clone()
    else:
        values[bad] = evil
    before = values.clone()
    answer = rule(updates(values))
    assert torch.equal(values.nan_to_num(), before.nan_to_num())
    mean = values[honest].mean(0)
    assert torch.isfinite(answer).all()
    assert float((answer - mean).norm()) <= 0.7 * float(mean.norm())


def test_state_dicts_and_dtypes() -> None:
    values = flipped(9, [1, 4, 6], 2)
    for rule in (LFighter(), LASA()):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            answer = rule(updates(values.to(dtype)))
            assert answer.dtype == dtype
            wide = rule(updates(values.to(dtype).double()))
            assert float((answer.double() - wide).norm()) <= 0.02 * float(wide.norm())
        mappings = [{s.name: row[s.start : s.stop].reshape(s.shape) for s in NET} for row in values]
        flat = torch.cat([rule(mappings)[s.name].flatten() for s in NET])
        np.testing.assert_allclose(flat.numpy(), rule(updates(values)).numpy(), rtol=1e-12)


def test_parameters_are_checked() -> None:
    for wrong in ({"sparsity": 1.0}, {"sparsity": -0.1}, {"norm_limit": 0.0}, {"sign_limit": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LASA(**wrong)
