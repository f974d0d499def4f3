"""Trainings against a loop written out, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezoar.aggregation import Context, Pipeline, Rule, pipeline
from bezoar.attacks import ATTACKS, InnerProduct, NonFinite, UpdateAttack
from bezoar.expected import Task, make_problem
from bezoar.expected.play import Steps, play
from bezoar.expected.tasks import Problem, shares
from tests.expected.small import RIDGE, SOFTMAX

ALL = np.ones((1, 5), dtype=bool)
BAD = [1, 4]
HONEST = np.array([[True, False, True, True, False]])


def made(table: dict[str, Any] = RIDGE) -> Problem:
    return make_problem(Task.model_validate(table), 0)


def rate(problem: Problem, honest: np.ndarray = ALL[0]) -> float:
    curvature = problem.curvature(honest)
    assert curvature is not None
    return 1 / curvature.smoothness


def by_hand(
    problem: Problem, rule: Rule, attack: UpdateAttack, steps: Steps
) -> tuple[Tensor, list[float], list[float]]:
    """The same training for attacks that need nothing but honest rows, with errors and variances of each round."""
    theta, momentum = problem.start.clone(), torch.zeros(5, len(problem.start), dtype=torch.float64)
    state: Any = {}
    errors, variances = [], []
    for t in range(1, steps.rounds + 1):
        momentum = steps.momentum * momentum + (1 - steps.momentum) * problem.gradients(range(5)).at(theta, t)
        rows = momentum.clone()
        good = [0, 2, 3]
        rows[BAD] = attack(rows[good], n=5, q=2, defence=rule)
        answer = rule.aggregate(rows, state, Context(round=t))
        state = answer.state
        mean = rows[good].mean(0)
        errors.append(float((answer.vector - mean).square().sum()))
        variances.append(float((rows[good] - mean).square().sum() / 3))
        theta = theta - steps.lr * answer.vector
    return theta, errors, variances


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("ipm", ["mean"]),
        ("alie", ["geometric-median"]),
        ("alie", [{"kind": "nnm", "f": 2}, {"kind": "trimmed-mean", "f": 2}]),
        # Against the mean both signs of the shift are as good.
        ("opt-alie", [{"kind": "nnm", "f": 2}, {"kind": "trimmed-mean", "f": 2}]),
    ],
)
def test_a_training_is_the_loop_that_everybody_would_write(kind: str, parts: list[Any], momentum: float) -> None:
    problem, rule = made(SOFTMAX), pipeline(parts)
    attack = ATTACKS.build({"kind": "alie", "z": 1.5} if kind == "alie" else kind)
    assert isinstance(attack, UpdateAttack)
    steps = Steps(6, 0.3, momentum, 0)
    theta, errors, variances = by_hand(problem, rule, attack, steps)
    found = play(problem, rule, attack, BAD, steps, HONEST)
    torch.testing.assert_close(found.theta, theta, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.traces[0].errors, errors, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.traces[0].variances, variances, rtol=1e-6)
    assert found.traces[0].worst_ratio == pytest.approx(
        max(e / v for e, v in zip(errors, variances, strict=True)), rel=1e-5
    )


@pytest.mark.parametrize("table", [RIDGE, SOFTMAX], ids=["ridge", "softmax"])
def test_the_mean_of_honest_clients_finds_the_optimum(table: dict[str, Any]) -> None:
    problem = made(table)
    found = play(problem, pipeline(["mean"]), None, [], Steps(3000, rate(problem), 0.0, 0), ALL)
    least = problem.minimum(shares(ALL[0]))
    assert least is not None
    assert float(shares(ALL[0]) @ problem.losses(found.theta)) - least < 1e-9
    assert np.allclose(found.traces[0].errors, 0, atol=1e-20)


def test_one_trusted_client_leads_to_its_own_optimum() -> None:
    problem = made()
    alone = np.array([[True, False, False, False, False]])
    rule = pipeline([{"kind": "sip", "prior": {"kind": "explicit", "clients": 5, "bad": [[1, 2, 3, 4]], "p": [1.0]}}])
    steps = Steps(500, rate(problem, alone[0]), 0.0, 0)
    found = play(problem, rule, InnerProduct(epsilon=50.0), [1, 2, 3, 4], steps, alone)
    least = problem.minimum(shares(alone[0]))
    assert least is not None
    assert float(problem.losses(found.theta)[0]) - least < 1e-9


def test_bad_clients_on_poisoned_samples_are_as_any_other() -> None:
    problem, flip = made(), ATTACKS.build("label-flip")
    steps = Steps(4, 0.2, 0.0, 0)
    theta = problem.start.clone()
    for t in range(1, 5):
        theta = theta - 0.2 * problem.attacked(flip, BAD, 0).at(theta, t).mean(0)  # type: ignore[arg-type]
    found = play(problem, pipeline(["mean"]), flip, BAD, steps, HONEST)
    torch.testing.assert_close(found.theta, theta)


def test_rounds_in_which_the_rule_gives_up_are_skipped() -> None:
    problem = made()
    rule = pipeline([{"kind": "trimmed-mean", "f": 1}])
    found = play(problem, rule, NonFinite(), BAD, Steps(5, 0.1, 0.0, 0), HONEST)
    assert (found.skipped, found.diverged) == (5, False)
    assert torch.equal(found.theta, problem.start)
    assert len(found.traces[0].variances) == 5


def test_a_model_that_explodes_ends_the_training() -> None:
    problem = made()
    found = play(problem, pipeline(["mean"]), InnerProduct(epsilon=1e6), BAD, Steps(300, 1.0, 0.0, 0), HONEST)
    assert found.diverged
    assert len(found.traces[0].variances) < 300


def test_attacks_remember_and_know_the_defence() -> None:
    """Attackers with a memory, with updates of their own, and of rules with a memory of clients."""
    problem, steps = made(SOFTMAX), Steps(4, 0.3, 0.5, 0)
    rules = [pipeline(["mean"]), pipeline(["foolsgold"]), pipeline([{"kind": "centered-clipping", "radius": 0.5}])]
    for rule in rules:
        assert not isinstance(rule, Pipeline)
        for table in ("mimic", {"kind": "sign-flip", "variant": "own"}, {"kind": "opt-ipm", "refresh": 2}):
            one, two = (play(problem, rule, ATTACKS.build(table), BAD, steps, HONEST) for _ in range(2))
            assert torch.equal(one.theta, two.theta)
            assert not one.diverged


def test_sign_flip_of_ones_own_update() -> None:
    problem, steps = made(), Steps(3, 0.2, 0.0, 0)
    theta = problem.start.clone()
    for t in range(1, 4):
        rows = problem.gradients(range(5)).at(theta, t)
        rows[BAD] *= -1
        theta = theta - 0.2 * rows.mean(0)
    found = play(
        problem, pipeline(["mean"]), ATTACKS.build({"kind": "sign-flip", "variant": "own"}), BAD, steps, HONEST
    )
    torch.testing.assert_close(found.theta, theta)
