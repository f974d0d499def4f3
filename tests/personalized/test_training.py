from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from bezoar.attacks.counter_gradient import counter_gradient, honest_sum
from bezoar.attacks.gradient_to_data import LinearPoint, Points, SoftmaxExact
from bezoar.errors import ConfigError, DivergedError
from bezoar.personalized import (
    L2,
    BestResponse,
    GradientAttack,
    Joint,
    LinearRegression,
    LogisticRegression,
    ModelAttack,
    Models,
    Problem,
    Regularizer,
    SmoothL2,
    SoftmaxRegression,
    SquaredL2,
    TorchLoss,
    equilibrium,
    gradient_to_model,
    holding_gradient,
    initial,
    model_to_data,
    respond,
    response_step,
    train,
)

TIE = SquaredL2(1.0)
TIES = [SquaredL2(1.3), L2(1.3), SmoothL2(1.3)]


def regression(
    seed: int, users: int = 6, d: int = 5, tie: Regularizer = TIE, ridge: float = 0.0, samples: int = 12
) -> Problem:
    draws = np.random.default_rng(seed)
    data = []
    for _ in range(users):
        x = draws.normal(size=(samples, d))
        y = x @ draws.normal(size=d) + 0.1 * draws.normal(size=samples)
        data.append(Points(torch.from_numpy(x), torch.from_numpy(y)))
    return Problem(LinearRegression(d), tuple(data), tie, ridge)


def oracle(problem: Problem) -> np.ndarray:
    """rho* for SquaredL2: all models at once from one big system of equations, users and rho together."""
    d, lam, nu, n = problem.loss.size, problem.regularizer.strength, problem.ridge, problem.users
    a, b = np.zeros(((n + 1) * d, (n + 1) * d)), np.zeros((n + 1) * d)
    for i, points in enumerate(problem.data):
        x, y = points.inputs.numpy(), points.targets.numpy()
        own = slice((i + 1) * d, (i + 2) * d)
        a[own, own] = x.T @ x + 2 * (nu + lam) * np.eye(d)
        a[own, :d] = a[:d, own] = -2 * lam * np.eye(d)
        a[:d, :d] += 2 * lam * np.eye(d)
        b[own] = x.T @ y
    return np.linalg.solve(a, b)[:d]


def brute(problem: Problem, n: int, rho: torch.Tensor) -> np.ndarray:
    """A user's best model by an optimiser that never sees a gradient."""
    from scipy.optimize import minimize

    def function(theta: np.ndarray) -> float:
        t = torch.from_numpy(theta)
        return float(problem.local(n, t)[0] + problem.regularizer.value(rho, t))

    best = min(
        (
            minimize(function, start, method="Powell", options={"xtol": 1e-9, "ftol": 1e-15, "maxiter": 100_000})
            for start in (rho.numpy() + 0.5, rho.numpy())
        ),
        key=lambda found: found.fun,
    )
    return best.x


@pytest.mark.parametrize("tie", TIES, ids=lambda tie: type(tie).__name__)
@pytest.mark.parametrize("ridge", [0.0, 0.4])
def test_best_answers_of_linear_regression(tie: Regularizer, ridge: float) -> None:
    problem = regression(1, users=2, d=3, tie=tie, ridge=ridge)
    rho = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
    found = respond(problem, rho)
    for n in range(2):
        np.testing.assert_allclose(found[n].numpy(), brute(problem, n, rho), atol=1e-5)
        slope = problem.local(n, found[n])[1] - tie.gradient(rho, found[n])
        assert float(slope.norm()) < 1e-9


@pytest.mark.parametrize("tie", TIES, ids=lambda tie: type(tie).__name__)
def test_best_answers_of_other_losses_are_stationary(tie: Regularizer) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=draws, dtype=torch.float64)
    bent = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for loss, y in (
        (SoftmaxRegression(4, 3), torch.arange(20) % 3),
        (LogisticRegression(4), torch.arange(20) % 2),
        (TorchLoss(bent), torch.arange(20) % 3),
    ):
        problem = Problem(loss, (Points(x, y),), tie)
        rho = torch.randn(loss.size, generator=draws, dtype=torch.float64)
        (theta,) = respond(problem, rho)
        slope = problem.local(0, theta)[1] - tie.gradient(rho, theta)
        at_rho = problem.local(0, rho)[1]
        assert float(slope.norm()) < 1e-5 * max(1.0, float(at_rho.norm()))
        assert problem.objective(rho, theta[None]) < problem.objective(rho, rho[None])
    linear = regression(3, users=1, d=3, tie=tie)
    rho = torch.ones(3, dtype=torch.float64)
    from bezoar.personalized.response import _descend

    torch.testing.assert_close(_descend(linear, 0, rho, rho), respond(linear, rho)[0], atol=1e-7, rtol=0)


