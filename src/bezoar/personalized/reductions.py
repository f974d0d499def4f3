"""From a gradient attack to a model attack to data poisoning: what the equivalence of the three is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.attacks.gradient_to_data import Equiprobable, GradientToData, Points
from bezoar.errors import ConfigError
from bezoar.personalized.losses import SoftmaxRegression
from bezoar.personalized.problem import Problem
from bezoar.personalized.regularizers import Regularizer
from bezoar.personalized.response import respond


def holding_gradient(problem: Problem, rho: Tensor, thetas: Tensor | None = None) -> Tensor:
    r"""What a malicious user must keep sending so that the honest ``problem`` rests at ``rho``.

    .. math:: g_s^\infty = -\sum_{n\ \mathrm{honest}} \nabla_\rho R(\rho, \theta_n)

    It is projected on what can be sent; if that changes it, nobody can hold rho there. ``thetas`` are the honest users'
    models [N, D], by default their best answers.
    """
    thetas = respond(problem, rho) if thetas is None else thetas
    return problem.regularizer.project(-problem.regularizer.gradient(rho, thetas).sum(0))


def gradient_to_model(regularizer: Regularizer, rho: Tensor, gradient: Tensor, distance: float = 1.0) -> Tensor:
    r"""The model theta^s whose tie to ``rho`` has this ``gradient``.

    With SquaredL2 it is rho - g/(2 lambda), which at rest is (N_h + 1) rho - sum of the honest models.
    """
    return regularizer.model_for(rho, gradient, distance)


def model_to_data(problem: Problem, rho: Tensor, theta: Tensor, way: GradientToData) -> Points:
    r"""Data that make ``theta`` the best answer to ``rho`` of a user who learns from them.

    The closed forms make it exact: the samples' gradient at theta is :math:`\nabla_\rho R(\rho, \theta) - 2\nu\theta`,
    so that the user's whole gradient vanishes. ``Equiprobable`` labels many samples by theta instead: then the user
    learns theta whatever rho is, the better the more samples. In softmax regression data say nothing about what all
    classes have in common, which has no effect on answers either: that part of the gradient is left out.

    Raises:
        ConfigError: the problem averages losses (one sample would do less the more there are).
    """
    model = problem.loss.module(theta)
    if isinstance(way, Equiprobable):
        return way.label(model)
    wanted = problem.regularizer.gradient(rho, theta) - 2 * problem.ridge * theta
    if isinstance(problem.loss, SoftmaxRegression):
        wanted = wanted - problem.loss.common(wanted)
    data = way(model, wanted)
    if problem.reduction == "mean" and len(data) > 1:
        raise ConfigError("model_to_data: closed forms of several samples need reduction='sum'")
    return data


def spread_start(theta: Tensor, spread: float, draws: torch.Generator) -> Tensor:
    """Where a poisoned user's model starts: ``theta`` plus N(0, spread^2) in each coordinate."""
    noise = torch.randn(len(theta), generator=draws, dtype=torch.float64)
    return theta + (spread * noise).to(theta)
