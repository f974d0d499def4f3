"""Personalised federated learning, where data poisoning can do whatever gradient attacks can.

>>> import torch
>>> from bezoar.attacks.gradient_to_data import Points
>>> data = tuple(Points(torch.eye(2), torch.tensor([float(n), 1.0])) for n in range(3))
>>> problem = Problem(LinearRegression(2), data, SquaredL2())
>>> equilibrium(problem)
tensor([1., 1.])
"""

from bezoar.personalized.attacks import GradientAttack, Malicious, Memory, ModelAttack, Step
from bezoar.personalized.losses import (
    LinearRegression,
    LogisticRegression,
    SoftmaxRegression,
    TorchLoss,
    UserLoss,
)
from bezoar.personalized.pac import GradientPAC, gradient_pac, labelled
from bezoar.personalized.pac_plot import pac_plot
from bezoar.personalized.problem import Problem
from bezoar.personalized.reductions import gradient_to_model, holding_gradient, model_to_data, spread_start
from bezoar.personalized.regularizers import L2, REGULARIZERS, Regularizer, SmoothL2, SquaredL2
from bezoar.personalized.response import equilibrium, minimise, respond
from bezoar.personalized.training import (
    BestResponse,
    Joint,
    Models,
    initial,
    joint_step,
    response_step,
    train,
)

__all__ = [
    "L2",
    "REGULARIZERS",
    "BestResponse",
    "GradientAttack",
    "GradientPAC",
    "Joint",
    "LinearRegression",
    "LogisticRegression",
    "Malicious",
    "Memory",
    "ModelAttack",
    "Models",
    "Problem",
    "Regularizer",
    "SmoothL2",
    "SoftmaxRegression",
    "SquaredL2",
    "Step",
    "TorchLoss",
    "UserLoss",
    "equilibrium",
    "gradient_pac",
    "gradient_to_model",
    "holding_gradient",
    "initial",
    "joint_step",
    "labelled",
    "minimise",
    "model_to_data",
    "pac_plot",
    "respond",
    "response_step",
    "spread_start",
    "train",
]
