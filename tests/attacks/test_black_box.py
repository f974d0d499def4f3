from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import Clip, FoolsGold, GeometricMedian, Krum, Mean, Median, Rule, TrimmedMean
from bezoar.attacks import ALIE, ATTACKS, AttackContext, BlackBox, Goal, black_box
from bezoar.attacks.base import standalone
from bezoar.clients import Scratch
from bezoar.errors import ConfigError
from bezoar.experiments.setup import cross_entropy
from bezoar.models import flatten, make_model
from bezoar.servers import SGD, SparseFed
from bezoar.updates import DenseUpdates


def cohort(seed: int = 0, h: int = 12, d: int = 25, dtype: torch.dtype = torch.float64) -> DenseUpdates:
    draws = torch.Generator().manual_seed(seed)
    rows = 0.3 + torch.randn(h, d, generator=draws, dtype=torch.float64) * torch.linspace(0.1, 1.0, d)
    return DenseUpdates(rows.to(dtype))


def send(attack: BlackBox, view: DenseUpdates, rule: Rule, q: int = 3, seed: int = 0) -> Tensor:
    return attack.send(view, rule, standalone(view, len(view) + q, q, seed)).rows.basis[0].double()


def spread(honest: Tensor) -> float:
    """Root mean square distance from the mean, by loops."""
    rows = honest.double().numpy()
    mean = rows.mean(0)
    return math.sqrt(sum(float(((row - mean) ** 2).sum()) for row in rows) / len(rows))


def farthest(honest: Tensor) -> float:
    rows = honest.double().numpy()
    return max(float(np.linalg.norm(a - b)) for a in rows for b in rows)


def test_on_the_mean_the_direction_and_the_edge_are_known() -> None:
    view = cohort()
    honest = view.values
    mean = honest.mean(0)
    longest = float(honest.norm(dim=1).max())
    sent = send(BlackBox(budget="norm", size=1.5), view, Mean())
    # Of all rows of a given length the one against the mean is farthest from it.
    best = -1.5 * longest * mean / mean.norm()
    assert (sent - best).norm() <= 1e-6 * best.norm()
    sent = send(BlackBox(size=2.0), view, Mean())
    assert float((sent - mean).norm()) == pytest.approx(2 * spread(honest), rel=1e-6)


def test_min_max_on_the_mean_comes_near_the_farthest_point() -> None:
    """In the plane the farthest point that is within D of all rows can be found by looking at every angle."""
    view = cohort(d=2, h=6)
    honest = view.values.numpy()
    mean, limit = honest.mean(0), farthest(view.values)
    best = 0.0
    for angle in np.linspace(0, 2 * math.pi, 400):
        p = np.array([math.cos(angle), math.sin(angle)])
        low, high = 0.0, 4 * limit
        for _ in range(30):
            middle = (low + high) / 2
            inside = max(float(np.linalg.norm(mean + middle * p - row)) for row in honest) <= limit
            low, high = (middle, high) if inside else (low, middle)
        best = max(best, low)
    sent = send(BlackBox(budget="min-max"), view, Mean()).numpy()
    assert np.linalg.norm(sent - mean) >= 0.99 * best


