"""Losses, gradients, minima and constants against autograd, SciPy and eigenvalues of whole Hessians."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from bezoar.attacks import ATTACKS
from bezoar.errors import ConfigError
from bezoar.expected import Task, make_problem
from bezoar.expected.poison import poisoned
from bezoar.expected.tasks import Linear, Problem, indicators, shares, with_bias
from tests.expected.small import RIDGE, SOFTMAX

DIGITS = {"dataset": "digits", "partition": {"kind": "dirichlet", "clients": 5, "alpha": 0.5}, "samples": 30, "l2": 0.1}
TASKS: dict[str, dict[str, Any]] = {
    "ridge": RIDGE,
    "softmax": SOFTMAX,
    "ridge on classes": {**DIGITS, "kind": "ridge"},
    "softmax on digits": {**DIGITS, "kind": "softmax"},
}
SETS = [np.array([1, 1, 1, 1, 1], dtype=bool), np.array([0, 1, 1, 0, 1], dtype=bool)]


def made(name: str, seed: int = 3) -> Linear:
    problem = make_problem(Task.model_validate(TASKS[name]), seed)
    assert isinstance(problem, Linear)
    return problem


def loss_of(problem: Linear, inputs: Tensor, targets: Tensor, theta: Tensor) -> Tensor:
    """A client's loss written out sample by sample."""
    outputs = with_bias(inputs) @ theta.view(-1, problem.outputs)
    if type(problem).__name__ == "Ridge":
        fit = (outputs - indicators(targets, problem.outputs)).square().sum(1).mean() / 2
    else:
        fit = torch.stack([-torch.log_softmax(row, 0)[y] for row, y in zip(outputs, targets, strict=True)]).mean()
    return fit + problem.l2 / 2 * theta.square().sum()


