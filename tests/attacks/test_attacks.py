from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from bezoar.aggregation import Clip, Mean
from bezoar.attacks import (
    ATTACKS,
    PGD,
    AttackContext,
    Goal,
    Knowledge,
    LabelFlip,
    RandomDirection,
    SingleStep,
    wrong_labels,
)
from bezoar.attacks.pgd import project, rescale
from bezoar.clients import Scratch
from bezoar.errors import ConfigError
from bezoar.experiments import Experiment, run
from bezoar.experiments.setup import cross_entropy
from bezoar.models import flatten, make_model
from bezoar.seeding import generator
from bezoar.updates import DenseUpdates

DEFENCE = Clip(2.0) >> Mean()


def context(radius: float = 2.0, clients: tuple[int, ...] = (3, 8), round: int = 5, aux: int = 12) -> AttackContext:
    model = make_model("mlp", (1, 4, 4), 3, seed=0, hidden=[8])
    weights = flatten(model)
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(aux, 1, 4, 4, generator=draws)
    goal = Goal(inputs, torch.randint(3, (aux,), generator=draws))
    return AttackContext(
        round, 7, torch.tensor(clients), weights, Scratch(model), cross_entropy, radius, goal, len(clients) + 5
    )


def honest(d: int) -> DenseUpdates:
    rows = torch.randn(5, d, generator=torch.Generator().manual_seed(2))
    return DenseUpdates(rows, torch.tensor([0, 2, 4, 6, 9]))


def oracle(attack: PGD, at: AttackContext, sender: int = 0) -> torch.Tensor:
    """Projected gradient descent spelt out in float64, parameter by parameter."""
    model = make_model("mlp", (1, 4, 4), 3, seed=0, hidden=[8]).double()
    start = [p.detach().clone() for p in model.parameters()]
    draws = generator(at.seed, "attack", at.round, sender)
    assert at.goal is not None
    for _ in range(attack.epochs):
        order = torch.randperm(len(at.goal.labels), generator=draws)
        for first in range(0, len(order), attack.batch_size):
            batch = order[first : first + attack.batch_size]
            loss = nn.functional.cross_entropy(model(at.goal.inputs[batch].double()), at.goal.labels[batch])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= attack.lr * gradient
            if attack.project == "batch":
                shrink(model, start, at.radius)
        if attack.project == "epoch":
            shrink(model, start, at.radius)
    update = torch.cat([(s - p.detach()).flatten() for s, p in zip(start, model.parameters(), strict=True)])
    return update * (at.radius / update.norm()) if attack.rescale and math.isfinite(at.radius) else update


def shrink(model: nn.Module, start: list[torch.Tensor], radius: float) -> None:
    gap = [p.detach() - s for p, s in zip(model.parameters(), start, strict=True)]
    norm = torch.cat([g.flatten() for g in gap]).norm()
    with torch.no_grad():
        for parameter, s, g in zip(model.parameters(), start, gap, strict=True):
            parameter.copy_(s + g * min(1.0, float(radius / norm)))


@pytest.mark.parametrize("radius", [0.05, 2.0, math.inf])
@pytest.mark.parametrize("options", [{}, {"rescale": False}, {"project": "epoch"}, {"boost": 3.0}], ids=str)
def test_pgd_agrees_with_an_oracle(radius: float, options: dict[str, Any]) -> None:
    attack = PGD(aux=12, epochs=3, batch_size=5, lr=0.5, **options)
    at = context(radius)
    start = at.weights.clone()
    rows = attack.rows(honest(len(at.weights)), DEFENCE, at)
    sent = rows.materialise()[rows.malicious]
    expected = oracle(attack, at) * options.get("boost", 1.0)
    assert torch.equal(sent[0], sent[1])
    assert (sent[0].double() - expected).norm() <= 1e-4 * expected.norm()
    assert torch.equal(at.weights, start)
    if options == {} and math.isfinite(radius):
        assert float(sent[0].norm()) == pytest.approx(radius, rel=1e-5)