@pytest.mark.parametrize("budget", ["distance", "norm", "min-max"])
@pytest.mark.parametrize("size", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_budget_is_respected(budget: Any, size: float, dtype: torch.dtype) -> None:
    for seed in range(3):
        view = cohort(seed, dtype=dtype)
        honest = view.values.double()
        for rule in (Mean(), Median(), Krum(f=3)):
            sent = send(BlackBox(budget=budget, size=size, trials=40), view, rule, seed=seed)
            if budget == "distance":
                assert float((sent - honest.mean(0)).norm()) <= size * spread(honest)
            elif budget == "norm":
                assert float(sent.norm()) <= size * float(honest.norm(dim=1).max())
            else:
                # Too tight a budget leaves the mean, which is as near to all as it gets.
                least = float((honest - honest.mean(0)).norm(dim=1).max())
                assert float((honest - sent).norm(dim=1).max()) <= max(size * farthest(honest), least * (1 + 1e-6))


@pytest.mark.parametrize("rule", [Median(), Krum(f=3), TrimmedMean(f=3), GeometricMedian()], ids=lambda r: r.name)
def test_it_beats_alie_on_average_at_the_same_distance(rule: Rule) -> None:
    mine, theirs = [], []
    for seed in range(5):
        view = cohort(seed)
        honest, mean = view.values, view.values.mean(0)
        other = ALIE(z=1.0)(honest, n=15, q=3)
        size = float((other[0] - mean).norm()) / spread(honest)
        sent = send(BlackBox(size=size), view, rule, seed=seed)
        theirs.append(float((rule(torch.cat([honest, other])) - mean).norm()))
        mine.append(float((rule(torch.cat([honest, sent.expand(3, -1)])) - mean).norm()))
    assert np.mean(mine) >= np.mean(theirs) * 1.02


def test_more_trials_help_and_everything_follows_from_the_seed() -> None:
    view = cohort()
    at = standalone(view, 15, 3, seed=1)
    few, many = BlackBox(trials=6), BlackBox(trials=600)
    results = [attack.send(view, Median(), at).report["deviation"] for attack in (few, many)]
    assert results[1] > results[0]
    one, again = many.send(view, Median(), at), many.send(view, Median(), at)
    other = many.send(view, Median(), standalone(view, 15, 3, seed=2))
    assert torch.equal(one.rows.basis, again.rows.basis)
    assert not torch.equal(one.rows.basis, other.rows.basis)


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("restarts", [1, 4])
def test_trials_are_counted(trials: int, restarts: int) -> None:
    asked = []

    def defence(rows: Tensor) -> Tensor:
        asked.append(rows.shape)
        return rows.mean(0)

    view = cohort()
    black_box(defence, view.values, q=2, attack=BlackBox(trials=trials, restarts=restarts))
    assert asked == [(14, 25)] * trials


def test_any_function_can_be_attacked_in_any_kind() -> None:
    honest = cohort(dtype=torch.float32).values
    mean = honest.double().mean(0)

    def lower_median(rows: Tensor) -> Tensor:
        return rows.median(dim=0).values

    def in_numpy(rows: Tensor) -> Any:
        return np.median(rows.numpy(), axis=0)

    sent = black_box(lower_median, honest, q=3, seed=4)
    assert isinstance(sent, Tensor)
    assert sent.shape == (25,)
    assert float((sent.double() - mean).norm()) <= spread(honest)
    moved = (lower_median(torch.cat([honest, sent.expand(3, -1)])).double() - mean).norm()
    still = (lower_median(torch.cat([honest, honest.mean(0).expand(3, -1)])).double() - mean).norm()
    assert moved > still
    assert isinstance(black_box(in_numpy, honest.numpy(), q=3), np.ndarray)


def test_a_function_may_scribble_on_what_it_gets() -> None:
    honest = cohort().values
    before = honest.clone()

    def rude(rows: Tensor) -> Tensor:
        rows.sort(dim=0)
        rows.zero_()
        return torch.ones(25, dtype=rows.dtype)

    black_box(rude, honest, q=2, attack=BlackBox(trials=5))
    assert torch.equal(honest, before)


def test_functions_that_answer_something_else_and_a_loss_without_a_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[25\]"):
        black_box(lambda rows: rows, cohort().values, q=2)
    with pytest.raises(ConfigError, match="objective"):
        black_box(lambda rows: rows.mean(0), cohort().values, q=2, attack=BlackBox(objective="loss"))


@pytest.mark.parametrize("server", [SGD(momentum=0.0), SparseFed(k="20%", momentum=0.0)], ids=str)
def test_the_loss_of_the_attackers_points_goes_down(server: Any) -> None:
    model = make_model("mlp", (1, 4, 4), 3, seed=0, hidden=[8])
    weights = flatten(model)
    draws = torch.Generator().manual_seed(1)
    goal = Goal(torch.randn(12, 1, 4, 4, generator=draws), torch.randint(3, (12,), generator=draws))
    view = DenseUpdates(0.1 * torch.randn(8, len(weights), generator=draws))
    before = weights.clone()
    at = AttackContext(
        1, 0, torch.arange(8, 12), weights, Scratch(model), cross_entropy, math.inf, goal, 12, server=server
    )

    def loss_after(rows: Tensor) -> float:
        step = server.step(Mean()(rows), 1.0, {})
        moved = weights.clone()
        step.apply_(moved)
        at.scratch.load(moved)
        return float(cross_entropy(at.scratch.module(goal.inputs), goal.labels).mean().detach())

    attack = BlackBox(objective="loss", whole_trials=60, size=3.0)
    assert attack.targeted
    assert not BlackBox().targeted
    sent = attack.send(view, Mean(), at)
    reached = loss_after(sent.rows.materialise())
    assert reached < loss_after(view.values)
    assert sent.report["loss"] == pytest.approx(reached, rel=1e-5)
    assert torch.equal(weights, before)
    with pytest.raises(ConfigError, match="goal"):
        attack.send(view, Mean(), dataclasses.replace(at, goal=None))


def points(seed: int) -> tuple[DenseUpdates, AttackContext]:
    """Small honest rows, and the context of four attackers who want points misclassified."""
    model = make_model("mlp", (1, 4, 4), 3, seed=seed, hidden=[8])
    weights = flatten(model)
    draws = torch.Generator().manual_seed(seed)
    goal = Goal(torch.randn(12, 1, 4, 4, generator=draws), torch.randint(3, (12,), generator=draws))
    view = DenseUpdates(0.1 * torch.randn(8, len(weights), generator=draws))
    server = SGD(momentum=0.0)
    at = AttackContext(
        1, seed, torch.arange(8, 12), weights, Scratch(model), cross_entropy, math.inf, goal, 12, server=server
    )
    return view, at


@pytest.mark.parametrize("trials", [1, 2, 16, 40])
@pytest.mark.parametrize("rule", [Mean(), Median(), Clip(1.0) >> Mean()], ids=lambda rule: rule.name)
def test_the_gradient_alone_is_never_better(trials: int, rule: Rule) -> None:
    for seed in range(4):
        view, at = points(seed)
        assert at.goal is not None
        model = make_model("mlp", (1, 4, 4), 3, seed=seed, hidden=[8])
        loss = torch.nn.functional.cross_entropy(model(at.goal.inputs), at.goal.labels)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        mean, reach = view.values.mean(0), 2 * spread(view.values)

        def loss_after(
            row: Tensor, view: DenseUpdates = view, at: AttackContext = at, model: torch.nn.Module = model
        ) -> float:
            moved = at.weights - rule(torch.cat([view.values, row.expand(4, -1)]))
            torch.nn.utils.vector_to_parameters(moved, model.parameters())
            assert at.goal is not None
            with torch.no_grad():
                return float(torch.nn.functional.cross_entropy(model(at.goal.inputs), at.goal.labels))

        alone = loss_after(mean + reach * gradient / gradient.norm())
        sent = BlackBox(objective="loss", whole_trials=trials, size=2.0).send(view, rule, at)
        found = sent.rows.basis[0]
        assert float((found - mean).norm()) <= reach * (1 + 1e-6)
        assert loss_after(found) == pytest.approx(sent.report["loss"], rel=1e-5)
        assert sent.report["loss"] <= alone + 1e-5


def test_a_gradient_that_is_no_number_is_done_without() -> None:
    view, at = points(0)
    assert at.goal is not None
    broken = dataclasses.replace(at, goal=Goal(at.goal.inputs * math.nan, at.goal.labels))
    assert torch.isfinite(BlackBox(objective="loss").send(view, Mean(), broken).rows.basis).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", ["distance", "min-max"])
@pytest.mark.parametrize("h", [1, 3, 7, 30])
def test_where_there_is_no_room_equal_rows_get_copies(h: int, budget: Any, dtype: torch.dtype) -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(h), dtype=dtype)
    view = DenseUpdates(row.repeat(h, 1))
    for rule in (Mean(), Median()):
        at = standalone(view, h + 2, 2)
        assert torch.equal(BlackBox(budget=budget).send(view, rule, at).rows.basis, row[None])
    view, at = points(0)
    equal = DenseUpdates(view.values[:1].repeat(8, 1))
    sent = BlackBox(objective="loss", budget=budget).send(equal, Mean(), at).rows
    assert torch.equal(sent.materialise(), view.values[:1].repeat(12, 1))


