from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Clip, Mean
from bezoar.errors import ConfigError
from bezoar.servers import SERVERS, SGD, FetchSGD, SparseFed
from bezoar.servers.schedules import SCHEDULES, Constant, Cosine, PiecewiseLinear, Triangular


def play(server: Any, updates: list[list[float]], rates: list[float]) -> list[list[float]]:
    """The model after every round, from zero."""
    model = torch.zeros(len(updates[0]), dtype=torch.float64)
    state: Any = {}
    path = []
    for update, lr in zip(updates, rates, strict=True):
        step = server.step(torch.tensor(update, dtype=torch.float64), lr, state)
        step.apply_(model)
        state = step.state
        path.append(model.tolist())
    return path


#: Two rounds on three coordinates, k = 1, rho = 1/2, rates 1 and 1/2, worked out by hand.
UPDATES, RATES = [[4.0, 2.0, 0.0], [0.0, 2.0, 1.0]], [1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Round 1 in all: R = W = (4, 2, 0), coordinate 0 moves by 4, W = (0, 2, 0).
        # R = (0, 2, 0) after masking; R = (0, 3, 1); W = (0, 5, 1): coordinate 1 moves by 1/2 * 5.
        ({}, [-4.0, -2.5, 0.0]),
        # W collects bare updates: W = (0, 4, 1), coordinate 1 moves by 1/2 * 4.
        ({"error_input": "update"}, [-4.0, -2.0, 0.0]),
        # R is not masked: R = (2, 3, 1), W = (2, 5, 1), the same coordinate wins here.
        ({"masking": "none"}, [-4.0, -2.5, 0.0]),
        # R -= step gives R = (0, 2, 0) in round 1, as R = W there.
        ({"masking": "subtract"}, [-4.0, -2.5, 0.0]),
        # W += lr R: W = (0, 2, 0) + 1/2 (0, 3, 1) = (0, 3.5, 0.5), moves by 3.5.
        ({"lr_placement": "inside"}, [-4.0, -3.5, 0.0]),
        # R = (0, 1, 0) + 1/2 u = (0, 2, 0.5), W = (0, 4, 0.5), moves by 4.
        ({"lr_placement": "inside-momentum"}, [-4.0, -4.0, 0.0]),
    ],
    ids=str,
)
def test_sparsefed_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    path = play(SparseFed(k=1, momentum=0.5, **options), UPDATES, RATES)
    assert path[0] == [-4.0, 0.0, 0.0]
    assert path[1] == pytest.approx(expected)


def oracle(updates: np.ndarray, rates: list[float], k: int, rho: float, options: dict[str, Any]) -> np.ndarray:
    """The algorithm spelt out coordinate by coordinate."""
    d = updates.shape[1]
    model, momentum, error = np.zeros(d), np.zeros(d), np.zeros(d)
    for u, lr in zip(updates, rates, strict=True):
        if options.get("lr_placement") == "inside-momentum":
            u = lr * u
        momentum = rho * momentum + u
        fed = u if options.get("error_input") == "update" else momentum
        error = error + (lr if options.get("lr_placement") == "inside" else 1.0) * fed
        chosen = sorted(range(d), key=lambda j: (-abs(error[j]), j))[:k]
        for j in chosen:
            moved = error[j]
            model[j] -= (lr if options.get("lr_placement", "outside") == "outside" else 1.0) * moved
            if options.get("masking", "zero") == "zero":
                momentum[j] = 0
            elif options["masking"] == "subtract":
                momentum[j] -= moved
            error[j] = 0
    return model


