"""Gradient matching: samples, found by descent on the inputs, whose gradient points along a given one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data.base import (
    GradientToData,
    Match,
    Points,
    Reduction,
    compare,
    points_gradient,
    sample_losses,
)
from bezoar.errors import ConfigError
from bezoar.seeding import generator

Loss = Callable[[Tensor, Tensor], Tensor]
#: Inputs [R, P, ...] -> the objective of every restart [R] and its gradient with respect to the inputs.
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Layers for which all restarts go through the model at once; others take them one after the other, as convolutions
#: with a gradient each are no faster together.
_BATCHED = (
    nn.Sequential,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
)

#: Restarts from which on going together is faster.
_ENOUGH = 3


@dataclass(frozen=True)
class Found:
    """The best points of all restarts, how well they match, and which restart they come from."""

    points: Points
    match: Match
    restart: int


@dataclass(frozen=True)
class GradientMatching(GradientToData):
    r"""Samples whose gradient points along g*, by descent on the inputs; labels are given and stay.

    .. math:: B(\Delta) = 1 - \frac{\langle g, g^* \rangle}{\|g\| \|g^*\|},\quad
        g = \nabla_\theta \sum_i \ell(f_\theta(x_i + \Delta_i), y_i),\quad \|\Delta\|_\infty \le \epsilon

    ``mode="direction"`` minimises B, which does not know the length of g*; ``mode="exact"`` minimises
    |g - g*|^2 / |g*|^2 = 1 + r^2 - 2 r (1 - B) with the ratio of lengths r = |g|/|g*|. ``steps`` steps of Adam, by
    default on the signs of the gradient (``optimiser="sign-adam"``), start with rate ``lr`` and go on with a tenth of
    it from 3/8, 5/8 and 7/8 of them on. Of ``restarts`` starts the best point on any of the ways is kept.

    Inputs stay in [low, high], if those are given, and within ``epsilon`` of their base (in units of high - low; None:
    anywhere). In a ball of epsilon the first start is the base itself and others are N(0, (``spread`` epsilon)^2) away
    from it; without one all are N(0, ``spread``^2) away. Called by itself it takes ``points`` samples around zero of
    the ``shape`` that the model takes (known, if the first layer is linear), labelled 0, 1, ... in turn.
    ``reduction`` says whether g is that of the sum or of the mean of the losses.

    Knows: the model and the gradient wanted.
    Cost: restarts x steps forward and two backward passes over the points.
    Peers: none has it; the optimiser's defaults are those published with Witches' Brew.
    Reference: Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein: Witches' Brew, ICLR 2021 (the objective and the
        optimiser); the length of g* in the objective is ours.
    """

    points: int = 32
    shape: tuple[int, ...] = ()
    mode: Literal["direction", "exact"] = "direction"
    optimiser: Literal["sign-adam", "adam"] = "sign-adam"
    steps: int = 250
    lr: float = 0.1
    restarts: int = 8
    epsilon: float | None = None
    spread: float = 1.0
    reduction: Reduction = "sum"
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "mode": ("direction", "exact"),
            "optimiser": ("sign-adam", "adam"),
            "reduction": ("sum", "mean"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"GradientMatching: {key} must be {' or '.join(known)}, got {getattr(self, key)!r}")
        for key in ("points", "restarts", "steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"GradientMatching: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("lr", "epsilon"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"GradientMatching: {key} must be finite and positive, got {value}")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ConfigError(f"GradientMatching: spread must be finite and 0 or more, got {self.spread}")

    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        first = next(layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None)
        shape = self.shape or ((first.in_features,) if isinstance(first, nn.Linear) else ())
        if not shape:
            raise ConfigError(
                f"GradientMatching: the shape of an input can not be told from a {type(first).__name__}: set shape"
            )
        zeros = gradient.new_zeros(self.points, *shape, dtype=next(model.parameters()).dtype)
        with torch.no_grad():
            classes = model(zeros[:1]).shape[1]
        labels = torch.arange(self.points, device=zeros.device) % max(classes, 2)
        return self.find(model, gradient, Points(zeros, labels)).points

    def find(
        self,
        model: nn.Module,
        gradient: Tensor,
        base: Points,
        low: Tensor | None = None,
        high: Tensor | None = None,
        loss: Loss = sample_losses,
    ) -> Found:
        """Points near ``base``, with its targets, whose gradient is as nearly ``gradient`` [d] as was found.

        Args:
            model: where gradients are taken, in evaluation mode; left as it was.
            gradient: g*, in the order of ``model.parameters()``.
            base: samples to start from.
            low, high: the least and the greatest input, any shape that fits [P, ...]; None: without bound.
            loss: one loss a sample.

        Raises:
            ConfigError: the gradient is zero, not finite or of a wrong length.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        size = sum(parameter.numel() for parameter in parameters)
        if gradient.shape != (size,):
            raise ConfigError(
                f"GradientMatching: the model has {size} parameters, the gradient has shape {list(gradient.shape)}"
            )
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            raise ConfigError("GradientMatching: the gradient must hold finite numbers, not all of them zero")
        like = parameters[0]
        base = Points(base.inputs.detach().to(like), base.targets.to(like.device))
        training = model.training
        model.eval()
        try:
            with torch.enable_grad():
                objective = self._objective(model, gradient, base.targets, loss)
                x, restart = self._descend(objective, base.inputs, low, high)
                points = Points(x, base.targets)
                reached = compare(points_gradient(model, points, loss, self.reduction), gradient)
        finally:
            model.train(training)
        return Found(points, reached, restart)

    def _objective(self, model: nn.Module, gradient: Tensor, targets: Tensor, loss: Loss) -> Objective:
        """What is minimised, and its slope."""
        parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        wanted = gradient.detach().double()
        top = wanted.abs().max()
        length = torch.linalg.vector_norm(wanted / top)
        log_length = float(top.log() + length.log())
        unit = torch.split(
            (wanted / top / length).to(next(iter(parameters.values()))), [p.numel() for p in parameters.values()]
        )
        tiny = torch.finfo(unit[0].dtype).tiny
        average = 1 / len(targets) if self.reduction == "mean" else 1.0

        def total(values: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return loss(torch.func.functional_call(model, values, (inputs,)), targets).sum() * average

        together = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))

        def alone(inputs: Tensor) -> list[Tensor]:
            leaves = {name: value.requires_grad_() for name, value in parameters.items()}
            found = torch.autograd.grad(
                total(leaves, inputs[0]),
                list(leaves.values()),
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return [part[None] for part in found]

        def values(parts: list[Tensor]) -> Tensor:
            flat = [part.flatten(1) for part in parts]
            norm = (sum((part.square().sum(1) for part in flat), start=flat[0].new_zeros(())) + tiny).sqrt()
            along = sum((part @ aim for part, aim in zip(flat, unit, strict=True)), start=flat[0].new_zeros(()))
            if self.mode == "direction":
                return 1 - along / norm
            # The length of the target is kept as a logarithm: in the model's own numbers it might not exist.
            ratio = (norm.log() - log_length).exp()
            return 1 + ratio.square() - 2 * ratio * along / norm

        def slope(x: Tensor, gradients: Callable[[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor]:
            leaf = x.detach().requires_grad_()
            found = values(gradients(leaf))
            (back,) = torch.autograd.grad(found.sum(), leaf, allow_unused=True, materialize_grads=True)
            return found.detach(), back

        def batched(x: Tensor) -> tuple[Tensor, Tensor]:
            return slope(x, lambda leaf: list(together(parameters, leaf).values()))

        def one_by_one(x: Tensor) -> tuple[Tensor, Tensor]:
            found = [slope(x[r : r + 1], alone) for r in range(len(x))]
            return torch.cat([value for value, _ in found]), torch.cat([back for _, back in found])

        worth = self.restarts >= _ENOUGH and all(isinstance(layer, _BATCHED) for layer in model.modules())
        return batched if worth else one_by_one

    def _descend(
        self, objective: Objective, base: Tensor, low: Tensor | None, high: Tensor | None
    ) -> tuple[Tensor, int]:
        """The best inputs found [P, ...], and the restart that found them."""
        x, floor, ceiling = self._starts(base, low, high)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        best, least = x.clone(), x.new_full((self.restarts,), torch.inf)
        for step in range(self.steps + 1):
            value, slope = objective(x)
            better = value < least
            least = torch.where(better, value, least)
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), x, best)
            if step == self.steps:
                break
            # A sample at which the slope is undefined stays where it is.
            slope = slope.nan_to_num(0.0, 0.0, 0.0)
            slope = slope.sign() if self.optimiser == "sign-adam" else slope
            # Spelt out: torch.optim imports the compiler, which takes longer than all these steps.
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope.square()
            rate = self.lr * 0.1 ** sum(8 * step >= m * self.steps for m in (3, 5, 7))
            move = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            x = (x - rate * move).clamp(floor, ceiling)
        restart = int(least.argmin())
        return best[restart], restart

    def _starts(self, base: Tensor, low: Tensor | None, high: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Where every restart begins [R, P, ...], and the box that inputs stay in."""
        floor = torch.full_like(base, -torch.inf) if low is None else low.to(base).expand_as(base)
        ceiling = torch.full_like(base, torch.inf) if high is None else high.to(base).expand_as(base)
        draws = generator(self.seed, "gradient matching")
        noise = torch.randn(self.restarts, *base.shape, generator=draws, dtype=torch.float64).to(base) * self.spread
        if self.epsilon is not None:
            unit = torch.ones_like(base) if low is None or high is None else ceiling - floor
            noise = noise * self.epsilon * unit
            noise[0] = 0
            floor = torch.maximum(floor, torch.minimum(base, ceiling) - self.epsilon * unit)
            ceiling = torch.minimum(ceiling, torch.maximum(base, floor) + self.epsilon * unit)
        return (base + noise).clamp(floor, ceiling), floor, ceiling
