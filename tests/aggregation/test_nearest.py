from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Clip, Context, Mean, Median, Rule, TrimmedMean
from bezoar.aggregation.centered_clipping import CenteredClipping
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.aggregation.nearest import CVA, MoNNA
from bezoar.errors import ConfigError, HostileRowsError

GOLDEN = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])

RULES: list[Rule] = [MoNNA(f=2, trusted=0), CVA(f=2), CVA(f=2, pivot=Median()), CVA(f=2, pivot=TrimmedMean(f=2))]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)


def rows(n: int = 9, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(values: np.ndarray, pivot: np.ndarray, f: int) -> np.ndarray:
    gaps = [float(((row - pivot) ** 2).sum()) for row in values]
    return values[sorted(range(len(values)), key=lambda i: (gaps[i], i))[: len(values) - f]].mean(0)


def close(answer: torch.Tensor, expected: np.ndarray, scale: float = 1.0, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(answer.double().numpy() / scale, expected, rtol=tolerance, atol=tolerance)


@rules
def test_golden_vector(rule: Rule) -> None:
    rule = MoNNA(f=1, trusted=0) if isinstance(rule, MoNNA) else CVA(f=1)
    answer = rule.aggregate(GOLDEN)
    assert answer.vector.tolist() == [2.0, 2.0]
    assert answer.selected.tolist() == [True] * 4 + [False]
    assert (
        MoNNA(f=1, trusted=0).aggregate(GOLDEN).scores.tolist() == ((GOLDEN - GOLDEN[0]).double() ** 2).sum(1).tolist()
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("n", "f"), [(1, 0), (3, 1), (8, 3), (9, 4), (40, 11)])
def test_rules_agree_with_plain_oracles(n: int, f: int, scale: float) -> None:
    table = rows(n, seed=n)
    values = table * scale
    for trusted in {0, n // 2, n - 1}:
        close(MoNNA(f=f, trusted=trusted)(values), oracle(table.numpy(), table[trusted].numpy(), f), scale)
    for pivot in (Median(), Mean(), GeometricMedian()):
        close(CVA(f=f, pivot=pivot)(values), oracle(table.numpy(), pivot(table).numpy(), f), scale)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=10), st.data())
@settings(deadline=None)
def test_ties_go_to_the_lowest_row(values: list[list[int]], data: st.DataObject) -> None:
    table = torch.tensor(values, dtype=torch.float64)
    f = data.draw(st.integers(0, (len(values) - 1) // 2))
    trusted = data.draw(st.integers(0, len(values) - 1))
    close(MoNNA(f=f, trusted=trusted)(table), oracle(table.numpy(), table[trusted].numpy(), f))
    picked = CVA(f=f, pivot=Median()).aggregate(table)
    gaps = ((table.numpy() - np.median(table.numpy(), axis=0)) ** 2).sum(1)
    # Distances from a vector are not symmetric, so equal ones may differ by rounding.
    np.testing.assert_allclose(np.sort(gaps[picked.selected.numpy()]), np.sort(gaps)[: len(values) - f])


def test_nearly_equal_rows_keep_their_digits() -> None:
    # Norms of 3e4 and squared distances of 1e-5: their difference has no digit in float64.
    spread = rows(11, 1000, seed=4)
    for dtype, size in ((torch.float64, 1e-6), (torch.float32, 1e-2)):
        values = (1e3 + size * spread).to(dtype)
        table = (values.double() - 1e3).numpy()
        middle = np.median(table, axis=0)
        picked = CVA(f=4, pivot=Median()).aggregate(values)
        gaps = ((table - middle) ** 2).sum(1)
        assert set(picked.selected.nonzero().flatten().tolist()) == set(np.argsort(gaps)[:7].tolist())
        np.testing.assert_allclose(picked.scores.numpy(), gaps, rtol=1e-3 if dtype == torch.float64 else 2e-2)
        assert MoNNA(f=4, trusted=2).aggregate(values).selected.nonzero().flatten().tolist() == sorted(
            np.argsort(((table - table[2]) ** 2).sum(1))[:7].tolist()
        )


@rules
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_order_place_and_size_of_the_rows(rule: Rule, seed: int) -> None:
    values = rows(seed=seed)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    expected = rule(values).numpy()
    moved = rule
    if isinstance(rule, MoNNA):
        moved = MoNNA(f=2, trusted=int((order == rule.trusted).nonzero()))
    close(moved(values[order]), expected)
    close(rule(values + 3.0) - 3.0, expected)
    close(rule(values * -7.0) / -7.0, expected)


@rules
def test_identical_rows_dtypes_and_f_zero(rule: Rule) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        same = rows(1, dtype=torch.float32).to(dtype).expand(9, 5)
        answer = rule(same)
        assert answer.dtype == dtype
        close(answer, same[0].double().numpy(), tolerance=1e-2 if dtype.itemsize == 2 else 1e-6)
        values = rows().to(dtype)
        before = values.clone()
        assert torch.isfinite(rule(values)).all()
        assert torch.equal(values, before)
    for mean in (MoNNA(f=0, trusted=3), CVA(f=0)):
        close(mean(rows()), Mean()(rows()).numpy())


@rules
@pytest.mark.parametrize("evil", ["nan", "inf", "-inf", "1e30", "1e38", "copy", "mirror"])
def test_two_of_nine_can_not_break_it(rule: Rule, evil: str) -> None:
    values = rows(dtype=torch.float32) + 1
    honest = values[[0, 1, 3, 4, 6, 7, 8]].clone()
    values[[2, 5]] = honest[0] if evil == "copy" else -honest[0] if evil == "mirror" else float(evil)
    answer = rule.aggregate(values)
    assert torch.isfinite(answer.vector).all()
    assert (answer.vector - honest.mean(0)).norm() <= 1.5 * (honest - honest.mean(0)).norm(dim=1).max()
    if evil not in ("copy", "mirror"):
        assert not answer.selected[[2, 5]].any()


def test_the_trusted_row_is_renumbered_or_missed() -> None:
    values = rows()
    values[[1, 3]] = float("nan")
    answer = MoNNA(f=2, trusted=4).aggregate(values)
    others = values[[0, 2, 4, 5, 6, 7, 8]]
    assert set(answer.excluded) == {1, 3}
    assert torch.equal(answer.vector, MoNNA(f=0, trusted=2)(others))
    assert torch.equal((Clip(1.0) >> MoNNA(f=2, trusted=4))(values), (Clip(1.0) >> MoNNA(f=0, trusted=2))(others))
    with pytest.raises(HostileRowsError, match="trusted row 3 of 9") as caught:
        MoNNA(f=2, trusted=3)(values)
    assert caught.value.rows == (3,)
    values = rows()
    values[3] = 1e20
    with pytest.raises(HostileRowsError, match="trusted row 3 of 9"):
        MoNNA(f=2, trusted=3)(values)


def test_a_pivot_keeps_its_memory_and_reads_the_context() -> None:
    values = rows()
    rule = CVA(f=2, pivot=CenteredClipping(radius=0.1))
    first = rule.aggregate(values)
    assert set(first.state) == {"centre"}
    assert torch.equal(first.state["centre"], rule.pivot(values))
    second = rule.aggregate(values, state=first.state)
    assert not torch.equal(second.state["centre"], first.state["centre"])
    weighted = CVA(f=2, pivot=GeometricMedian(weighted=True))
    assert weighted.weighted
    counts = torch.arange(1.0, 10.0)
    expected = oracle(values.numpy(), GeometricMedian(weighted=True)(values, weights=counts).numpy(), 2)
    close(weighted.aggregate(values, context=Context(client_weights=counts)).vector, expected)


def test_constants_follow_from_the_pivots() -> None:
    rule = CVA(f=2, pivot=TrimmedMean(f=2))
    (known,) = rule.constants(9, 2, 1)
    assert known.value == pytest.approx(8 / 7 * (1 + 2 / 6))
    assert known.source == "proved"
    assert CVA(f=3, pivot=TrimmedMean(f=2)).constants(9, 3, 3) == ()
    assert CVA(f=2).constants(9, 2, 2)[0].source == "published"
    random, worst = np.random.default_rng(2), 0.0
    for _ in range(80):
        values = random.choice([-1.0, 0.0, 1.0, 5.0], (9, 2))
        answer = rule(torch.tensor(values)).numpy()
        for q in (0, 2):
            for honest in itertools.islice(itertools.combinations(range(9), 9 - q), 36):
                inside = values[list(honest)]
                spread = float(((inside - inside.mean(0)) ** 2).sum(1).mean())
                if spread:
                    worst = max(worst, float(((answer - inside.mean(0)) ** 2).sum()) / spread)
    assert 0.2 < worst <= known.value


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 3)])
def test_the_constant_of_monna_holds_for_sets_with_the_trusted_row(n: int, f: int) -> None:
    random, worst = np.random.default_rng(3), 0.0
    for _ in range(100):
        values = random.choice([-1.0, 0.0, 1.0, 2.0], (n, 1))
        answer = MoNNA(f=f, trusted=0)(torch.tensor(values)).numpy()
        for others in itertools.combinations(range(1, n), n - f - 1):
            inside = values[[0, *others]]
            if inside.var():
                worst = max(worst, float(((answer - inside.mean(0)) ** 2).sum() / inside.var()))
    assert 0.2 < worst <= 4 * f * (n - f + 1) / (n - f)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MoNNA(f=1, trusted=-1), "trusted must be a whole number"),
        (lambda: MoNNA(f=1, trusted=9)(rows()), "trusted=9 is no row of n=9"),
        (lambda: MoNNA(f=5, trusted=0)(rows()), "f must be between 0 and 4"),
        (lambda: CVA(f=5)(rows()), "f must be between 0 and 4"),
        (lambda: CVA(f=1, pivot=TrimmedMean(f=5))(rows()), "TrimmedMean: f=5 is out of range"),
        (lambda: CVA(f=1, pivot="median"), "pivot must be a rule"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parameters_say_what_would_fit(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