READINGS: list[dict[str, Any]] = [
    {},
    {"error_input": "update"},
    {"masking": "none"},
    {"masking": "subtract"},
    {"lr_placement": "inside"},
    {"lr_placement": "inside-momentum"},
]


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_sparsefed_agrees_with_a_plain_loop(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    updates, rates = rng.normal(size=(30, 50)), [0.02 * (t + 1) for t in range(30)]
    found = play(SparseFed(k=5, momentum=0.9, **options), updates.tolist(), rates)[-1]
    np.testing.assert_allclose(found, oracle(updates, rates, 5, 0.9, options), rtol=1e-10)


def test_the_readings_of_the_paper_differ_materially() -> None:
    rng = np.random.default_rng(0)
    updates, rates = rng.normal(size=(30, 50)).tolist(), [0.02 * (t + 1) for t in range(30)]
    ends = [np.array(play(SparseFed(k=5, **options), updates, rates)[-1]) for options in READINGS]
    for i, a in enumerate(ends):
        for b in ends[:i]:
            assert np.linalg.norm(a - b) > 0.3 * np.linalg.norm(b)


def test_k_equal_to_d_is_clipped_sgd_without_momentum() -> None:
    draws = torch.Generator().manual_seed(0)
    clip = Clip(1.0) >> Mean()
    sparse, plain = torch.zeros(40), torch.zeros(40)
    state: Any = {}
    for t in range(10):
        aggregate = clip(torch.randn(6, 40, generator=draws) * 3)
        step = SparseFed(k=40).step(aggregate, 0.1 * t, state)
        state = step.state
        step.apply_(sparse)
        SGD(momentum=0.0).step(aggregate, 0.1 * t, {}).apply_(plain)
        assert torch.equal(sparse, plain)


def test_one_client_without_a_radius_is_plain_sgd() -> None:
    draws = torch.Generator().manual_seed(0)
    sparse, plain = torch.zeros(30), torch.zeros(30)
    state: Any = {}
    for t in range(8):
        update = torch.randn(1, 30, generator=draws)
        step = SparseFed(k=30, momentum=0.0).step((Clip(math.inf) >> Mean())(update), 0.1 * t, state)
        state = step.state
        step.apply_(sparse)
        plain -= 0.1 * t * update[0]
        assert torch.equal(sparse, plain)


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_what_has_moved_is_bounded_by_the_clipped_norms(options: dict[str, Any]) -> None:
    """W is zero where the model moved, and that is by no more than lr / (1 - rho) times the sum of clipped norms."""
    draws = torch.Generator().manual_seed(1)
    clip, rho, radius = Clip(0.5) >> Mean(), 0.6, 0.5
    model, state = torch.zeros(40, dtype=torch.float64), {}
    for _ in range(20):
        rows = torch.randn(7, 40, generator=draws, dtype=torch.float64) * 5
        aggregate = clip(rows)
        assert aggregate.norm() <= rows.norm(dim=1).clamp(max=radius).mean() + 1e-12
        step = SparseFed(k=4, momentum=rho, **options).step(aggregate, 0.1, state)
        state = dict(step.state)
        assert step.index is not None
        assert (state["error"][step.index] == 0).all()
        step.apply_(model)
    if options.get("masking") != "subtract":
        # Subtracting a step that is made of W leaves in R what was never there: nothing bounds it.
        assert model.norm() <= 20 * 0.1 * radius / (1 - rho)


def test_error_feedback_is_empty_where_the_model_moved() -> None:
    step = SparseFed(k=3).step(torch.arange(10.0), 0.1, {})
    assert step.index.tolist() == [7, 8, 9]
    assert (step.state["error"][step.index] == 0).all()
    assert (step.state["error"][:7] == torch.arange(7.0)).all()


def test_a_step_changes_neither_its_aggregate_nor_its_state() -> None:
    for server in (SGD(), SparseFed(k=2), SparseFed(k=2, masking="none"), SparseFed(k=2, error_input="update")):
        aggregate = torch.arange(5.0)
        state = server.step(aggregate, 0.1, {}).state
        copies = {name: value.clone() for name, value in state.items()}
        server.step(aggregate, 0.1, state)
        assert torch.equal(aggregate, torch.arange(5.0))
        assert all(torch.equal(state[name], copies[name]) for name in state)


def test_sgd_with_momentum_by_hand() -> None:
    assert play(SGD(momentum=0.5), [[1.0], [1.0], [1.0]], [1.0, 1.0, 0.1])[-1] == pytest.approx([-(1 + 1.5 + 0.175)])


def test_sgd_with_the_rate_inside_momentum_by_hand() -> None:
    # R: 1; 1/2 + 1 = 3/2; 3/4 + 1/10: what is remembered keeps its old rate. In all -(1 + 1.5 + 0.85).
    server = SGD(momentum=0.5, lr_placement="inside-momentum")
    assert play(server, [[1.0], [1.0], [1.0]], [1.0, 1.0, 0.1])[-1] == pytest.approx([-3.35])
    for placement in ("outside", "inside-momentum"):
        steady = SGD(momentum=0.5, lr_placement=placement)  # type: ignore[arg-type]
        assert play(steady, [[1.0]] * 3, [0.5] * 3)[-1] == pytest.approx([-(0.5 + 0.75 + 0.875)])
        bare = SGD(momentum=0.0, lr_placement=placement)  # type: ignore[arg-type]
        assert play(bare, [[1.0]] * 2, [0.5, 0.25])[-1] == [-0.75]
    with pytest.raises(ConfigError, match="'outside' or 'inside-momentum', got 'inside'"):
        SGD(lr_placement="inside")  # type: ignore[arg-type]
    assert SERVERS.table(SGD()) == {"kind": "sgd", "momentum": 0.9}
    assert SERVERS.build(SERVERS.table(server)) == server


def test_a_schedule_at_the_end_of_a_round_or_a_round_late() -> None:
    # The authors' PiecewiseLinear([0, 5, 24], [0, 0.2, 0]) with 100 rounds an epoch, at step / 100.
    def code(step: int) -> float:
        epoch = step / 100
        return 0.2 * epoch / 5 if epoch <= 5 else 0.2 * (24 - epoch) / 19

    points = ((0.0, 0.0), (5 / 24, 0.2), (1.0, 0.0))
    later, first = PiecewiseLinear(points, offset=0.0), PiecewiseLinear(points, offset=1.0)
    for t in (1, 2, 250, 500, 501, 1700, 2399, 2400):
        assert later.at(t, 2400) == pytest.approx(code(t), abs=1e-12)
        assert first.at(t, 2400) == pytest.approx(code(t - 1), abs=1e-12)
        assert Triangular(0.2, 5 / 24, offset=0.0).at(t, 2400) == pytest.approx(code(t), abs=1e-12)
    assert later.at(2400, 2400) == first.at(1, 2400) == 0.0
    # The default lies between the two.
    assert PiecewiseLinear(points).at(9, 2400) == pytest.approx((code(8) + code(9)) / 2)
    for offset in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="offset must be between 0 and 1"):
            Constant(0.1, offset=offset)
    assert SCHEDULES.table(Cosine(0.1)) == {"kind": "cosine", "peak": 0.1, "final": 0.0, "warmup": 0.0}
    assert SCHEDULES.build(SCHEDULES.table(later)) == later


