"""What it means to turn a target gradient into data, and how well some data do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.errors import ConfigError

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class Points:
    """Samples made by an attacker.

    Attributes:
        inputs: [P, ...] as the model takes them, images [P, C, H, W].
        targets: classes [P] int64, soft labels [P, C] of floats, or real answers [P] of floats.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.ndim < 2 or self.targets.ndim not in (1, 2) or len(self.inputs) != len(self.targets):
            raise ConfigError(
                f"points need inputs [P, ...] and targets [P] or [P, C], got {list(self.inputs.shape)} and "
                f"{list(self.targets.shape)}"
            )
        whole = self.targets.dtype == torch.int64
        if not (self.targets.is_floating_point() or whole) or (whole and self.targets.ndim == 2):
            raise ConfigError(
                f"targets must be classes [P] int64, or soft labels [P, C] or real answers [P] of floats, got "
                f"{self.targets.dtype} {list(self.targets.shape)}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @staticmethod
    def join(*parts: Points) -> Points:
        """All points, in order."""
        return Points(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


@dataclass(frozen=True)
class Match:
    """How close the gradient g of some points is to the target g*: <g, g*>/(|g| |g*|), and |g|/|g*|.

    Both are 1 for a perfect match. A cosine with a zero vector is 0, and the norm ratio to a zero target is infinite.
    """

    cosine: float
    norm_ratio: float

    @property
    def distance(self) -> float:
        """1 - cosine, in [0, 2]."""
        return 1 - self.cosine


def sample_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each sample [P] that goes with the kind of ``targets``.

    Classes: cross-entropy, or the logistic loss of class 1 if the model has a single output. Soft labels [P, C]:
    cross-entropy. Real answers [P]: half the squared residual of the single output.
    """
    if targets.is_floating_point() and targets.ndim == 1:
        return (outputs.reshape(len(targets)) - targets).square() / 2
    if targets.ndim == 1 and outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")
    return F.cross_entropy(outputs, targets, reduction="none")


def points_gradient(
    model: nn.Module,
    points: Points,
    loss: Callable[[Tensor, Tensor], Tensor] = sample_losses,
    reduction: Reduction = "sum",
) -> Tensor:
    """Gradient [d] of the points' loss at ``model``, trainable parameters in the order of ``model.parameters()``."""
    losses = loss(model(points.inputs), points.targets)
    total = losses.sum() if reduction == "sum" else losses.mean()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])


def match(model: nn.Module | Callable[[Points], Tensor], points: Points, target: Tensor) -> Match:
    """How well ``points`` give the gradient ``target`` [d] at ``model``.

    ``model`` is a torch model, with the loss of :func:`sample_losses` summed over the points, or any function from
    points to their gradient [d].

    >>> points = Points(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]))
    >>> match(lambda points: points.inputs[0] * -points.targets, points, torch.tensor([-1.0, 0.0]))
    Match(cosine=1.0, norm_ratio=2.0)
    """
    gradient = points_gradient(model, points) if isinstance(model, nn.Module) else model(points)
    return compare(gradient, target)


def compare(gradient: Tensor, target: Tensor) -> Match:
    """The same for a gradient [d] that is known already."""
    g, wanted = gradient.detach().double(), target.detach().double()
    # Scaled first, so that squares neither overflow nor vanish.
    high, top = float(g.abs().max()), float(wanted.abs().max())
    if top == 0 or high == 0:
        return Match(0.0, float("inf") if top == 0 else 0.0)
    g, wanted = g / high, wanted / top
    length, norm = float(g.norm()), float(wanted.norm())
    cosine = float(g @ wanted) / (length * norm)
    return Match(max(-1.0, min(1.0, cosine)), length / norm * (high / top))


class GradientToData(ABC):
    """A way to make data whose gradient at a model is a given one."""

    @abstractmethod
    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        """Points whose loss at ``model`` has (as nearly as the method can) the gradient ``gradient`` [d].

        Args:
            model: where the gradient is taken; it is not changed.
            gradient: the target, flat, in the order of ``model.parameters()``; of the SUM of the points' losses.
        """


def linear_layer(model: nn.Module, kind: str) -> nn.Linear:
    """The one linear layer that ``model`` consists of, flattening aside. Raises ConfigError if there is more to it."""
    layers = [layer for layer in model.modules() if not isinstance(layer, nn.Sequential | nn.Flatten | nn.Identity)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        names = [type(layer).__name__ for layer in layers]
        raise ConfigError(f"{kind} is a closed form for a single linear layer, this model consists of {names}")
    return layers[0]


def linear_parameters(model: nn.Module, gradient: Tensor, kind: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weight [C, p], bias [C] or None, and the gradient as [C, p] or [C, p + 1], for one linear layer."""
    layer = linear_layer(model, kind)
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    classes, width = weight.shape
    size = weight.numel() + (0 if bias is None else classes)
    if gradient.shape != (size,):
        raise ConfigError(f"{kind}: the model has {size} parameters, the gradient has shape {list(gradient.shape)}")
    if not bool(torch.isfinite(gradient).all()):
        raise ConfigError(f"{kind}: the gradient must hold finite numbers only")
    matrix = gradient[: weight.numel()].reshape(classes, width)
    if bias is not None:
        matrix = torch.cat([matrix, gradient[weight.numel() :].reshape(classes, 1)], dim=1)
    return weight, bias, matrix.detach()
