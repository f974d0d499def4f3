"""Losses of a user: summed over the samples, with gradients, for linear models in closed form."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data import Points, sample_losses
from bezoar.errors import ConfigError
from bezoar.models.flat import flat_copy, load_vector


class UserLoss(ABC):
    """The sum of the samples' losses as a function of the flat parameters theta [D]."""

    @property
    @abstractmethod
    def size(self) -> int:
        """D."""

    @abstractmethod
    def value_and_gradient(self, theta: Tensor, data: Points) -> tuple[Tensor, Tensor]:
        """Loss and gradient [D] at ``theta``, summed over ``data``."""

    @abstractmethod
    def module(self, theta: Tensor) -> nn.Module:
        """A torch model with the parameters ``theta``."""

    @abstractmethod
    def initial(self, draws: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random parameters [D] as torch draws them for a fresh model."""

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """What the model answers to ``inputs``."""
        with torch.no_grad():
            return self.module(theta)(inputs)  # type: ignore[no-any-return]

    def value(self, theta: Tensor, data: Points) -> Tensor:
        """The loss alone."""
        return self.value_and_gradient(theta, data)[0]


def _whole(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class LinearRegression(UserLoss):
    """Half the squared residual of theta.x, without a bias: put a constant into the inputs where one is wanted."""

    features: int

    def __post_init__(self) -> None:
        _whole("LinearRegression: features", self.features, 1)

    @property
    def size(self) -> int:
        return self.features

    def value_and_gradient(self, theta: Tensor, data: Points) -> tuple[Tensor, Tensor]:
        residual = data.inputs @ theta - data.targets
        return residual.square().sum() / 2, data.inputs.T @ residual

    def module(self, theta: Tensor) -> nn.Module:
        return _linear(theta, 1, bias=False)

    def initial(self, draws: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return _uniform(self.size, self.features, draws, dtype)


@dataclass(frozen=True)
class LogisticRegression(UserLoss):
    """log(1 + exp(-y theta.x)) with classes 0 and 1 standing for y = -1 and 1, without a bias."""

    features: int

    def __post_init__(self) -> None:
        _whole("LogisticRegression: features", self.features, 1)

    @property
    def size(self) -> int:
        return self.features

    def value_and_gradient(self, theta: Tensor, data: Points) -> tuple[Tensor, Tensor]:
        y = data.targets.to(theta.dtype)
        outputs = data.inputs @ theta
        loss = F.binary_cross_entropy_with_logits(outputs, y, reduction="sum")
        return loss, data.inputs.T @ (torch.sigmoid(outputs) - y)

    def module(self, theta: Tensor) -> nn.Module:
        return _linear(theta, 1, bias=False)

    def initial(self, draws: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return _uniform(self.size, self.features, draws, dtype)


@dataclass(frozen=True)
class SoftmaxRegression(UserLoss):
    """Cross-entropy of softmax(Wx + b), classes or soft labels; theta is W row by row, then b."""

    features: int
    classes: int

    def __post_init__(self) -> None:
        _whole("SoftmaxRegression: features", self.features, 1)
        _whole("SoftmaxRegression: classes", self.classes, 2)

    @property
    def size(self) -> int:
        return self.classes * (self.features + 1)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """W [C, p] and b [C]."""
        cut = self.classes * self.features
        return theta[:cut].view(self.classes, self.features), theta[cut:]

    def common(self, theta: Tensor) -> Tensor:
        """The part of ``theta`` that is the same for all classes, and so has no effect on the softmax."""
        w, b = self.split(theta)
        return torch.cat([w.mean(0).expand_as(w).reshape(-1), b.mean().expand_as(b)])

    def value_and_gradient(self, theta: Tensor, data: Points) -> tuple[Tensor, Tensor]:
        w, b = self.split(theta)
        logs = torch.log_softmax(torch.addmm(b, data.inputs, w.T), dim=1)
        error = logs.exp()
        if data.targets.is_floating_point():
            loss = -(data.targets * logs).sum()
            # Soft labels may sum to anything: then that much of the softmax is subtracted from.
            error = error * data.targets.sum(1, keepdim=True) - data.targets
        else:
            loss = -logs.gather(1, data.targets[:, None]).sum()
            error.scatter_add_(1, data.targets[:, None], -torch.ones_like(error[:, :1]))
        return loss, torch.cat([(error.T @ data.inputs).reshape(-1), error.sum(0)])

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        w, b = self.split(theta)
        return torch.addmm(b, inputs, w.T)

    def module(self, theta: Tensor) -> nn.Module:
        return _linear(theta, self.classes, bias=True)

    def initial(self, draws: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return _uniform(self.size, self.features, draws, dtype)


@dataclass(frozen=True, eq=False)
class TorchLoss(UserLoss):
    """Any torch model, with the loss that goes with the kind of targets; it need not be convex.

    ``model`` is copied; it gives the shapes, and its parameters are what everybody starts from.
    """

    model: nn.Module
    _own: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", copy.deepcopy(self.model))

    @property
    def size(self) -> int:
        return len(flat_copy(self.model))

    def value_and_gradient(self, theta: Tensor, data: Points) -> tuple[Tensor, Tensor]:
        load_vector(self._own, theta)
        parameters = [parameter for parameter in self._own.parameters() if parameter.requires_grad]
        loss = sample_losses(self._own(data.inputs), data.targets).sum()
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), torch.cat([part.reshape(-1) for part in parts])

    def module(self, theta: Tensor) -> nn.Module:
        fresh = copy.deepcopy(self.model)
        load_vector(fresh, theta)
        return fresh

    def initial(self, draws: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return flat_copy(self.model).to(dtype)


def _linear(theta: Tensor, outputs: int, bias: bool) -> nn.Linear:
    features = len(theta) // outputs - bias
    # Not drawn first: that would move torch's global random state.
    layer = nn.Linear(features, outputs, bias=bias, dtype=theta.dtype, device="meta").to_empty(device=theta.device)
    load_vector(layer, theta.detach())
    return layer


def _uniform(size: int, features: int, draws: torch.Generator, dtype: torch.dtype) -> Tensor:
    bound: float = features**-0.5
    return (torch.rand(size, generator=draws, dtype=torch.float64) * 2 - 1).mul_(bound).to(dtype)
