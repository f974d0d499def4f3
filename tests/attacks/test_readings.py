"""Every reading of the attacks in the SparseFed paper and its code, with numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezoar.aggregation import Clip, Mean
from bezoar.attacks import ATTACKS, PGD, AttackContext, Goal, SingleStep, Tests
from bezoar.attacks.adaptive_sparsefed import AdaptivePGD
from bezoar.attacks.pgd import aux_points
from bezoar.clients import Scratch
from bezoar.errors import ConfigError
from bezoar.models import flatten
from bezoar.servers import SparseFed
from bezoar.updates import DenseUpdates
from tests.attacks.context import make_dataset

DEFENCE = Clip(2.0) >> Mean()


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2 / 2


def context(radius: float = math.inf, lr: float = 0.1, points: int = 1) -> AttackContext:
    """A linear model x . w at w = (8, 0) that attackers want to answer 0 to x = (1, 0): the gradient is (w_1, 0)."""
    model = nn.Linear(2, 1, bias=False)
    weights = flatten(model)
    with torch.no_grad():
        weights.copy_(torch.tensor([8.0, 0.0]))
    goal = Goal(torch.tensor([[1.0, 0.0]]).repeat(points, 1), torch.zeros(points))
    return AttackContext(3, 0, torch.tensor([5]), weights, Scratch(model), half_square, radius, goal, 4, lr=lr)


def sent(attack: Any, at: AttackContext) -> list[float]:
    view = DenseUpdates(torch.ones(3, 2), torch.arange(3))
    found: list[float] = attack.rows(view, DEFENCE, at).basis[0].tolist()
    return found


STEPS: dict[str, Any] = {"aux": 1, "batch_size": 1, "lr": 0.25}


def test_boost_on_the_update_or_on_the_loss_by_hand() -> None:
    # One step of 0.25: 8 -> 6, u = 2, two steps: 8 -> 6 -> 4.5, u = 3.5.
    assert sent(PGD(epochs=2, **STEPS), context()) == [3.5, 0.0]
    assert sent(PGD(epochs=2, boost=2.0, **STEPS), context()) == [7.0, 0.0]
    # A doubled loss doubles the steps: 8 -> 4 -> 2, u = 6.
    assert sent(PGD(epochs=2, boost=2.0, boost_on="loss", **STEPS), context()) == [6.0, 0.0]
    # Within a ball the boosted loss gets to its edge sooner, and no further; a boosted update is outside.
    short: dict[str, Any] = {**STEPS, "epochs": 1, "rescale": False}
    assert sent(PGD(boost=2.0, boost_on="loss", **short), context(3.0)) == [3.0, 0.0]
    assert sent(PGD(boost=2.0, **short), context(3.0)) == [4.0, 0.0]
    assert sent(PGD(**short), context(3.0)) == [2.0, 0.0]


def test_projection_once_an_epoch_or_after_every_batch_by_hand() -> None:
    # Two points, one a batch, L = 1. After every batch: 8 -> 6 -> 7, 7 -> 5.25 -> 7. Once: 8 -> 6 -> 4.5 -> 7.
    each = {**STEPS, "aux": 2, "epochs": 1, "rescale": False}
    assert sent(PGD(**each), context(1.0, points=2)) == [1.0, 0.0]
    assert sent(PGD(project="epoch", **each), context(1.0, points=2)) == [1.0, 0.0]
    assert sent(PGD(**each), context(3.0, points=2)) == [3.0, 0.0]
    assert sent(PGD(project="epoch", **each), context(3.4, points=2)) == pytest.approx([3.4, 0.0])


def test_stretching_to_the_radius_by_hand() -> None:
    one: dict[str, Any] = {**STEPS, "epochs": 1}
    assert sent(PGD(**one), context(5.0)) == [5.0, 0.0]
    assert sent(PGD(rescale=False, **one), context(5.0)) == [2.0, 0.0]
    # Only in rounds with a rate above 0.001.
    assert sent(PGD(rescale_above=1e-3, **one), context(5.0, lr=0.002)) == [5.0, 0.0]
    assert sent(PGD(rescale_above=1e-3, **one), context(5.0, lr=0.001)) == [2.0, 0.0]
    assert sent(PGD(**one), context(5.0, lr=0.0)) == [5.0, 0.0]


def test_a_single_step_by_hand() -> None:
    # The gradient itself is 8, whatever the attack's rate and epochs.
    single: dict[str, Any] = {**STEPS, "epochs": 7, "single": True, "rescale": False}
    assert sent(PGD(**single), context()) == [8.0, 0.0]
    assert sent(PGD(**single), context(10.0)) == [8.0, 0.0]
    assert sent(PGD(**single), context(5.0)) == [5.0, 0.0]
    assert sent(PGD(boost=1.5, boost_on="loss", **single), context(10.0)) == [10.0, 0.0]
    assert sent(PGD(boost=1.5, boost_on="loss", **single), context(20.0)) == [12.0, 0.0]
    assert sent(PGD(**{**single, "rescale": True}), context(20.0)) == [20.0, 0.0]
    # The attack of that name is the same.
    for radius in (5.0, 10.0, 20.0, math.inf):
        kind = SingleStep(aux=1, boost=1.5, boost_on="loss", rescale=False)
        assert sent(kind, context(radius)) == sent(PGD(boost=1.5, boost_on="loss", **single), context(radius))
    assert sent(SingleStep(aux=1), context(20.0)) == [20.0, 0.0]


def test_the_single_step_leaves_the_model_alone() -> None:
    at = context(5.0)
    before = at.weights.clone()
    sent(PGD(single=True, **STEPS), at)
    assert torch.equal(at.weights, before)


def test_aux_points_are_drawn_or_the_first_ones() -> None:
    tests = Tests(make_dataset(), torch.device("cpu"))
    first, drawn = aux_points(tests, 20, 7, first=True), aux_points(tests, 20, 7)
    assert first.rows is not None
    assert drawn.rows is not None
    assert first.rows.tolist() == list(range(20))
    assert drawn.rows.tolist() != list(range(20))
    assert torch.equal(first.inputs, tests.inputs(torch.arange(20)))
    assert (first.labels != tests.targets[:20]).all()
    goal = PGD(aux=20, aux_from="first").goal(tests, 7)
    assert goal.rows is not None
    assert goal.rows.tolist() == list(range(20))
    assert torch.equal(goal.labels, first.labels)


@pytest.mark.parametrize("first", [False, True])
def test_aux_points_of_one_class_shall_be_taken_for_another(first: bool) -> None:
    tests = Tests(make_dataset(), torch.device("cpu"))
    have = (tests.targets == 1).nonzero().flatten()
    goal = PGD(aux=5, source=1, target=2, aux_from="first" if first else "random").goal(tests, 7)
    assert goal.rows is not None
    assert set(goal.rows.tolist()) <= set(have.tolist())
    assert len(set(goal.rows.tolist())) == 5
    assert (goal.rows.tolist() == have[:5].tolist()) == first
    assert goal.labels.tolist() == [2] * 5
    assert torch.equal(goal.inputs, tests.inputs(torch.from_numpy(goal.rows)))
    every = SingleStep(aux=len(have), source=1, target=2).goal(tests, 7)
    assert every.rows is not None
    assert every.rows.tolist() == have.tolist()
    with pytest.raises(ConfigError, match=f"{len(have) + 1} aux points of class 1: there are {len(have)} test samples"):
        PGD(aux=len(have) + 1, source=1, target=2).goal(tests, 7)


def test_a_pass_with_replacement_takes_some_points_twice() -> None:
    at = context(points=50)
    assert at.goal is not None
    goal = dataclasses.replace(at.goal, labels=torch.arange(50))
    for replacement in (False, True):
        attack = PGD(aux=50, replacement=replacement)
        batches = [labels for _, labels in attack.drawn(goal, 20, torch.Generator().manual_seed(0))]
        assert [len(b) for b in batches] == [20, 20, 10]
        kinds = len(set(torch.cat(batches).tolist()))
        # Of 50 draws with replacement about 50 (1 - 1/e) = 31.6 are different.
        assert kinds == 50 if not replacement else 24 <= kinds <= 40


def test_attackers_train_on_augmented_points_and_are_tested_on_plain_ones() -> None:
    plain = make_dataset()
    photos = dataclasses.replace(plain, augmentation="crop-flip")
    device = torch.device("cpu")
    draws = torch.Generator().manual_seed(0)
    for dataset, augment, changes in ((photos, True, True), (photos, False, False), (plain, True, False)):
        tests = Tests(dataset, device)
        goal = PGD(aux=30, augment=augment).goal(tests, 1)
        assert torch.equal(goal.inputs, aux_points(tests, 30, 1).inputs)
        rows = torch.tensor([3, 3, 3, 3, 9])
        inputs, labels = goal.batch(rows, draws)
        assert torch.equal(labels, goal.labels[rows])
        assert torch.equal(inputs, goal.inputs[rows]) is not changes
        assert inputs.shape == goal.inputs[rows].shape
        # Crops and mirror images hold nothing that the picture does not.
        assert set(inputs[0].flatten().tolist()) <= set(goal.inputs[3].flatten().tolist())


def test_the_projection_that_is_computed_and_not_used_is_plain_pgd() -> None:
    at = dataclasses.replace(context(5.0), server=SparseFed(k=1))
    view = DenseUpdates(torch.tensor([[0.0, 1.0]]).repeat(3, 1), torch.arange(3))
    plain = PGD(**STEPS).rows(view, DEFENCE, at).basis
    unused = AdaptivePGD(support="unused", **STEPS).send(view, DEFENCE, at)
    assert torch.equal(unused.rows.basis, plain)
    assert unused.report == {}
    # The one coordinate that the server will move is not the attackers': projecting leaves them nothing.
    assert AdaptivePGD(**STEPS).rows(view, DEFENCE, at).basis.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PGD(boost_on="both"), "boost_on must be 'update' or 'loss', got 'both'"),  # type: ignore[arg-type]
        (lambda: PGD(aux_from="last"), "aux_from must be 'random' or 'first', got 'last'"),  # type: ignore[arg-type]
        (lambda: PGD(source=1), "source and target belong together"),
        (lambda: PGD(source=1, target=1), "two different classes, got 1 and 1"),
        (
            lambda: PGD(aux=5, source=1, target=99).goal(Tests(make_dataset(), torch.device("cpu")), 0),
            "target=99 is no class",
        ),
        (lambda: PGD(rescale_above=-1.0), "rescale_above must be a learning rate >= 0"),
        (lambda: PGD(lr=1e20, boost=1e20, boost_on="loss"), "at most 1e30"),
        (lambda: AdaptivePGD(support="no"), "'greedy' or 'unused', got 'no'"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_tables_leave_new_defaults_out() -> None:
    new = {"boost_on", "aux_from", "replacement", "augment", "rescale_above", "single", "source", "target"}
    assert not new & set(ATTACKS.table(PGD()))
    assert not (new | {"rescale"}) & set(ATTACKS.table(SingleStep()))
    for attack in (
        PGD(boost_on="loss", aux_from="first", replacement=True, augment=True, rescale_above=0.1, single=True),
        PGD(source=1, target=2),
        SingleStep(rescale=False),
        AdaptivePGD(support="unused"),
    ):
        assert ATTACKS.build(ATTACKS.table(attack)) == attack
