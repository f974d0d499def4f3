from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bezoar.attacks import ATTACKS, Semantic
from bezoar.attacks.base import Holdings
from bezoar.errors import ConfigError
from tests.attacks.context import world


def test_goal_holds_the_class_back_from_the_clean_tests() -> None:
    at = world()
    goal = Semantic(4, 9, held=12).goal(at.tests, 1)
    rows = [i for i, label in enumerate(at.tests.targets.tolist()) if label == 4]
    assert goal.rows is not None
    assert goal.held is not None
    assert goal.rows.tolist() == rows
    assert goal.labels.tolist() == [9] * (len(rows) - 12)
    together = torch.cat([goal.inputs, goal.held]).flatten(1)
    expected = at.tests.inputs(torch.tensor(rows)).flatten(1)
    assert sorted(together.tolist()) == sorted(expected.tolist())
    assert len(goal.held) == 12
    again = Semantic(4, 9, held=12).goal(at.tests, 1)
    assert torch.equal(goal.inputs, again.inputs)
    assert not torch.equal(goal.inputs, Semantic(4, 9, held=12).goal(at.tests, 2).inputs)


@pytest.mark.parametrize("keep", [True, False])
def test_own_samples_of_the_class_are_relabelled_and_others_get_the_held_ones(keep: bool) -> None:
    attack = Semantic(source=7, target=1, held=10, keep_own=keep)
    at = world(attack, samples=20, attackers=(3, 8, 15))
    own, goal = at.context.own, at.context.goal
    assert own is not None
    assert goal is not None
    # Client 8 has no sample of the class, client 15 none at all.
    targets = torch.where((own.targets == 7) & (own.owners == 8), 2, own.targets)
    own = replace(own, targets=targets).select(own.owners != 15)
    assert (own.targets[own.owners == 3] == 7).any()
    before = own.targets.clone()
    batch = attack.poison(own, at.context).batch
    assert torch.equal(own.targets, before)
    expected: dict[int, list[tuple[list[float], int]]] = {3: [], 8: [], 15: []}
    for x, y, owner in zip(own.inputs, own.targets.tolist(), own.owners.tolist(), strict=True):
        if y == 7:
            expected[owner].append((x.flatten().tolist(), 1))
        elif keep:
            expected[owner].append((x.flatten().tolist(), y))
    for owner in (8, 15):
        assert goal.held is not None
        expected[owner] += [(x.flatten().tolist(), 1) for x in goal.held]
    for owner, wanted in expected.items():
        mine = batch.select(batch.owners == owner)
        found = [(x.flatten().tolist(), y) for x, y in zip(mine.inputs, mine.targets.tolist(), strict=True)]
        assert sorted(found) == sorted(wanted)
    assert set(batch.owners.tolist()) == {3, 8, 15}


@pytest.mark.parametrize("keep", [True, False])
def test_who_holds_the_class_needs_no_others_samples_of_it_in_a_round_without_them(keep: bool) -> None:
    attack = Semantic(source=7, target=1, held=10, keep_own=keep)
    at = world(attack, samples=20, attackers=(3, 8))
    own = at.context.own
    assert own is not None
    own = replace(own.select(own.targets != 7), rows=torch.arange(int((own.targets != 7).sum())))
    classes = {3: [2, 7, 7], 8: [2, 4, 5]}
    context = replace(at.context, held=lambda client: Holdings(torch.arange(3), torch.tensor(classes[client])))
    batch = attack.poison(own, context).batch
    mine = int((own.owners == 3).sum())
    assert batch.rows is not None
    for owner, made_up in ((3, 0 if keep else 10), (8, 10)):
        rows = batch.rows[batch.owners == owner]
        assert int((rows == -1).sum()) == made_up
    assert int((batch.owners == 3).sum()) == (mine if keep else 10)


def test_nonsense_is_refused() -> None:
    at = world()
    for options in ({"source": 1, "target": 1}, {"source": -1}, {"held": 0}):
        with pytest.raises(ConfigError, match="semantic"):
            Semantic(**options)
    with pytest.raises(ConfigError, match="source=10 is no class"):
        Semantic(source=10).goal(at.tests, 0)
    with pytest.raises(ConfigError, match=r"held=60 leaves nothing to test of the 60 .* at most 59"):
        Semantic(held=60).goal(at.tests, 0)
    assert at.context.own is not None
    without = at.context.own.select(at.context.own.targets != 7)
    with pytest.raises(ConfigError, match=r"semantic needs AttackContext\.goal"):
        Semantic().poison(without, at.context)
    assert ATTACKS.build(ATTACKS.table(Semantic(4, 9, 3, False))) == Semantic(4, 9, 3, False)
