from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from bezoar.aggregation import Clip, Mean
from bezoar.errors import ConfigError, DivergedError
from bezoar.experiments import run
from bezoar.experiments.defence import defence
from bezoar.experiments.run import Interrupted
from bezoar.kernels import count_sketch
from bezoar.servers import SERVERS, FetchSGD, SparseFed
from tests.experiments.tiny import tiny
from tests.servers.test_servers import play

#: Two rounds on three coordinates, rates 1 and 1/2, rho = 1/2.
UPDATES, RATES = [[4.0, 2.0, 0.0], [0.0, 2.0, 1.0]], [1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Su = Se = (4, 2, 0), coordinate 0 moves by 4; what is left of both is (0, 2, 0).
        # Su = (0, 3, 1), Se = (0, 2, 0) + 1/2 Su = (0, 3.5, 0.5): coordinate 1 moves by 3.5.
        ({}, [-4.0, -3.5, 0.0]),
        # Nothing collides: subtracting the step leaves zero as well.
        ({"error_masking": "subtract"}, [-4.0, -3.5, 0.0]),
        # Su = (2, 3, 1), Se = (1, 3.5, 0.5): the same winner.
        ({"masking": "none"}, [-4.0, -3.5, 0.0]),
        # Su = (0, 1, 0) + 1/2 u = (0, 2, 0.5), Se = (0, 4, 0.5): moves by 4.
        ({"lr_placement": "inside-momentum"}, [-4.0, -4.0, 0.0]),
        # Se = (0, 2, 0) + (0, 3, 1): coordinate 1 moves by 1/2 * 5.
        ({"lr_placement": "outside"}, [-4.0, -2.5, 0.0]),
    ],
    ids=str,
)
def test_by_hand_where_nothing_collides(options: dict[str, Any], expected: list[float]) -> None:
    path = play(FetchSGD(k=1, rows=3, columns=640, momentum=0.5, **options), UPDATES, RATES)
    assert path[0] == [-4.0, 0.0, 0.0]
    assert path[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected", "error", "momentum"),
    [
        # One row of two cells; coordinate 0 is alone, 1 and 2 share a cell with signs + and -.
        # Round 1, u = (1, 4, 1): Su = Se = [1 | 3]; estimates (1, 3, -3), the first of the largest is 1: it moves by 3.
        # Its cell is emptied, and with it what coordinate 2 had: Su = Se = [1 | 0].
        # Round 2, u = (1, 1, 3): Su = [1.5 | -2], Se = [1 | 0] + 1/2 Su = [1.75 | -1]: coordinate 0 moves by 1.75.
        ({}, [[0.0, -3.0, 0.0], [-1.75, -3.0, 0.0]], [0.0, -1.0], [0.0, -2.0]),
        # Su keeps [1 | 3]: Su = [1.5 | -0.5], Se = [1.75 | -0.25].
        ({"masking": "none"}, [[0.0, -3.0, 0.0], [-1.75, -3.0, 0.0]], [0.0, -0.25], [1.5, -0.5]),
    ],
    ids=str,
)
def test_by_hand_with_a_collision(
    options: dict[str, Any],
    expected: list[list[float]],
    error: list[float],
    momentum: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = count_sketch._Plan(np.array([[0, 1, 1]]), np.array([[1, 1, -1]], np.int8), np.ones(1, np.int8))
    monkeypatch.setattr(count_sketch, "_draw", lambda *_: plan)
    server = FetchSGD(k=1, rows=1, columns=2, momentum=0.5, **options)
    model, state = torch.zeros(3), {}
    for update, lr, place in zip([[1.0, 4.0, 1.0], [1.0, 1.0, 3.0]], RATES, expected, strict=True):
        step = server.step(torch.tensor(update), lr, state)
        step.apply_(model)
        state = step.state
        assert model.tolist() == place
    assert state["error"].flatten().tolist() == error
    assert state["momentum"].flatten().tolist() == momentum


def test_subtracting_keeps_what_collided_and_zeroing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two rows would disagree about coordinate 0: alone in the first, with coordinate 1 in the second.
    starts, signs = np.array([[0, 1, 2], [0, 0, 1]]), np.ones((2, 3), np.int8)
    monkeypatch.setattr(count_sketch, "_draw", lambda *_: count_sketch._Plan(starts, signs, np.ones(1, np.int8)))
    ends = {}
    for masking in ("zero", "subtract"):
        step = FetchSGD(k=1, rows=2, columns=3, error_masking=masking).step(torch.tensor([6.0, 2.0, 0.0]), 1.0, {})  # type: ignore[arg-type]
        # The mean of 6 and 8.
        assert step.index.tolist() == [0]
        assert step.values.tolist() == [7.0]
        ends[masking] = step.state["error"].tolist()
    assert ends == {
        "zero": [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]],
        "subtract": [[-1.0, 2.0, 0.0], [1.0, 0.0, 0.0]],
    }


