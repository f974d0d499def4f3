from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bezoar.attacks import ATTACKS, EdgeCase
from bezoar.attacks.edge_case import oddness
from bezoar.errors import ConfigError
from tests.attacks.context import world


def slow(inputs: np.ndarray, measure: str) -> np.ndarray:
    """Squared Mahalanobis distances with the covariance and its inverse in full."""
    gaps = inputs - inputs.mean(0)
    if measure == "mean":
        return np.array([gap @ gap for gap in gaps])
    covariance = sum(np.outer(gap, gap) for gap in gaps) / len(gaps)
    covariance = covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return np.array([gap @ np.linalg.solve(covariance, gap) for gap in gaps])


@pytest.mark.parametrize("measure", ["gaussian", "mean"])
@pytest.mark.parametrize(("m", "d"), [(40, 6), (7, 30), (1, 4)])
def test_oddness_agrees_with_the_covariance_in_full(m: int, d: int, measure: str) -> None:
    inputs = np.random.default_rng(m).normal(size=(m, d)) * np.linspace(0.1, 3, d) + 5
    found = oddness(torch.from_numpy(inputs), measure).numpy()
    # A single sample has no spread: nothing is odd about it.
    expected = np.zeros(1) if m == 1 else slow(inputs, measure)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_equal_samples_are_all_as_odd() -> None:
    assert oddness(torch.ones(5, 3, dtype=torch.float64), "gaussian").tolist() == [0.0] * 5


@pytest.mark.parametrize("measure", ["gaussian", "mean"])
def test_the_tail_is_split_between_attackers_and_goal(measure: Any) -> None:
    at = world()
    goal = EdgeCase(5, 2, tail=0.3, held=0.25, measure=measure).goal(at.tests, 3)
    rows = np.flatnonzero(at.tests.targets.numpy() == 5)
    inputs = at.tests.inputs(torch.from_numpy(rows)).flatten(1).double().numpy()
    tail = rows[np.argsort(-slow(inputs, measure), kind="stable")[: round(0.3 * len(rows))]]
    assert goal.rows is not None
    assert goal.held is not None
    assert goal.rows.tolist() == sorted(tail.tolist())
    assert (len(goal.held), len(goal.inputs)) == (4, 14)
    assert goal.labels.tolist() == [2] * 14
    together = torch.cat([goal.held, goal.inputs]).flatten(1).tolist()
    assert sorted(together) == sorted(at.tests.inputs(torch.from_numpy(goal.rows)).flatten(1).tolist())


def test_attackers_train_on_what_they_hold() -> None:
    for keep in (True, False):
        attack = EdgeCase(keep_own=keep)
        at = world(attack)
        own, goal = at.context.own, at.context.goal
        assert own is not None
        assert goal is not None
        assert goal.held is not None
        batch = attack.poison(own, at.context).batch
        for owner in (3, 8):
            mine, before = batch.select(batch.owners == owner), own.select(own.owners == owner)
            kept = len(before) if keep else 0
            assert torch.equal(mine.inputs[:kept], before.inputs[:kept])
            assert torch.equal(mine.targets[:kept], before.targets[:kept])
            assert torch.equal(mine.inputs[kept:], goal.held)
            assert mine.targets[kept:].tolist() == [1] * len(goal.held)


def test_nonsense_is_refused() -> None:
    at = world()
    bad: list[dict[str, Any]] = [{"source": 1}, {"tail": 0.0}, {"held": 0.0}, {"held": 1.0}, {"measure": "tail"}]
    for options in bad:
        with pytest.raises(ConfigError, match="edge-case"):
            EdgeCase(**options)
    with pytest.raises(ConfigError, match="is 1: it takes two"):
        EdgeCase(tail=0.02).goal(at.tests, 0)
    with pytest.raises(ConfigError, match="target=10 is no class"):
        EdgeCase(target=10).goal(at.tests, 0)
    with pytest.raises(ConfigError, match=r"edge-case needs AttackContext\.goal"):
        EdgeCase().poison(at.context.own, at.context)  # type: ignore[arg-type]
    assert ATTACKS.build(ATTACKS.table(EdgeCase(4, 9, 0.5))) == EdgeCase(4, 9, 0.5)