def test_hostile_rows_equal_rows_and_one_row() -> None:
    values = cohort().values.clone()
    values[3, 1] = torch.nan
    values[5] *= 1e25
    attack = BlackBox(trials=30)
    for rule in (Krum(f=4), Median(), FoolsGold(), Clip(2.0) >> Mean()):
        assert torch.isfinite(send(attack, DenseUpdates(values), rule)).all()
    for flat in (torch.ones(6, 4), torch.zeros(6, 4), torch.ones(1, 4)):
        for budget in ("distance", "norm", "min-max"):
            sent = send(dataclasses.replace(attack, budget=budget), DenseUpdates(flat), Mean())
            assert torch.isfinite(sent).all()
    hopeless = DenseUpdates(torch.full((3, 4), torch.nan))
    assert attack.send(hopeless, Mean(), standalone(hopeless, 4, 1)).report == {"deviation": 0.0}


def test_nonsense_is_refused_and_tables_round_trip() -> None:
    attack = ATTACKS.build({"kind": "black-box", "budget": "min-max", "size": 1.5, "trials": 20})
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
    for wrong in (
        {"objective": "harm"},
        {"budget": "money"},
        {"size": 0.0},
        {"trials": 0},
        {"whole_trials": 0},
        {"restarts": 0},
        {"random": -1},
    ):
        with pytest.raises(ConfigError):
            ATTACKS.build({"kind": "black-box", **wrong})