def test_a_weak_pull_of_the_data_leaves_a_user_at_rho_under_l2() -> None:
    problem = regression(1, users=1, d=3, tie=L2(1e4))
    rho = torch.ones(3, dtype=torch.float64)
    assert torch.equal(respond(problem, rho)[0], rho)
    soft = Problem(SoftmaxRegression(2, 2), (Points(torch.ones(1, 2).double(), torch.tensor([0])),), L2(10.0))
    rho = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(respond(soft, rho)[0], rho)


def test_data_that_do_not_bound_a_model_are_told() -> None:
    flat = Problem(LinearRegression(2), (Points(torch.zeros(1, 2).double(), torch.ones(1).double()),), L2(1.0))
    assert torch.equal(respond(flat, torch.ones(2).double())[0], torch.ones(2).double())


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_equilibrium_is_the_solution_of_the_whole_system(ridge: float) -> None:
    for seed in range(4):
        problem = regression(seed, ridge=ridge)
        np.testing.assert_allclose(equilibrium(problem).numpy(), oracle(problem), atol=1e-10)
    with pytest.raises(ConfigError, match="closed form"):
        equilibrium(regression(0, tie=L2()))


def test_best_response_descends_to_the_equilibrium() -> None:
    problem = regression(2)
    end = train(problem, BestResponse(400, 0.05), 0)
    np.testing.assert_allclose(end.rho.numpy(), oracle(problem), atol=1e-9)


def test_joint_gradient_descent_reaches_the_same_minimum() -> None:
    problem = regression(2, users=3, d=3)
    end = train(problem, Joint(4000, 0.02, 1.0, 0.0, "sgd"), 0)
    np.testing.assert_allclose(end.rho.numpy(), oracle(problem), atol=1e-7)


def test_adam_is_torch_s() -> None:
    problem = regression(4, users=2, d=3)
    training = Joint(epochs=30, lr=0.02, decay=0.9, floor=0.01)
    start = initial(problem, 0)
    end = train(problem, training, start)
    rho, thetas = start.rho.clone().requires_grad_(), start.thetas.clone().requires_grad_()
    optimiser = torch.optim.Adam([rho, thetas], lr=0.02)
    for epoch in range(30):
        optimiser.param_groups[0]["lr"] = max(0.02 * 0.9**epoch, 0.01)
        optimiser.zero_grad()
        total = sum(
            ((p.inputs @ thetas[n] - p.targets) ** 2).sum() / 2 + ((rho - thetas[n]) ** 2).sum()
            for n, p in enumerate(problem.data)
        )
        total.backward()
        optimiser.step()
    torch.testing.assert_close(end.rho, rho.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(end.thetas, thetas.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [Joint(20), BestResponse(20, 0.02)], ids=["joint", "best response"])
def test_training_is_repeatable_and_can_be_broken_off(training: Joint | BestResponse) -> None:
    problem = regression(5)
    attack = GradientAttack(torch.full((5,), 3.0, dtype=torch.float64))
    whole = train(problem, training, 7, attack)
    again = train(problem, training, 7, attack)
    assert torch.equal(whole.rho, again.rho)
    half = train(problem, dataclasses.replace(training, **{_length(training): 9}), 7, attack)
    assert half.epoch == 9
    rest = train(problem, training, half, attack)
    assert torch.equal(whole.rho, rest.rho)
    assert torch.equal(whole.thetas, rest.thetas)
    assert not torch.equal(whole.rho, train(problem, training, 8, attack).rho)


def _length(training: Joint | BestResponse) -> str:
    return "epochs" if isinstance(training, Joint) else "rounds"


def test_a_user_s_first_model_does_not_depend_on_how_many_there_are() -> None:
    problem = regression(5)
    more = problem.with_user(problem.data[0])
    assert torch.equal(initial(problem, 3).thetas, initial(more, 3).thetas[:-1])


# The counter-gradient.


def test_honest_sum_is_exact_after_a_plain_step() -> None:
    draws = torch.Generator().manual_seed(0)
    rho, sent = torch.randn(4, generator=draws).double(), torch.randn(4, generator=draws).double()
    honest = torch.randn(4, generator=draws).double()
    torch.testing.assert_close(honest_sum(rho, rho - 0.3 * (honest + sent), 0.3, sent), honest)
    after = rho - 0.3 * (honest + sent) / 7
    torch.testing.assert_close(honest_sum(rho, after, 0.3, sent, clients=7), honest)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (10, 1), (25, 5)])
