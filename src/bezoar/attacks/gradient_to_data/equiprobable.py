"""Samples between all classes, labelled by the model that a user shall be driven to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data.base import GradientToData, Points, linear_layer, linear_parameters
from bezoar.errors import ConfigError
from bezoar.seeding import generator

Labels = Literal["soft", "sampled"]


def equiprobable_points(
    weight: Tensor,
    bias: Tensor | None,
    count: int,
    draws: torch.Generator,
    *,
    box: float = 50.0,
    noise: float = 0.01,
    labels: Labels = "soft",
) -> Points:
    """``count`` samples at which the linear classifier (W [C, p], b [C]) finds all classes about equally likely.

    Uniform in [-box, box]^p, moved to the nearest point where all outputs are equal, plus normal noise in the
    directions in which outputs differ. The classifier labels them: softly, or with a class drawn from its chances.

    Raises:
        ConfigError: no point has equal outputs.
    """
    # On the CPU, so that every device gets the same samples.
    w = weight.double().cpu()
    b = w.new_zeros(len(w)) if bias is None else bias.double().cpu()
    # C - 1 planes (W_a - W_0) x = b_0 - b_a; an orthonormal basis of their normals does what Gram-Schmidt would.
    left, values, right = torch.linalg.svd(w[1:] - w[0], full_matrices=False)
    rank = int((values > values[:1].sum() * 1e-10).sum())
    if rank == 0 and bool((b[1:] == b[0]).all()):
        basis = right[:0]
        level = w.new_zeros(0)
    else:
        basis = right[:rank]
        offsets = left[:, :rank].T @ (b[0] - b[1:])
        level = offsets / values[:rank]
        if not torch.allclose(left[:, :rank] @ offsets, b[0] - b[1:], atol=1e-8 * (1 + float(b.abs().max()))):
            raise ConfigError("equiprobable points: no input has equal outputs, rows of the weight matrix coincide")
    cpu = torch.device("cpu")
    x = (torch.rand(count, w.shape[1], generator=draws, dtype=torch.float64, device=cpu) * 2 - 1) * box
    x = x + (level - x @ basis.T) @ basis
    x = x + noise * torch.randn(count, len(basis), generator=draws, dtype=torch.float64, device=cpu) @ basis
    chances = torch.softmax(x @ w.T + b, dim=1)
    if labels == "soft":
        return Points(x.to(weight), chances.to(weight))
    return Points(x.to(weight), torch.multinomial(chances, 1, generator=draws)[:, 0].to(weight.device))


@dataclass(frozen=True)
class Equiprobable(GradientToData):
    r"""Samples labelled by the model theta^s that sends the gradient, drawn where all classes are about equally likely.

    .. math:: \theta^s = \theta - g/(2\lambda)

    A user who learns from enough such samples learns theta^s, whatever the others send, and a regulariser
    lambda |rho - theta|^2 then gives the gradient g (``strength`` is lambda). At ``model`` itself the samples' gradient
    only points the same way. Samples (``points`` of them, uniform in [-``box``, ``box``]^p) are moved to where all
    outputs of theta^s are equal, plus noise N(0, ``noise``^2) in each direction in which they differ: there a label
    says the most about the model. Labels are theta^s's probabilities, or drawn from them.

    Knows: the model and the gradient wanted.
    Cost: O(points C p).
    Peers: the authors' code labels softly, with 2,000 points and noise 0.01 for MNIST.
    Reference: Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022.
    """

    points: int = 2000
    box: float = 50.0
    noise: float = 0.01
    labels: Labels = "soft"
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"Equiprobable: points must be at least 1, got {self.points}")
        for key, least in (("box", 0.0), ("noise", 0.0), ("strength", math.ulp(0.0))):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= least):
                fine = "positive" if least else "0 or more"
                raise ConfigError(f"Equiprobable: {key} must be finite and {fine}, got {value}")
        if self.labels not in ("soft", "sampled"):
            raise ConfigError(f"Equiprobable: labels must be 'soft' or 'sampled', got {self.labels!r}")

    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        weight, bias, matrix = linear_parameters(model, gradient, "Equiprobable")
        if len(weight) < 2:
            raise ConfigError("Equiprobable: needs at least two outputs, this model has one")
        matrix = matrix.to(weight)
        step = 1 / (2 * self.strength)
        shift = None if bias is None else bias - step * matrix[:, -1]
        return self._draw(weight - step * matrix[:, : weight.shape[1]], shift)

    def label(self, model: nn.Module) -> Points:
        """Samples labelled by ``model`` itself: from it, one learns it."""
        layer = linear_layer(model, "Equiprobable")
        return self._draw(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())

    def _draw(self, weight: Tensor, bias: Tensor | None) -> Points:
        draws = generator(self.seed, "equiprobable points")
        return equiprobable_points(weight, bias, self.points, draws, box=self.box, noise=self.noise, labels=self.labels)