def oracle(server: FetchSGD, updates: np.ndarray, rates: list[float]) -> np.ndarray:
    """Algorithm 10 cell by cell, with the sketch as a dense matrix a row."""
    d = updates.shape[1]
    sketch = server.sketch(d)
    everything = torch.arange(d)
    places, signs = sketch.places(everything).numpy(), sketch.signs(everything).numpy().astype(float)
    maps = np.zeros((sketch.rows, sketch.columns, d))
    for row, j in itertools.product(range(sketch.rows), range(d)):
        maps[row, places[row, j], j] = signs[row, j]
    model = np.zeros(d)
    momentum = error = np.zeros((sketch.rows, sketch.columns))
    for u, lr in zip(updates, rates, strict=True):
        momentum = server.momentum * momentum + (lr if server.lr_placement == "inside-momentum" else 1.0) * (maps @ u)
        error = error + (lr if server.lr_placement == "inside" else 1.0) * momentum
        estimate = np.median(np.take_along_axis(error, places, 1) * signs, axis=0)
        chosen = sorted(range(d), key=lambda j: (-abs(estimate[j]), j))[: server.count(d)]
        delta = np.zeros(d)
        delta[chosen] = estimate[chosen]
        sent = maps @ delta
        error = np.where(sent != 0, 0.0, error) if server.error_masking == "zero" else error - sent
        if server.masking == "zero":
            momentum = np.where(sent != 0, 0.0, momentum)
        model -= (lr if server.lr_placement == "outside" else 1.0) * delta
    return model


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"error_masking": "subtract"},
        {"masking": "none"},
        {"lr_placement": "inside-momentum"},
        {"lr_placement": "outside", "error_masking": "subtract", "masking": "none"},
    ],
    ids=str,
)
def test_agrees_with_algorithm_10_spelt_out(options: dict[str, Any], rows: int) -> None:
    rng = np.random.default_rng(rows)
    updates, rates = rng.normal(size=(20, 60)), [0.02 * (t + 1) for t in range(20)]
    server = FetchSGD(k=4, rows=rows, columns=25, seed=3, **options)
    found = play(server, updates.tolist(), rates)[-1]
    np.testing.assert_allclose(found, oracle(server, updates, rates), rtol=1e-9, atol=1e-12)


def test_what_moves_by_zero_leaves_its_cells_alone() -> None:
    # One row of three remembers something, the median is zero: coordinate 0 is chosen for want of a larger one.
    server = FetchSGD(k=1, rows=3, columns=640)
    error = torch.zeros(3, 640)
    error[0, server.sketch(5).places(torch.tensor([0]))[0]] = 5.0
    step = server.step(torch.zeros(5), 0.1, {"error": error, "momentum": torch.zeros(3, 640)})
    assert step.values.tolist() == [0.0]
    assert torch.equal(step.state["error"], error)


@pytest.mark.parametrize("placement", ["inside", "inside-momentum", "outside"])
@pytest.mark.parametrize("masking", ["zero", "none"])
@pytest.mark.parametrize("k", [3, 40])
def test_without_collisions_it_is_sparsefed(placement: Any, masking: Any, k: int) -> None:
    rng = np.random.default_rng(0)
    updates, rates = rng.normal(size=(20, 40)).tolist(), [0.05 * (t + 1) for t in range(20)]
    # All forty coordinates are one block, whose members never collide.
    sketched = FetchSGD(k=k, rows=3, columns=64 * 40, masking=masking, lr_placement=placement)
    dense = SparseFed(k=k, masking=masking, lr_placement=placement)
    assert play(sketched, updates, rates) == play(dense, updates, rates)


def test_clients_sketches_give_what_the_sketch_of_the_mean_gives() -> None:
    draws = torch.Generator().manual_seed(0)
    server, d = FetchSGD(k=20, rows=5, columns=300), 2000
    sketch = server.sketch(d)
    state: Any = {}
    other: Any = {}
    for _ in range(3):
        rows = torch.randn(6, d, generator=draws, dtype=torch.float64)
        whole = server.step(rows.mean(0), 0.1, state)
        apart = server.step_sketched(torch.stack([sketch.insert(row) for row in rows]).mean(0), d, 0.1, other)
        assert torch.equal(whole.index, apart.index)
        torch.testing.assert_close(whole.values, apart.values, rtol=1e-12, atol=1e-13)
        state, other = whole.state, apart.state