@pytest.mark.parametrize(("k", "d", "count"), [("1%", 1000, 10), ("0.01%", 1000, 1), (7, 1000, 7), ("100%", 9, 9)])
def test_k_is_a_count_or_a_share(k: int | str, d: int, count: int) -> None:
    assert SparseFed(k=k).count(d) == count


@pytest.mark.parametrize("k", [0, -1, "0%", "101%", "ten", "5", True])
def test_k_that_makes_no_sense(k: Any) -> None:
    with pytest.raises(ConfigError, match="k must be"):
        SparseFed(k=k)


def test_k_larger_than_the_model() -> None:
    with pytest.raises(ConfigError, match="k=11 is more than the model's 10 parameters"):
        SparseFed(k=11).step(torch.zeros(10), 0.1, {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseFed(k=1, masking="substract"), "masking must be 'zero' or 'subtract' or 'none', got 'sub"),
        (lambda: SparseFed(k=1, error_input="gradient"), "error_input must be 'momentum' or 'update'"),
        (lambda: SparseFed(k=1, lr_placement="out"), "lr_placement must be 'outside' or 'inside' or 'inside-mom"),
        (lambda: SGD(lr_placement="inside"), "lr_placement must be 'outside' or 'inside-momentum', got 'inside'"),
        (lambda: FetchSGD(k=1, error_masking="none"), "error_masking must be 'zero' or 'subtract'"),
        (lambda: FetchSGD(k=1, masking="subtract"), "masking must be 'zero' or 'none'"),
        (lambda: FetchSGD(k=1, rows=2.5), "rows must be a whole number >= 1, got 2.5"),
    ],
)
def test_readings_that_do_not_exist(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("make", [SGD, lambda: SparseFed(k=100), lambda: FetchSGD(k=100, columns=10_000)])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_steps_in_other_modes_of_torch(make: Any, mode: Any) -> None:
    """Threads start with torch's defaults; they have to work on what the caller has made in another mode."""
    server, threads = make(), torch.get_num_threads()
    aggregate = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    wanted = server.step(aggregate, 0.1, server.step(aggregate, 0.1, {}).state)
    try:
        torch.set_num_threads(2)
        with mode():
            given = aggregate.clone().requires_grad_(mode is torch.no_grad)
            found = server.step(given, 0.1, server.step(given, 0.1, {}).state)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found.values, wanted.values)
    assert not found.values.requires_grad


