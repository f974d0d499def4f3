from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Mean, Rule
from bezoar.aggregation.subsets import MDA, MVA, SMEA
from bezoar.errors import ConfigError
from bezoar.updates import DenseUpdates

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

KINDS = [MDA, MVA, SMEA]
kinds = pytest.mark.parametrize("kind", KINDS)


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cost(kind: type, values: np.ndarray) -> float:
    centred = values - values.mean(0)
    if kind is MDA:
        return max(float(((a - b) ** 2).sum()) for a in values for b in values)
    if kind is MVA:
        return float((centred**2).sum())
    return float(np.linalg.svd(centred, compute_uv=False)[0] ** 2)


def oracle(kind: type, values: np.ndarray, f: int) -> tuple[int, ...]:
    """The first subset of least cost; rounding decides nothing."""
    every = list(itertools.combinations(range(len(values)), len(values) - f))
    costs = [cost(kind, values[list(subset)]) for subset in every]
    least = min(costs)
    return next(subset for subset, value in zip(every, costs, strict=True) if value <= least * (1 + 1e-11) + 1e-300)


def chosen(rule: Rule, values: torch.Tensor) -> tuple[int, ...]:
    answer = rule.aggregate(values)
    assert answer.selected is not None
    picked = tuple(answer.selected.nonzero().flatten().tolist())
    np.testing.assert_allclose(answer.weights.numpy(), answer.selected.double().numpy() / len(picked), rtol=1e-15)
    expected = values[list(picked)].double().mean(0)
    assert float((answer.vector.double() - expected).abs().max()) <= 1e-6 * float(values[list(picked)].abs().max())
    return picked


@kinds
def test_golden_vector(kind: type) -> None:
    assert chosen(kind(f=1), GOLDEN) == (0, 1, 2, 3)
    assert kind(f=1)(GOLDEN).tolist() == [2.0, 2.0]


