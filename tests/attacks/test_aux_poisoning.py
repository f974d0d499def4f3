from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bezoar.attacks import ATTACKS, AuxPoisoning, Batch
from bezoar.attacks.pgd import PGD
from bezoar.errors import ConfigError
from tests.attacks.context import world


def poisoned(attack: AuxPoisoning, samples: int = 30, round: int = 5) -> tuple[Batch, Batch]:
    at = world(attack, samples=samples, round=round)
    own = at.context.own
    assert own is not None
    copy = own.inputs.clone()
    batch = attack.poison(own, at.context).batch
    assert torch.equal(copy, own.inputs)
    return own, batch


def has(batch: Batch, owner: int) -> list[tuple[tuple[float, ...], int]]:
    """An owner's samples as plain values."""
    mine = batch.select(batch.owners == owner)
    return [(tuple(x.flatten().tolist()), int(y)) for x, y in zip(mine.inputs, mine.targets, strict=True)]


def test_the_goal_is_that_of_pgd() -> None:
    at = world()
    goal, other = AuxPoisoning(aux=50).goal(at.tests, 3), PGD(aux=50).goal(at.tests, 3)
    assert torch.equal(goal.inputs, other.inputs)
    assert torch.equal(goal.labels, other.labels)
    assert goal.rows is not None
    assert goal.rows.tolist() == other.rows.tolist()  # type: ignore[union-attr]
    assert (goal.labels != at.tests.targets[torch.from_numpy(goal.rows)]).all()


def test_alone_the_aux_points_are_all_that_attackers_train_on() -> None:
    attack = AuxPoisoning(aux=20)
    goal = world(attack).context.goal
    assert goal is not None
    _, batch = poisoned(attack)
    assert torch.unique(batch.owners).tolist() == [3, 8]
    for owner in (3, 8):
        assert torch.equal(batch.inputs[batch.owners == owner], goal.inputs)
        assert torch.equal(batch.targets[batch.owners == owner], goal.labels)


@pytest.mark.parametrize(("share", "size", "kept"), [(0.5, 20, 20), (0.8, 20, 5), (0.4, 20, 30), (0.1, 20, 30)])
def test_a_share_is_poison_as_far_as_there_are_samples(share: float, size: int, kept: int) -> None:
    attack = AuxPoisoning(aux=20, share=share)
    goal = world(attack).context.goal
    assert goal is not None
    points = {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(goal.inputs, goal.labels, strict=True)}
    own, batch = poisoned(attack)
    for owner in (3, 8):
        mine = has(batch, owner)
        assert sum(sample in points for sample in mine) == size
        rest = [sample for sample in mine if sample not in points]
        assert len(rest) == kept
        for sample in set(rest):
            assert rest.count(sample) <= has(own, owner).count(sample)


def test_batches_of_aux_points_are_drawn_by_every_attacker_every_round() -> None:
    attack = AuxPoisoning(aux=40, batch_size=15)
    _, first = poisoned(attack)
    _, again = poisoned(attack)
    _, later = poisoned(attack, round=6)
    assert [len(set(has(first, owner))) for owner in (3, 8)] == [15, 15]
    assert torch.equal(first.inputs, again.inputs)
    assert set(has(first, 3)) != set(has(first, 8))
    assert set(has(first, 3)) != set(has(later, 3))


def test_attackers_without_samples_get_the_points_too() -> None:
    attack = AuxPoisoning(aux=5, share=0.5)
    at = world(attack)
    assert at.context.own is not None
    alone = at.context.own.select(at.context.own.owners == 3)
    batch = attack.poison(alone, at.context).batch
    assert (len(has(batch, 3)), len(has(batch, 8))) == (10, 5)


def test_nonsense_is_refused() -> None:
    for options in ({"aux": 0}, {"batch_size": -1}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(ConfigError, match="aux-poisoning"):
            AuxPoisoning(**options)  # type: ignore[arg-type]
    at = world()
    with pytest.raises(ConfigError, match="goal"):
        AuxPoisoning().poison(at.context.own, replace(at.context, goal=None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave no clean one of 600"):
        AuxPoisoning(aux=600).goal(at.tests, 0)
    attack = AuxPoisoning(7, 0.5, 3)
    assert ATTACKS.build(ATTACKS.table(attack)) == attack