@pytest.mark.parametrize("make", [lambda **o: SparseFed(k=3, **o), lambda **o: FetchSGD(k=3, columns=20_000, **o)])
def test_a_step_that_overflows_is_infinite_without_a_warning(make: Any) -> None:
    step = make(lr_placement="outside").step(torch.full((20_000,), 1e38), 10.0, {})
    assert step.values.isposinf().all()


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_momentum_range(momentum: float) -> None:
    for server in (SGD, lambda momentum: SparseFed(k=1, momentum=momentum)):
        with pytest.raises(ConfigError, match="momentum"):
            server(momentum=momentum)


def test_schedules_have_the_right_shape() -> None:
    rounds = 2400
    triangle = [Triangular(0.2, 5 / 24).at(t, rounds) for t in range(1, rounds + 1)]
    assert max(triangle) == pytest.approx(0.2, rel=1e-2)
    assert 496 <= triangle.index(max(triangle)) <= 505
    assert min(triangle) > 0
    assert sum(triangle) / rounds == pytest.approx(0.1, rel=1e-3)
    cosine = [Cosine(1.0, final=0.1, warmup=0.1).at(t, 1000) for t in range(1, 1001)]
    assert cosine[0] < 0.01
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)
    assert cosine[549] == pytest.approx(0.55, abs=1e-2)
    lines = PiecewiseLinear(((0.0, 1.0), (0.5, 1.0), (1.0, 0.0)))
    assert [lines.at(t, 4) for t in (1, 2, 3, 4)] == pytest.approx([1.0, 1.0, 0.75, 0.25])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(0.0),
        lambda: Constant(math.nan),
        lambda: Triangular(0.1, 1.0),
        lambda: Triangular(-0.1),
        lambda: PiecewiseLinear(((0.0, 1.0),)),
        lambda: PiecewiseLinear(((0.0, 1.0), (0.9, 1.0))),
        lambda: PiecewiseLinear(((0.0, -1.0), (1.0, 1.0))),
        lambda: Cosine(1.0, final=2.0),
    ],
)
def test_schedules_refuse_nonsense(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_tables_round_trip() -> None:
    for server in (SGD(0.5), SparseFed(k="1%", masking="none")):
        assert SERVERS.build(SERVERS.table(server)) == server
    for schedule in (Constant(0.1), Triangular(0.2), PiecewiseLinear(((0.0, 0.0), (1.0, 1.0))), Cosine(0.1)):
        assert SCHEDULES.build(SCHEDULES.table(schedule)) == schedule


def written_out(updates: list[torch.Tensor], rates: list[float], k: int, options: dict[str, Any]) -> torch.Tensor:
    """The algorithm on whole vectors, one line a line of the paper."""
    model, momentum, error = (torch.zeros_like(updates[0]) for _ in range(3))
    placement = options.get("lr_placement", "outside")
    for u, lr in zip(updates, rates, strict=True):
        entering = lr * u if placement == "inside-momentum" else u
        momentum = torch.add(entering, momentum, alpha=0.9)
        fed = entering if options.get("error_input") == "update" else momentum
        error = torch.add(error, fed, alpha=lr if placement == "inside" else 1.0)
        index = torch.sort(error.abs(), descending=True, stable=True).indices[:k]
        moved = error[index]
        model[index] -= lr * moved if placement == "outside" else moved
        error[index] = 0
        masking = options.get("masking", "zero")
        momentum[index] = momentum[index] - moved if masking == "subtract" else momentum[index] * (masking == "none")
    return model


@pytest.mark.parametrize("options", READINGS, ids=str)
@pytest.mark.parametrize("kind", ["normal", "tied", "constant"])
def test_long_vectors_bit_by_bit(options: dict[str, Any], kind: str) -> None:
    # Long enough for a sampled threshold and several chunks, with an odd end.
    d, draws = 5 * 32768 + 11, torch.Generator().manual_seed(0)
    updates = [torch.randn(d, generator=draws) for _ in range(3)]
    if kind == "tied":
        updates = [(2 * u).round() for u in updates]
    elif kind == "constant":
        updates = [torch.ones(d) for _ in updates]
    rates, state, model = [0.3, 0.2, 0.1], {}, torch.zeros(d)
    server = SparseFed(k=2000, **options)
    for u, lr in zip(updates, rates, strict=True):
        step = server.step(u, lr, state)
        step.apply_(model)
        state = dict(step.state)
    assert torch.equal(model, written_out(updates, rates, 2000, options))