def test_counter_gradient_lands_on_the_target_when_the_guess_is_right(n: int, m: int) -> None:
    draws = torch.Generator().manual_seed(0)
    rho, target, honest = (torch.randn(6, generator=draws).double() for _ in range(3))
    g = counter_gradient(rho, target, 0.2, honest, clients=n, attackers=m)
    torch.testing.assert_close(rho - 0.2 * (honest + m * g) / n, target)
    short = counter_gradient(rho, target, 0.2, honest, clients=n, attackers=m, reach=0.5)
    assert float(short.norm()) == pytest.approx(0.5)
    assert float(torch.nn.functional.cosine_similarity(short, g, dim=0)) == pytest.approx(1)
    with pytest.raises(ConfigError, match="learning rate must be positive"):
        counter_gradient(rho, target, 0.0)


def test_reachable_gradients_bring_rho_as_near_as_any() -> None:
    draws = torch.Generator().manual_seed(1)
    rho, target, honest = (torch.randn(3, generator=draws).double() for _ in range(3))
    g = counter_gradient(rho, target, 0.1, honest, reach=1.0)
    others = torch.randn(3000, 3, generator=draws).double()
    others = others / others.norm(dim=1, keepdim=True).clamp(min=1)
    gap = (rho - 0.1 * honest - target - 0.1 * others).norm(dim=1).min()
    assert float((rho - 0.1 * honest - target - 0.1 * g).norm()) <= float(gap)


def test_counter_gradient_converges_as_published() -> None:
    problem = regression(0)
    target = torch.full((5,), 10.0, dtype=torch.float64)
    gaps: list[float] = []
    train(
        problem,
        BestResponse(60, 0.02),
        0,
        GradientAttack(target),
        lambda m: gaps.append(float((m.rho - target).norm())),
    )
    assert gaps[-1] < 1e-11
    # e_{t+1} <= eta L (e_t + e_{t-1}): L of the honest sum is below 2 lambda N.
    rate = 0.02 * 2 * problem.users
    assert all(c <= rate * (a + b) + 1e-12 for a, b, c in zip(gaps, gaps[1:], gaps[2:], strict=False))


def test_seen_and_inferred_honest_gradients_are_the_same_with_plain_steps() -> None:
    problem = regression(0)
    target = torch.full((5,), 4.0, dtype=torch.float64)
    for training in (BestResponse(30, 0.02), Joint(30, 0.002, 0.97, 0.0, "sgd")):
        inferred = train(problem, training, 1, GradientAttack(target, "inferred"))
        seen = train(problem, training, 1, GradientAttack(target, "seen"))
        torch.testing.assert_close(inferred.rho, seen.rho, atol=1e-9, rtol=0)


def test_l2_bounds_what_one_attacker_can_do() -> None:
    target = torch.full((5,), 100.0, dtype=torch.float64)
    for tie in (L2(1.0), SmoothL2(1.0)):
        problem = regression(0, users=10, tie=tie)
        end = train(problem, BestResponse(60, 0.04), 0, GradientAttack(target))
        clean = train(problem, BestResponse(60, 0.04), 0)
        assert float((end.rho - clean.rho).norm()) < 2
        assert float((end.rho - target).norm()) > 200
    squared = train(regression(0, users=10), BestResponse(300, 0.02), 0, GradientAttack(target))
    assert float((squared.rho - target).norm()) < 1e-8


# The equivalence.


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("residual", [1.0, 10.0])
def test_gradient_model_and_data_attack_reach_the_same_model(ridge: float, residual: float) -> None:
    for seed in range(3):
        problem = regression(seed, ridge=ridge)
        target = torch.full((5,), 10.0, dtype=torch.float64)
        steps = BestResponse(250, 0.03)
        by_gradient = train(problem, steps, seed, GradientAttack(target))
        g = by_gradient.memory.sent
        assert g is not None
        torch.testing.assert_close(g, holding_gradient(problem, target), atol=1e-8, rtol=0)
        theta = gradient_to_model(problem.regularizer, by_gradient.rho, g)
        torch.testing.assert_close(
            theta, (problem.users + 1) * by_gradient.rho - by_gradient.thetas.sum(0), atol=1e-8, rtol=0
        )
        by_model = train(problem, steps, seed, ModelAttack(theta))
        data = model_to_data(problem, by_gradient.rho, theta, LinearPoint(residual))
        assert len(data) == 1
        poisoned = problem.with_user(data)
        by_data = train(poisoned, steps, seed)
        assert float((by_gradient.rho - by_model.rho).abs().max()) < 1e-6
        assert float((by_model.rho - by_data.rho).abs().max()) < 1e-6
        assert np.abs(oracle(poisoned) - 10.0).max() < 1e-8
        np.testing.assert_allclose(equilibrium(problem, theta).numpy(), 10.0, atol=1e-8)


