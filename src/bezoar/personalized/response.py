"""What a user answers to a common model: the minimum of its own loss plus the tie."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bezoar.errors import ConfigError, DivergedError
from bezoar.personalized.losses import LinearRegression
from bezoar.personalized.problem import Problem
from bezoar.personalized.regularizers import L2, Regularizer, SquaredL2

Value = Callable[[Tensor], tuple[Tensor, Tensor]]


def respond(problem: Problem, rho: Tensor, start: Tensor | None = None) -> Tensor:
    """The users' best models [N, D] for the common model ``rho`` [D].

    Linear regression is solved in closed form, up to one scalar equation where the regulariser is not quadratic. Other
    losses are minimised by L-BFGS from ``start`` [N, D] (default: everybody at rho): to the minimum if they are convex,
    to a stationary point otherwise (with ReLU possibly to a kink).
    """
    answers = []
    for n in range(problem.users):
        if isinstance(problem.loss, LinearRegression):
            answers.append(_ridge(problem, n, rho))
        else:
            answers.append(_descend(problem, n, rho, rho if start is None else start[n]))
    return torch.stack(answers)


def equilibrium(problem: Problem, *frozen: Tensor) -> Tensor:
    r"""The common model at the minimum of the loss, for linear regression with ``SquaredL2``.

    With :math:`M_n = (X_n^\top X_n + 2(\nu + \lambda) I)^{-1}` it solves

    .. math:: \sum_n 2\lambda (I - 2\lambda M_n) \rho = \sum_n 2\lambda M_n X_n^\top y_n.

    ``frozen`` are models of further users who do not learn.
    """
    if not isinstance(problem.loss, LinearRegression) or not isinstance(problem.regularizer, SquaredL2):
        raise ConfigError("equilibrium: closed form for LinearRegression with SquaredL2 only")
    tie = 2 * problem.regularizer.strength
    like = problem.data[0].inputs
    eye = torch.eye(problem.loss.features, dtype=like.dtype, device=like.device)
    left, right = tie * len(frozen) * eye, torch.zeros_like(eye[0])
    for theta in frozen:
        right = right + tie * theta
    for n, points in enumerate(problem.data):
        a = problem.share(n) * points.inputs.T @ points.inputs + (2 * problem.ridge + tie) * eye
        b = problem.share(n) * points.inputs.T @ points.targets
        # I - 2 lambda M without the loss of digits where data are many: M (A - 2 lambda I).
        left = left + tie * torch.linalg.solve(a, a - tie * eye)
        right = right + tie * torch.linalg.solve(a, b)
    found: Tensor = torch.linalg.solve(left, right)
    return found


def _ridge(problem: Problem, n: int, rho: Tensor) -> Tensor:
    points, share = problem.data[n], problem.share(n)
    eye = torch.eye(len(rho), dtype=rho.dtype, device=rho.device)
    hessian = share * points.inputs.T @ points.inputs + 2 * problem.ridge * eye
    if isinstance(problem.regularizer, SquaredL2):
        tie = 2 * problem.regularizer.strength
        found: Tensor = torch.linalg.solve(hessian + tie * eye, share * points.inputs.T @ points.targets + tie * rho)
        return found
    slope = problem.local(n, rho)[1].double()
    values, vectors = torch.linalg.eigh(hessian.double())
    step: Tensor = vectors @ _tied_step(values.clamp(min=0), vectors.T @ slope, problem.regularizer)
    return rho - step.to(rho.dtype)


def _tied_step(curvature: Tensor, slope: Tensor, regularizer: Regularizer) -> Tensor:
    """rho - theta in the eigenbasis: (H + c(r))^-1 slope, where r is its own length and c(r) the pull at r."""
    if not bool(slope.any()) or (isinstance(regularizer, L2) and float(slope.norm()) <= regularizer.strength):
        return torch.zeros_like(slope)

    # In NumPy: the vectors are short, and the loop is run for every user in every round.
    steep, bend = slope.cpu().numpy(), curvature.cpu().numpy()

    def excess(r: float) -> float:
        c = float(regularizer.pull(torch.tensor(r, dtype=torch.float64)))
        return float(np.linalg.norm(steep / (bend + c))) - r

    low, high, above, below = 0.0, 1.0, math.inf, excess(1.0)
    while below > 0:
        low, high, above = high, 2 * high, below
        below = excess(high)
        if high > 1e150:
            raise DivergedError("a user's best model is infinitely far: its data do not bound it, set ridge")
    for trial in range(200):
        # The chord where it helps, with a plain halving every third time so that the bracket surely shrinks.
        middle = low + (high - low) / 2
        if trial % 3 and math.isfinite(above):
            middle = low + (high - low) * above / (above - below)
        if not low < middle < high or high - low <= 4e-16 * high:
            break
        value = excess(middle)
        low, high, above, below = (middle, high, value, below) if value > 0 else (low, middle, above, value)
    return slope / (curvature + regularizer.pull(slope.new_tensor(high)))


def _descend(problem: Problem, n: int, rho: Tensor, start: Tensor) -> Tensor:
    regularizer = problem.regularizer

    def tied(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = problem.local(n, theta)
        return value + regularizer.value(rho, theta), gradient - regularizer.gradient(rho, theta)

    if isinstance(regularizer, L2):
        slope = problem.local(n, rho)[1]
        length = float(slope.norm())
        if length <= regularizer.strength:
            return rho.clone()
        if bool((start == rho).all()):
            # The tie has a kink at rho; any step down leaves it for good.
            start = _off_the_kink(tied, rho, slope / length)
    return minimise(tied, start)


def _off_the_kink(function: Value, rho: Tensor, direction: Tensor) -> Tensor:
    here = float(function(rho)[0])
    size = 1.0
    while size > 1e-12 and not float(function(rho - size * direction)[0]) < here:
        size /= 2
    return rho - size * direction


def minimise(function: Value, start: Tensor, *, tolerance: float = 1e-10, iterations: int = 2000) -> Tensor:
    """A minimum of ``function`` (value and gradient) from ``start``, by L-BFGS with a strong Wolfe line search.

    It ends where no entry of the gradient exceeds ``tolerance``, or no step makes progress in the dtype's precision.
    """
    theta = start.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [theta],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradient = function(theta.detach())
        theta.grad = gradient.detach().clone()
        return float(value)

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = theta.detach()
    if not bool(torch.isfinite(found).all()):
        raise DivergedError("a user's best model is not finite")
    return found