def test_pgd_moves_towards_the_wrong_labels() -> None:
    at = context(math.inf)
    assert at.goal is not None
    sent = PGD(aux=12, epochs=40, batch_size=12, lr=0.5).rows(honest(len(at.weights)), DEFENCE, at)

    def loss(weights: torch.Tensor) -> float:
        assert at.goal is not None
        at.scratch.load(weights)
        return float(cross_entropy(at.scratch.module(at.goal.inputs), at.goal.labels).mean().detach())

    assert loss(at.weights - sent.basis[0]) < 0.2 * loss(at.weights)


def test_rows_are_in_client_order_and_honest_rows_are_untouched() -> None:
    at = context()
    view = honest(len(at.weights))
    rows = RandomDirection().rows(view, DEFENCE, at)
    assert rows.clients.tolist() == [0, 2, 3, 4, 6, 8, 9]
    assert rows.malicious.tolist() == [False, False, True, False, False, True, False]
    assert torch.equal(rows.materialise()[~rows.malicious], view.values)


def test_without_collusion_every_attacker_sends_its_own_vector() -> None:
    at = context()
    for attack in (PGD(aux=12, batch_size=5, collude=False), RandomDirection(collude=False)):
        sent = attack.rows(honest(len(at.weights)), DEFENCE, at).basis
        assert len(sent) == 2
        assert not torch.equal(sent[0], sent[1])
        assert torch.allclose(sent.norm(dim=1), torch.tensor(2.0))


def test_single_step_is_one_gradient_on_the_sphere() -> None:
    at = context()
    assert at.goal is not None
    sent = SingleStep(aux=12).rows(honest(len(at.weights)), DEFENCE, at).basis[0]
    at.scratch.load(at.weights)
    gradient = at.scratch.differentiate(cross_entropy, at.goal.inputs, at.goal.labels)
    assert torch.allclose(sent, gradient * 2.0 / gradient.norm(), atol=1e-5)


def test_random_direction_without_clipping_follows_the_honest_norms() -> None:
    at = context(radius=math.inf)
    view = honest(len(at.weights))
    sent = RandomDirection(scale=10.0).rows(view, DEFENCE, at).basis[0]
    assert float(sent.norm()) == pytest.approx(10 * float(view.values.norm(dim=1).max()), rel=1e-5)


def test_random_direction_measures_updates_unless_it_is_told_a_radius() -> None:
    assert RandomDirection().least == Knowledge.OWN_DATA
    assert RandomDirection(radius=3.0).least == Knowledge.NONE
    table = {
        "seed": 3,
        "rounds": 2,
        "data": {"dataset": "digits", "partition": {"kind": "iid", "clients": 10}},
        "model": {"name": "linear"},
        "learning_rate": {"kind": "constant", "lr": 0.1},
        "sampling": {"kind": "uniform", "cohort": 10},
        "defence": "none",
        "adversary": {"count": 2, "knowledge": "none"},
        "evaluation": {"every": 2},
    }
    with pytest.raises(ConfigError, match="needs at least 'own-data'"):
        Experiment.from_table({**table, "attack": {"kind": "random-direction"}})
    clean = {key: value for key, value in table.items() if key != "adversary"}
    attacked = run(Experiment.from_table({**table, "attack": {"kind": "random-direction", "radius": 1e4}}))
    assert attacked.test_accuracy < run(Experiment.from_table(clean)).test_accuracy - 0.2


def test_draws_depend_on_round_and_seed_only() -> None:
    attack = RandomDirection()
    at, later = context(), context(round=6)
    one = attack.rows(honest(len(at.weights)), DEFENCE, at).basis
    assert torch.equal(one, attack.rows(honest(len(at.weights)), DEFENCE, context()).basis)
    assert not torch.equal(one, attack.rows(honest(len(at.weights)), DEFENCE, later).basis)


