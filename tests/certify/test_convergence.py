"""Top-k SGD with error feedback: the contraction, the bound, and what the bound leaves out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Clip, Mean
from bezoar.certify import contraction, ef_sgd_bound, ef_sgd_lr
from bezoar.errors import ConfigError
from bezoar.kernels.topk import top_k
from bezoar.servers import SparseFed

ROOT = Path(__file__).resolve().parents[2]

VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
CASES = st.integers(1, 12).flatmap(
    lambda d: st.tuples(st.lists(VALUES, min_size=d, max_size=d), st.integers(1, d), st.just(d))
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        spec = importlib.util.spec_from_file_location("convergence", ROOT / "benchmarks" / "convergence.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(__import__("sys").modules, "convergence", module)
        spec.loader.exec_module(module)
    return module


@given(CASES)
def test_top_k_contracts(case: tuple[list[float], int, int]) -> None:
    values, k, d = case
    x = torch.tensor(values, dtype=torch.float64)
    rest = x.clone()
    rest[top_k(x, k)] = 0
    assert float(rest.square().sum()) <= (1 - contraction(k, d)) * float(x.square().sum()) * (1 + 1e-12)


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 8), (3, 8), (8, 8)])
def test_entries_of_one_size_attain_the_contraction(k: int, d: int) -> None:
    x = torch.ones(d, dtype=torch.float64)
    x[::2] = -1
    rest = x.clone()
    rest[top_k(x, k)] = 0
    assert float(rest.square().sum()) == (1 - contraction(k, d)) * d


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))), st.integers(0, 10**6))
def test_the_memory_stays_below_what_the_proof_says(case: tuple[int, int], seed: int) -> None:
    """|e_t|^2 <= 4 (1 - delta) gamma^2 sigma^2 / delta^2 when all |g_t| <= sigma, whatever they are."""
    d, k = case
    draws, gamma, delta = torch.Generator().manual_seed(seed), 0.3, contraction(k, d)
    always = torch.randn(d, generator=draws, dtype=torch.float64)
    server, state = SparseFed(k, momentum=0, lr_placement="inside"), {}  # type: ignore[var-annotated]
    for _ in range(60):
        # Half of the time the same gradient again, which piles up most.
        g = always if torch.rand(1, generator=draws) < 0.5 else torch.randn(d, generator=draws, dtype=torch.float64)
        step = server.step(g / g.norm(), gamma, state)
        state = dict(step.state)
        assert float(state["error"].square().sum()) <= 4 * (1 - delta) * gamma**2 / delta**2 + 1e-12


def test_the_bound_is_never_exceeded_and_falls_as_measured(benchmark: ModuleType) -> None:
    rounds, at, k = [256, 512, 1024, 2048], benchmark.problem(), 8
    measured, bounds = [], []
    for t in rounds:
        lr = ef_sgd_lr(at.gap, at.smoothness, at.second_moment, t)
        measured.append(benchmark.play(at, benchmark.Method(k), np.full(t, lr), seeds=8))
        bounds.append(ef_sgd_bound(at.gap, at.smoothness, at.second_moment, lr, t, contraction(k, at.d)))
    assert all(found <= bound for found, bound in zip(measured, bounds, strict=True))
    # 1/sqrt(T), from either side.
    assert -0.55 < benchmark.slope(rounds, measured) < -0.4
    # Not vacuous: within a factor of ten, and rates far from the best are bounded as well.
    assert all(found >= bound / 12 for found, bound in zip(measured, bounds, strict=True))
    for factor in (0.1, 10):
        lr = factor * ef_sgd_lr(at.gap, at.smoothness, at.second_moment, 512)
        found = benchmark.play(at, benchmark.Method(k), np.full(512, lr), seeds=4)
        assert found <= ef_sgd_bound(at.gap, at.smoothness, at.second_moment, lr, 512, contraction(k, at.d))


def test_the_constants_of_the_problem_hold(benchmark: ModuleType) -> None:
    at = benchmark.problem(d=6)
    draws = torch.Generator().manual_seed(1)
    x, y = (4 * torch.randn(2000, 6, generator=draws, dtype=torch.float64) for _ in range(2))
    y = x + 0.01 * y
    ratio = (at.gradient(x) - at.gradient(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert 0.5 * at.smoothness < float(ratio.max()) <= at.smoothness
    assert float(at.gradient(x).square().sum(1).max()) <= 6 * 27 / 64
    assert at.gap == pytest.approx(6 * 0.5)
    tried = x[:1].clone().requires_grad_()
    at.loss(tried).sum().backward()  # type: ignore[no-untyped-call]
    assert tried.grad is not None
    assert torch.allclose(tried.grad, at.gradient(x[:1]))
    # Not convex: at the start the loss curves downwards along any row of q.
    steps = torch.stack([at.start - 0.1 * at.q[0], at.start, at.start + 0.1 * at.q[0]])
    low, middle, high = at.loss(steps).tolist()
    assert low + high - 2 * middle < 0


@pytest.mark.parametrize(
    ("options", "server"),
    [
        ({}, {"momentum": 0.0, "lr_placement": "inside"}),
        ({"outside": True}, {"momentum": 0.0}),
        ({"momentum": 0.9, "masking": True, "outside": True}, {}),
        ({"momentum": 0.9}, {"masking": "none", "lr_placement": "inside"}),
    ],
    ids=str,
)
def test_the_benchmark_plays_the_server(benchmark: ModuleType, options: dict[str, object], server: object) -> None:
    at, rates = benchmark.problem(d=10), benchmark.triangle(0.2, 40)
    found = benchmark.play(at, benchmark.Method(3, **options), rates, seeds=1, first_seed=7)
    draws, x, state, total = torch.Generator().manual_seed(7), at.start.clone(), {}, 0.0  # type: ignore[var-annotated]
    sparse = SparseFed(3, **server)  # type: ignore[arg-type]
    for lr in rates.tolist():
        g = at.gradient(x[None])[0]
        total += float(g.square().sum())
        step = sparse.step(g + at.noise * torch.randn(1, 10, generator=draws, dtype=torch.float64)[0], lr, state)
        step.apply_(x)
        state = dict(step.state)
    assert found == pytest.approx(total / 40, rel=1e-9)


def test_clipping_moves_the_point_that_training_finds() -> None:
    """Clients with x^2 / 2, twice, and (x - 6)^2 / 2: their mean is flat at 2, the clipped one stands at 1/2."""

    def play(rule: object, rounds: int) -> float:
        x, state = torch.zeros(1, dtype=torch.float64), {}  # type: ignore[var-annotated]
        server = SparseFed(1, momentum=0)
        for _ in range(rounds):
            rows = x - torch.tensor([[0.0], [0.0], [6.0]], dtype=torch.float64)
            step = server.step(rule.aggregate(rows).vector, 0.1, state)  # type: ignore[attr-defined]
            step.apply_(x)
            state = dict(step.state)
        return float(x)

    assert play(Mean(), 200) == pytest.approx(2.0)
    for rounds in (200, 400):
        # The gradient there is 1/2 - 2, for ever: its square stays at 9/4 whatever T is.
        assert play(Clip(1.0) >> Mean(), rounds) == pytest.approx(0.5, abs=1e-5)


RATES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(RATES, st.integers(0, 10**6))
def test_inside_error_feedback_nothing_is_lost(rates: list[float], seed: int) -> None:
    """Every gradient counts in the end, with its own rate: moved + remembered = sum of lr_t g_t."""
    draws = torch.Generator().manual_seed(seed)
    server, x, state = SparseFed(1, momentum=0, lr_placement="inside"), torch.zeros(4, dtype=torch.float64), {}  # type: ignore[var-annotated]
    wanted = torch.zeros(4, dtype=torch.float64)
    for lr in rates:
        g = torch.randn(4, generator=draws, dtype=torch.float64)
        wanted += lr * g
        step = server.step(g, lr, state)
        step.apply_(x)
        state = dict(step.state)
    assert torch.allclose(state["error"] - x, wanted)


@pytest.mark.parametrize(
    ("rates", "placement", "moved", "left"),
    [
        # g = (2, 1) in all rounds, k = 1. The second coordinate of round 1 waits for its turn.
        ([1.0, 0.0, 0.0], "inside", [2.0, 1.0], [0.0, 0.0]),
        # The rate has fallen to zero when its turn comes, in round 3: it is cleared without having moved.
        ([1.0, 0.0, 0.0], "outside", [2.0, 0.0], [2.0, 0.0]),
        # In round 1 nothing should count. Inside, nothing does; outside, (0, 1) is remembered and counts in round 3.
        ([0.0, 1.0, 1.0], "inside", [4.0, 0.0], [0.0, 2.0]),
        ([0.0, 1.0, 1.0], "outside", [2.0, 3.0], [2.0, 0.0]),
    ],
)
def test_outside_error_feedback_the_rate_of_another_round_counts(
    rates: list[float], placement: str, moved: list[float], left: list[float]
) -> None:
    server, x, state = SparseFed(1, momentum=0, lr_placement=placement), torch.zeros(2), {}  # type: ignore
    for lr in rates:
        step = server.step(torch.tensor([2.0, 1.0]), lr, state)
        step.apply_(x)
        state = dict(step.state)
    assert (-x).tolist() == moved
    assert state["error"].tolist() == left


def test_momentum_acts_like_a_rate_ten_times_as_large_unless_masked(benchmark: ModuleType) -> None:
    at = benchmark.problem()
    lr = np.full(1024, ef_sgd_lr(at.gap, at.smoothness, at.second_moment, 1024))
    plain = benchmark.play(at, benchmark.Method(8), lr, seeds=4)
    unmasked = benchmark.play(at, benchmark.Method(8, momentum=0.9), lr, seeds=4)
    tenfold = benchmark.play(at, benchmark.Method(8), 10 * lr, seeds=4)
    masked = benchmark.play(at, benchmark.Method(8, momentum=0.9, masking=True), lr, seeds=4)
    assert unmasked > 3 * plain
    assert unmasked == pytest.approx(tenfold, rel=0.2)
    assert masked < 1.5 * plain


def test_the_page_quotes_the_benchmark() -> None:
    page = (ROOT / "docs" / "convergence.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "convergence.json").read_text())
    for t, ours, dense, bound in zip(found["rounds"], found["ef_sgd"], found["sgd"], found["bound"], strict=True):
        assert f"| {t:,} | {ours:.3g} | {dense:.3g} | {bound:.3g} |" in page
        assert ours <= bound
    assert f"slope is {found['slope']:.2f}" in page
    for figures in (found[name] for name in found if name.startswith(("momentum", "triangle"))):
        assert all(f"{value:.2f}" in page for value in figures.values())


def test_bad_arguments_are_named() -> None:
    for k in (0, 5):
        with pytest.raises(ConfigError, match="k must be between 1 and d=4"):
            contraction(k, 4)
    good = {"gap": 1.0, "smoothness": 1.0, "second_moment": 1.0, "lr": 0.1, "rounds": 10, "delta": 0.5}
    for name, value in [("gap", -1.0), ("smoothness", 0.0), ("second_moment", float("nan")), ("lr", 0.0),
                        ("rounds", 0), ("delta", 0.0), ("delta", 1.5)]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name} must be"):
            ef_sgd_bound(**{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gap must be a positive number"):
        ef_sgd_lr(0.0, 1.0, 1.0, 10)