def test_a_step_changes_neither_its_aggregate_nor_its_state() -> None:
    for server in (
        FetchSGD(k=2),
        FetchSGD(k=2, error_masking="subtract", masking="none"),
        FetchSGD(k=2, lr_placement="outside", momentum=0.0),
    ):
        aggregate = torch.arange(50.0)
        state = dict(server.step(aggregate, 0.1, {}).state)
        before = {name: value.clone() for name, value in state.items()}
        after = server.step(aggregate, 0.1, state)
        assert torch.equal(aggregate, torch.arange(50.0))
        assert all(torch.equal(state[name], before[name]) for name in before)
        assert not {value.data_ptr() for value in after.state.values()} & {value.data_ptr() for value in state.values()}


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": "200%"},
        {"k": True},
        {"k": 1, "rows": 0},
        {"k": 1, "columns": 0},
        {"k": 1, "columns": "ten"},
        {"k": 1, "momentum": 1.0},
        {"k": 1, "momentum": math.nan},
    ],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FetchSGD"):
        FetchSGD(**options)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="k=11 is more than the model's 10 parameters"):
        FetchSGD(k=11).step(torch.zeros(10), 0.1, {})
    with pytest.raises(ConfigError, match="table of 5000000000000 cells for 10 parameters"):
        FetchSGD(k=1, columns=10**12).step(torch.zeros(10), 0.1, {})
    with pytest.raises(ConfigError, match=r"float32 or float64 \[5, 1\]"):
        FetchSGD(k=1).step_sketched(torch.zeros(3, 1), 10, 0.1, {})
    for columns in (10**12, 0, "0%"):
        with pytest.raises(ConfigError, match="defence"):
            run(tiny(defence={"preset": "fetchsgd", "columns": columns}))
    with pytest.raises(DivergedError):
        FetchSGD(k=1).step(torch.tensor([1.0, math.nan] * 5), 0.1, {})


def test_a_zero_aggregate_is_a_step_of_zero() -> None:
    step = FetchSGD(k=3, columns=8).step(torch.zeros(20), 0.1, {})
    assert step.index.tolist() == [0, 1, 2]
    assert step.values.tolist() == [0.0] * 3


def test_the_table_round_trips_and_the_preset_is_a_triple() -> None:
    server = FetchSGD(k="1%", rows=1, columns=700, error_masking="subtract", masking="none", seed=4)
    assert SERVERS.build(SERVERS.table(server)) == server
    found = defence({"preset": "fetchsgd", "radius": 3.0, "k": 50, "columns": "5%", "adaptive_clip": True})
    assert found.server == FetchSGD(k=50, columns="5%")
    assert found.pipeline == Clip(3.0) >> Mean()
    assert found.radius(0.1) == pytest.approx(0.3)
    assert defence({"preset": "fetchsgd", "server": {"rows": 1}}).server == FetchSGD(k="1%", rows=1)
    assert FetchSGD(k=1, rows=3, columns="10%").cells(1000) == 300


SKETCHED = {"preset": "fetchsgd", "radius": 2.0, "k": "5%", "columns": "40%"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clients": {"kind": "local", "epochs": 2, "batch_size": 1}, "defence": {**SKETCHED, "adaptive_clip": True}},
        {"attack": {"kind": "adaptive-pgd", "aux": 10, "epochs": 2, "batch_size": 5}},
    ],
    ids=["gradient", "local", "adaptive attack"],
)
def test_runs_of_both_regimes(settings: dict[str, Any]) -> None:
    # The rate is inside: what is above the smallest steps moves later, but moves.
    result = run(tiny(**{"defence": SKETCHED, **settings}))
    assert [record["skipped"] for record in result.rounds] == [None] * 12
    assert all(0 < record["update_norm"] < 10 for record in result.rounds)


def test_training_learns() -> None:
    result = run(tiny(rounds=150, attack="none", defence=SKETCHED))
    assert result.test_accuracy > 0.6


def test_subtracting_from_one_row_leaves_a_cell_larger_than_it_was() -> None:
    vector = torch.zeros(40)
    vector[0] = 1.0
    server = FetchSGD(k=40, rows=1, columns=4, error_masking="subtract", masking="none", momentum=0.0)
    cell = server.sketch(40).places(torch.arange(40))[0]
    members = int((cell == cell[0]).sum())
    assert members > 2
    error = server.step(vector, 1.0, {}).state["error"]
    assert float(error.abs().max()) == members - 1


def test_subtracting_from_a_single_row_diverges_and_emptying_cells_does_not() -> None:
    # As the authors' code says of what the paper prints; their scripts run one row of a tenth of d.
    single = {**SKETCHED, "rows": 1, "columns": "10%"}
    settings: dict[str, Any] = {"rounds": 150, "attack": "none", "seed": 1, "evaluation__every": 50}
    subtracted = run(tiny(**settings, defence={**single, "server": {"error_masking": "subtract"}}))
    assert subtracted.summary["rounds"] < 50
    assert "finite" in subtracted.summary["convergence_note"]
    emptied = run(tiny(**settings, defence=single))
    assert emptied.test_accuracy > 0.6


def test_divergence_is_a_result_not_a_crash() -> None:
    for rows in (1, 5):
        server = {**SKETCHED, "rows": rows, "radius": 1e30}
        result = run(tiny(learning_rate={"kind": "constant", "lr": 1e30}, attack="none", defence=server))
        assert result.summary["converged"] is False


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    import signal

    def stop(record: Any) -> None:
        if record["kind"] == "round" and record["round"] == 5:
            signal.raise_signal(signal.SIGINT)

    experiment = tiny(defence=SKETCHED)
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", progress=stop)
    resumed = run(experiment, tmp_path / "run", resume=True)
    whole = run(experiment)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())