def theta_of(problem: Problem, seed: int = 0) -> Tensor:
    return torch.randn(problem.start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", TASKS)
def test_losses_and_gradients_are_those_of_autograd(name: str) -> None:
    problem, train = made(name), made(name).shards.train
    theta = theta_of(problem)
    values, rows = [], []
    for client in (1, 2, 4):
        at = theta.clone().requires_grad_()
        mine = train.owners == client
        value = loss_of(problem, train.inputs[mine], train.targets[mine], at)
        values.append(float(value.detach()))
        rows.append(torch.autograd.grad(value, at)[0])
    found = problem.gradients([1, 2, 4])
    assert found.clients.tolist() == [1, 2, 4]
    torch.testing.assert_close(found.at(theta, 1), torch.stack(rows), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(problem.losses(theta)[[1, 2, 4]], values, rtol=1e-12)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("honest", SETS, ids=["all", "some"])
def test_minima_are_those_of_scipy(name: str, honest: np.ndarray) -> None:
    problem = made(name)
    weights = shares(honest)
    everyone = problem.gradients(range(5))

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(x)
        return float(weights @ problem.losses(theta)), weights @ everyone.at(theta, 1).numpy()

    found = scipy.optimize.minimize(value, problem.start.numpy(), jac=True, method="L-BFGS-B",
                                    options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9})  # fmt: skip
    least = problem.minimum(weights)
    assert least is not None
    assert least <= found.fun + 1e-10
    # What strong convexity allows below the point that SciPy found.
    curvature = problem.curvature(honest)
    assert curvature is not None
    assert found.fun - least <= float(found.jac @ found.jac) / (2 * curvature.convexity) + 1e-10


@pytest.mark.parametrize("name", ["ridge", "softmax", "ridge on classes"])
def test_constants_bound_the_hessian(name: str) -> None:
    problem, honest = made(name), SETS[1]
    curvature = problem.curvature(honest)
    assert curvature is not None
    members = problem.gradients(np.flatnonzero(honest).tolist())
    if name == "ridge on classes":
        # The Hessian has a block for each class, all the same.
        x = torch.cat([features / len(features) ** 0.5 for i, features in enumerate(problem.features) if honest[i]])
        spectrum = torch.linalg.eigvalsh(x.T @ x / 3) + problem.l2
        assert curvature.smoothness == pytest.approx(float(spectrum[-1]))
        assert curvature.convexity == pytest.approx(float(spectrum[0]), rel=1e-6)
        return
    for seed in range(3):
        theta, step = theta_of(problem, seed), 1e-6
        eye = torch.eye(len(theta), dtype=torch.float64)
        columns = [
            (members.at(theta + step * e, 1) - members.at(theta - step * e, 1)).mean(0) / (2 * step) for e in eye
        ]
        spectrum = torch.linalg.eigvalsh(torch.stack(columns))
        assert float(spectrum[-1]) <= curvature.smoothness + 1e-6
        assert float(spectrum[0]) >= curvature.convexity - 1e-6
        if name == "ridge":
            assert float(spectrum[-1]) == pytest.approx(curvature.smoothness, abs=1e-6)
            assert float(spectrum[0]) == pytest.approx(curvature.convexity, abs=1e-6)


def test_label_flip_of_numbers_negates_them() -> None:
    problem, flip = made("ridge"), ATTACKS.build("label-flip")
    theta = theta_of(problem)
    rows = problem.attacked(flip, [1, 4], 0).at(theta, 1)
    honest = problem.gradients(range(5)).at(theta, 1)
    train = problem.shards.train
    for client in range(5):
        mine = train.owners == client
        at = theta.clone().requires_grad_()
        value = loss_of(problem, train.inputs[mine], -train.targets[mine], at)
        wanted = torch.autograd.grad(value, at)[0] if client in (1, 4) else honest[client]
        torch.testing.assert_close(rows[client], wanted)


@pytest.mark.parametrize("kind", ["label-flip", "label-noise", "unit-error", "duplicated-records", "missing-features"])
def test_only_bad_clients_hold_poisoned_samples(kind: str) -> None:
    problem, attack = made("softmax on digits"), ATTACKS.build(kind)
    wrong = poisoned(attack, problem.shards, 0)  # type: ignore[arg-type]
    theta = theta_of(problem)
    rows, honest = problem.attacked(attack, [0, 3], 0).at(theta, 1), problem.gradients(range(5)).at(theta, 1)
    for client in range(5):
        mine = wrong.owners == client
        at = theta.clone().requires_grad_()
        wanted = torch.autograd.grad(loss_of(problem, wrong.inputs[mine], wrong.targets[mine], at), at)[0]
        torch.testing.assert_close(rows[client], wanted if client in (0, 3) else honest[client])
        assert torch.equal(rows[client], honest[client]) == (client not in (0, 3))


def test_attacks_on_inputs_leave_targets_that_are_numbers_alone() -> None:
    problem, attack = made("ridge"), ATTACKS.build({"kind": "unit-error", "factor": 3.0})
    wrong = poisoned(attack, problem.shards, 0)  # type: ignore[arg-type]
    assert torch.equal(wrong.targets, problem.shards.train.targets)
    assert not torch.equal(wrong.inputs, problem.shards.train.inputs)


def test_attacks_that_change_from_round_to_round_are_refused_for_convex_tasks() -> None:
    with pytest.raises(ConfigError, match="from round to round"):
        made("softmax").attacked(ATTACKS.build({"kind": "label-flip", "mode": "random"}), [0], 0)  # type: ignore[arg-type]


def test_groups_share_what_they_learn() -> None:
    task = Task.model_validate({**RIDGE, "groups": [2, 2], "samples": 4000, "heterogeneity": 1.0, "noise": 0.1})
    problem = make_problem(task, 0)
    assert isinstance(problem, Linear)
    fits = [
        torch.linalg.lstsq(x, y[:, None]).solution[:, 0] for x, y in zip(problem.features, problem.targets, strict=True)
    ]
    near, far = (fits[0] - fits[1]).norm(), (fits[0] - fits[2]).norm()
    assert near < 0.02
    assert far > 0.3


def test_groups_of_a_data_set_deal_a_part_to_their_members() -> None:
    partition = {"kind": "sorted", "clients": 2}
    task = Task.model_validate(
        {"kind": "softmax", "dataset": "digits", "partition": partition, "groups": [3, 2], "samples": 0}
    )
    train = make_problem(task, 0).shards.train
    seen = [set(train.targets[train.owners == i].tolist()) for i in range(5)]
    # A class may be cut between the groups.
    assert len((seen[0] | seen[1] | seen[2]) & (seen[3] | seen[4])) <= 1
    assert len(seen[0] & seen[1] & seen[2]) >= 3
    rows = train.rows
    assert rows is not None
    assert len(torch.unique(rows)) == len(rows)
    wrong = Task.model_validate(
        {**task.model_dump(exclude_unset=True), "partition": {"kind": "iid", "clients": 3}, "groups": (3, 2)}
    )
    with pytest.raises(ConfigError, match=r"set partition\.clients = 2"):
        make_problem(wrong, 0)


def test_the_seed_decides_the_data() -> None:
    one, same, other = (made("softmax", seed).shards.train.inputs for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