@kinds
@pytest.mark.parametrize(("n", "f"), [(1, 0), (2, 0), (3, 1), (6, 2), (9, 4), (10, 3), (12, 5)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_it_is_the_best_subset(kind: type, n: int, f: int, scale: float) -> None:
    for seed, d in ((n, 2), (n + 1, 6)):
        values = rows(n, d, seed=seed)
        assert chosen(kind(f=f), values * scale) == oracle(kind, values.numpy(), f)


@kinds
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=8), st.integers(0, 3))
@settings(deadline=None)
def test_ties_go_to_the_lexicographically_first(kind: type, values: list[list[int]], f: int) -> None:
    table = torch.tensor(values, dtype=torch.float64)
    f = min(f, (len(values) - 1) // 2)
    assert chosen(kind(f=f), table) == oracle(kind, table.numpy(), f)


@kinds
def test_nearly_equal_rows_keep_their_digits(kind: type) -> None:
    spread = rows(9, 20, seed=3)
    assert chosen(kind(f=3), 1e3 + 1e-4 * spread) == oracle(kind, (1e3 + 1e-4 * spread).numpy() - 1e3, 3)


def test_rows_at_equal_distances_are_all_tied() -> None:
    for kind in KINDS:
        assert chosen(kind(f=3), torch.eye(10, dtype=torch.float64)) == tuple(range(7))


@given(st.integers(1, 40), st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_search_for_the_diameter_is_exact_for_many_rows(n: int, seed: int, ties: bool) -> None:
    # A smaller diameter would need one of the far pairs to go; greedy answers are only upper bounds.
    random = np.random.default_rng(seed)
    values = random.integers(0, 6, (n, 1)) if ties else random.normal(size=(n, 1))
    f = (n - 1) // 2
    # On a line the best subset is a window.
    ordered = np.sort(values[:, 0])
    least = min(ordered[i + n - f - 1] - ordered[i] for i in range(f + 1))
    picked = list(chosen(MDA(f=f), torch.tensor(values, dtype=torch.float64)))
    assert np.ptp(values[picked]) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("d", [3, 50, 1000])
def test_twenty_rows_are_quick_and_chunks_change_nothing(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows(20, d, seed=d)
    values[:4] += 0.5
    updates = DenseUpdates(values)
    updates.squared_distances()
    picked = {}
    for kind in KINDS:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            picked[kind] = kind(f=4).aggregate(updates).selected
            times.append(time.perf_counter() - start)
        assert min(times) < 1.0
    monkeypatch.setattr("bezoar.aggregation._gram.CHUNK", 400 * 97)
    for kind in KINDS:
        assert torch.equal(kind(f=4).aggregate(updates).selected, picked[kind])
    distances = updates.squared_distances().numpy()
    best = list(map(bool, picked[SMEA]))
    every = [list(subset) for subset in itertools.combinations(range(20), 16)]
    centring = np.eye(16) - 1 / 16
    tops = np.linalg.eigvalsh(np.stack([-0.5 * centring @ distances[np.ix_(s, s)] @ centring for s in every[::7]]))[
        :, -1
    ]
    own = np.flatnonzero(best)
    assert np.linalg.eigvalsh(-0.5 * centring @ distances[np.ix_(own, own)] @ centring)[-1] <= tops.min() * (1 + 1e-9)


@kinds
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_order_place_and_size_of_the_rows(kind: type, seed: int) -> None:
    values, rule = rows(8, seed=seed), kind(f=3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    expected = rule(values).numpy()
    others = [rule(values + 3.0) - 3.0, rule(values * -7.0) / -7.0]
    if kind is MDA:
        # One pair decides the diameter, so that subsets with the same pair tie; only the diameter is the same.
        shuffled = cost(MDA, values[order][list(chosen(rule, values[order]))].numpy())
        assert shuffled == pytest.approx(cost(MDA, values[list(chosen(rule, values))].numpy()))
    else:
        others.append(rule(values[order]))
    for other in others:
        np.testing.assert_allclose(other.numpy(), expected, rtol=1e-9, atol=1e-11)


@kinds
def test_f_zero_identical_rows_and_dtypes(kind: type) -> None:
    np.testing.assert_allclose(kind(f=0)(rows()).numpy(), Mean()(rows()).numpy(), rtol=1e-12)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        same = rows(1, dtype=torch.float32).to(dtype).expand(9, 5)
        answer = kind(f=4)(same)
        assert answer.dtype == dtype
        np.testing.assert_allclose(answer.double().numpy(), same[0].double().numpy(), rtol=1e-2)
        values = rows().to(dtype)
        before = values.clone()
        assert torch.isfinite(kind(f=2)(values)).all()
        assert torch.equal(values, before)
    assert kind(f=4)(torch.zeros(9, 2)).tolist() == [0.0, 0.0]


@kinds
@pytest.mark.parametrize("evil", [float("nan"), float("inf"), -float("inf"), 1e30, 1e38, 0.0])
def test_two_of_nine_can_not_break_it(kind: type, evil: float) -> None:
    values = rows(dtype=torch.float32)
    values[[2, 5]] = evil
    honest = values[[0, 1, 3, 4, 6, 7, 8]].double()
    answer = kind(f=2).aggregate(values)
    gap = float((answer.vector.double() - honest.mean(0)).square().sum())
    kappa = min(known.value for known in kind(f=2).constants(9, 2, 2))
    assert gap <= kappa * float((honest - honest.mean(0)).square().sum(1).mean()) * (1 + 1e-5)
    if evil:
        assert not answer.selected[[2, 5]].any()


@kinds
@pytest.mark.parametrize(("n", "f", "q"), [(5, 1, 1), (5, 2, 2), (7, 2, 1), (7, 3, 1), (7, 3, 0), (7, 3, 3)])
def test_proved_constants_hold_for_all_honest_sets(kind: type, n: int, f: int, q: int) -> None:
    proved = [known.value for known in kind(f=f).constants(n, f, q) if known.source == "proved"]
    assert proved
    worst = 0.0
    random = np.random.default_rng(1)
    tables = [random.choice([-1.0, 0.0, 0.5, 1.0], (n, 1)) for _ in range(60)]
    tables += [random.normal(size=(n, 2)) * random.choice([0.1, 1, 3], (n, 1)) for _ in range(20)]
    for values in tables:
        answer = kind(f=f)(torch.tensor(values)).numpy()
        for honest in itertools.combinations(range(n), n - q):
            inside = values[list(honest)]
            spread = float(((inside - inside.mean(0)) ** 2).sum(1).mean())
            if spread > 1e-12:
                worst = max(worst, float(((answer - inside.mean(0)) ** 2).sum()) / spread)
    assert 0.05 <= worst <= min(proved) * (1 + 1e-9)


def test_values_of_the_constants() -> None:
    assert MDA(f=2).constants(9, 2, 1)[0].value == pytest.approx(32 / 7)
    assert MVA(f=2).constants(9, 2, 2)[0].value == pytest.approx(8 / 5)
    assert SMEA(f=2).constants(9, 2, 2)[0].value == pytest.approx(8 / 5)
    assert SMEA(f=2).constants(9, 2, 2)[1].value == pytest.approx(8 / 7 * (1 + 2 / 5) ** 2)
    assert MVA(f=3).constants(9, 3, 0)[0].value == pytest.approx(3 / 6)


@pytest.mark.parametrize("kind", [MVA, SMEA])
def test_too_many_subsets_are_refused(kind: type) -> None:
    with pytest.raises(ConfigError, match=str(math.comb(40, 10))) as caught:
        kind(f=10)(rows(40))
    assert "NNM(f=10)" in str(caught.value)


def test_too_long_a_search_is_refused() -> None:
    assert torch.isfinite(MDA(f=36)(rows(80, 3))).all()
    with pytest.raises(ConfigError, match="MultiKrum"):
        MDA(f=40)(rows(90))
    with pytest.raises(ConfigError, match="f must be between 0 and 2"):
        MDA(f=3)(rows(5))