def test_the_reductions_hold_for_softmax_regression_up_to_a_shift_of_all_classes() -> None:
    draws = torch.Generator().manual_seed(0)
    loss = SoftmaxRegression(3, 3)
    centres = 2 * torch.eye(3, dtype=torch.float64)
    data = []
    for _ in range(3):
        y = torch.arange(30) % 3
        data.append(Points(centres[y] + torch.randn(30, 3, generator=draws, dtype=torch.float64), y))
    problem = Problem(loss, tuple(data), SquaredL2(1.0))
    wrong = Problem(loss, tuple(Points(p.inputs, (p.targets + 1) % 3) for p in data), SquaredL2(1.0))
    target = train(wrong, BestResponse(60, 0.1), 0).rho
    g = holding_gradient(problem, target)
    theta = gradient_to_model(problem.regularizer, target, g)
    points = model_to_data(problem, target, theta, SoftmaxExact())
    # The user's whole gradient vanishes at theta.
    poisoned = problem.with_user(points)
    slope = poisoned.local(3, theta)[1] - poisoned.regularizer.gradient(target, theta)
    assert float(slope.abs().max()) < 1e-8
    start = dataclasses.replace(initial(poisoned, 0), rho=torch.zeros(12, dtype=torch.float64))
    end = train(poisoned, BestResponse(80, 0.2), start)
    # Data say nothing about what all classes have in common, so it stays where rho started.
    torch.testing.assert_close(end.rho - loss.common(end.rho), target - loss.common(target), atol=1e-5, rtol=0)
    w = torch.cat([target[:9].view(3, 3), target[9:, None]], 1)
    free = w - w.mean(0)
    torch.testing.assert_close(target - loss.common(target), torch.cat([free[:, :3].reshape(-1), free[:, 3]]))


def test_averaged_losses_take_one_sample_only() -> None:
    problem = dataclasses.replace(regression(0), reduction="mean")
    target = torch.full((5,), 2.0, dtype=torch.float64)
    theta = gradient_to_model(problem.regularizer, target, holding_gradient(problem, target))
    data = model_to_data(problem, target, theta, LinearPoint())
    torch.testing.assert_close(equilibrium(problem.with_user(data)), target, atol=1e-8, rtol=0)
    soft = Problem(
        SoftmaxRegression(2, 2), (Points(torch.eye(2).double(), torch.tensor([0, 1])),), SquaredL2(), reduction="mean"
    )
    rho = torch.zeros(6, dtype=torch.float64)
    shift = torch.tensor([30.0, 0, -30, 0, 10, -10], dtype=torch.float64)
    with pytest.raises(ConfigError, match="reduction='sum'"):
        model_to_data(soft, rho, rho + shift, SoftmaxExact())


def test_bad_parameters_and_divergence() -> None:
    for make in (
        lambda: Joint(epochs=-1),
        lambda: Joint(lr=0.0),
        lambda: Joint(decay=1.5),
        lambda: Joint(floor=1.0),
        lambda: Joint(optimizer="lbfgs"),  # type: ignore[arg-type]
        lambda: BestResponse(-1),
        lambda: BestResponse(lr=float("nan")),
        lambda: GradientAttack(torch.zeros(2), "guessed"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(DivergedError, match="smaller lr"):
        train(regression(0), Joint(2000, 10.0, 1.0, 0.0, "sgd"), 0)
    # This tie pulls the common model no harder than 1 per user, so only the users' models go too far.
    far = Models(torch.zeros(5).double(), torch.full((6, 5), 1e100, dtype=torch.float64))
    with pytest.raises(DivergedError, match="a user's model is no longer finite after step 1"):
        train(dataclasses.replace(regression(0), regularizer=L2(1.0)), Joint(1, 1e250, 1.0, 0.0, "sgd"), far)
    start = Models(torch.zeros(5).double(), torch.zeros(6, 5).double())
    assert response_step(regression(0), BestResponse(), start).epoch == 1