def test_label_flips() -> None:
    targets = torch.arange(10).repeat(200)
    draws = torch.Generator().manual_seed(0)
    assert LabelFlip("static").labels(targets, 10, draws).tolist() == (9 - targets).tolist()
    assert LabelFlip("next").labels(targets, 10, draws).tolist() == ((targets + 1) % 10).tolist()
    wrong = LabelFlip("random").labels(targets, 10, draws)
    assert (wrong != targets).all()
    counts = torch.bincount((wrong - targets) % 10, minlength=10)
    assert counts[0] == 0
    assert int(counts[1:].min()) > 150
    assert int(wrong_labels(torch.zeros(9, dtype=torch.int64), 2, draws).min()) == 1


def test_projection_and_rescaling() -> None:
    vector = torch.tensor([3.0, 4.0])
    assert project(vector, 10.0).tolist() == [3.0, 4.0]
    assert project(vector, 2.5).tolist() == [1.5, 2.0]
    assert project(vector, math.inf).tolist() == [3.0, 4.0]
    assert rescale(vector, 10.0).tolist() == [6.0, 8.0]
    assert rescale(torch.zeros(2), 10.0).tolist() == [0.0, 0.0]
    assert project(torch.zeros(2), 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(aux=0),
        lambda: PGD(epochs=0),
        lambda: PGD(lr=math.nan),
        lambda: PGD(radius=-1.0),
        lambda: PGD(boost=0.0),
        lambda: SingleStep(batch_size=-1),
        lambda: RandomDirection(radius=0.0),
        lambda: RandomDirection(scale=-1.0),
        lambda: LabelFlip("swap"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_tables_round_trip() -> None:
    for attack in (PGD(), SingleStep(radius=3.0), RandomDirection(), LabelFlip("next")):
        assert ATTACKS.build(ATTACKS.table(attack)) == attack


@pytest.mark.parametrize("lr", [1e25, 1e30])
@pytest.mark.parametrize("options", [{}, {"rescale": False}, {"project": "epoch"}], ids=str)
def test_pgd_of_a_huge_rate_still_sends_the_whole_length(lr: float, options: dict[str, Any]) -> None:
    at = context(2.0)
    sent = PGD(aux=12, epochs=1, batch_size=12, lr=lr, **options).rows(honest(len(at.weights)), DEFENCE, at).basis[0]
    assert float(sent.double().norm()) == pytest.approx(2.0, rel=1e-4)
    # One step: however long, it goes along the gradient.
    step = SingleStep(aux=12).rows(honest(len(at.weights)), DEFENCE, at).basis[0]
    torch.testing.assert_close(sent, step, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-16, 1e-3, 1.0, 1e3, 1e17, 1e19, 1e25, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths_are_taken_without_overflow(size: float, dtype: torch.dtype) -> None:
    vector = (torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size).to(dtype)
    length = float(vector.double().norm()) if size > 1e-20 else float((vector.double() / size).norm()) * size
    for radius in (1e-3, 2.0, 1e20):
        wanted = vector.double() * (radius / length)
        torch.testing.assert_close(rescale(vector, radius).double(), wanted, rtol=1e-4, atol=0)
        assert rescale(vector, radius).dtype == dtype
        cut = wanted if radius < length else vector.double()
        torch.testing.assert_close(project(vector, radius).double(), cut, rtol=1e-5, atol=0)
    if 1e-3 <= size <= 1e3:
        norm = torch.linalg.vector_norm(vector)
        assert torch.equal(rescale(vector, 2.0), vector * torch.div(2.0, norm))
        assert torch.equal(project(vector, 2.0), vector * torch.clamp(2.0 / norm, max=1.0))


def test_vectors_without_a_length_stay_what_they_are() -> None:
    zero, broken = torch.zeros(5), torch.tensor([1.0, math.nan, math.inf])
    assert torch.equal(rescale(zero, 2.0), zero)
    assert torch.equal(project(zero, 2.0), zero)
    assert not bool(torch.isfinite(rescale(broken, 2.0)).all())
    assert not bool(torch.isfinite(project(broken, 2.0)).all())
