"""Whether a loss learns from honest data whatever the others send: the constants of gradient-PAC, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks.gradient_to_data import Points
from bezoar.errors import ConfigError
from bezoar.personalized.losses import LinearRegression, LogisticRegression, SoftmaxRegression, UserLoss
from bezoar.seeding import generator

#: (true model [D], number of samples, random draws) -> that many samples labelled by it.
Sample = Callable[[Tensor, int, torch.Generator], Points]

#: Relative to the strongest, what differences of gradients can not tell from nothing.
TINY = 1e-9


@dataclass(frozen=True)
class GradientPAC:
    r"""What was measured, and the constants that fit it.

    .. math:: (\theta - \theta^\dagger)^\top \nabla L(\theta, D) \ge A I \min(\|\theta - \theta^\dagger\|,
        \|\theta - \theta^\dagger\|^2) - B I^\alpha \|\theta - \theta^\dagger\|

    for every theta and data set of I samples that was tried. It is evidence, no proof.

    Attributes:
        sizes: the I that were tried.
        noise: for each size the longest gradient at the true model.
        typical_noise: for each size the median length.
        growth: for each size the least (u.grad L(theta^dagger + r u) - u.grad L(theta^dagger)) / (I min(1, r)).
        radii: the distances r that were tried.
        growth_by_radius: the least growth at each distance, over all sizes.
        strongest: the greatest growth at the shortest distance, in any direction: the greatest curvature per sample.
        spread: how well the data tell directions apart, whatever the true model: the least over the greatest singular
            value of (grad L(e_i) - grad L(0))_i, at the greatest size. 0: in some direction no model is any worse.
        a, b, alpha: the constants; alpha is the slope of log typical noise over log I, b bounds all noise.
    """

    sizes: tuple[int, ...]
    noise: tuple[float, ...]
    typical_noise: tuple[float, ...]
    growth: tuple[float, ...]
    radii: tuple[float, ...]
    growth_by_radius: tuple[float, ...]
    strongest: float
    spread: float
    a: float
    b: float
    alpha: float

    @property
    def holds(self) -> bool | None:
        """Whether the measurements look like gradient-PAC: noise grows slower than I, the pull back does not fade.

        None: they do not tell. The data tell directions apart, but the true model is so sure of its labels that few
        samples pull on it: by less than can be measured, or so few that their noise follows no law. Take more samples,
        or a smaller ``k``.

        False: the pull is negative, or falls to less than a tenth farther away; or it is weak (a thousandth of the
        strongest) and ``spread`` is below 1e-9; or it is not weak, and alpha is 0.9 or more. Nothing here depends on a
        unit that all inputs have in common, but the radii do: only distances that were tried are judged. Inputs in
        units that differ by factors of 30,000 and more look like inputs that do not span the space. False is no proof
        either.
        """
        rises = [growth * min(1.0, r) for growth, r in zip(self.growth_by_radius, self.radii, strict=True)]
        seen = [growth > TINY * self.strongest for growth in self.growth_by_radius]
        # For a convex loss no rise is smaller than one nearer by.
        fades = any(seen[i] and rises[j] < rises[i] / 10 for i in range(len(rises)) for j in range(i + 1, len(rises)))
        if fades or self.a < -TINY * self.strongest:
            return False
        weak = self.a <= 1e-3 * self.strongest
        if weak and self.spread < TINY:
            return False
        if self.alpha < 0.9 and self.a > TINY * self.strongest:
            return True
        return None if weak else False


def labelled(loss: UserLoss, inputs: Callable[[int, torch.Generator], Tensor], noise: float = 1.0) -> Sample:
    """Samples with ``inputs`` of one's choice and labels drawn from the true model.

    Linear regression: plus normal ``noise``; logistic and softmax regression: classes with the model's probabilities.
    """

    def sample(theta: Tensor, size: int, draws: torch.Generator) -> Points:
        x = inputs(size, draws)
        if isinstance(loss, LinearRegression):
            return Points(x, x @ theta + noise * torch.randn(size, generator=draws, dtype=x.dtype))
        if isinstance(loss, LogisticRegression):
            chances = torch.sigmoid(x @ theta)
            return Points(x, (torch.rand(size, generator=draws, dtype=x.dtype) < chances).long())
        if isinstance(loss, SoftmaxRegression):
            chances = torch.softmax(loss.outputs(theta, x), dim=1)
            return Points(x, torch.multinomial(chances, 1, generator=draws)[:, 0])
        raise ConfigError(f"labelled: do not know how {type(loss).__name__} labels; write a function of your own")

    return sample


def gradient_pac(
    loss: UserLoss,
    sample: Sample,
    *,
    k: float = 1.0,
    sizes: Sequence[int] = (100, 300, 1000, 3000),
    radii: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
    draws: int = 5,
    directions: int = 10,
    seed: int = 0,
) -> GradientPAC:
    """Measure the constants for true models of norm ``k``.

    For each size, ``draws`` true models and data sets; from each true model ``directions`` random directions and those
    of the least and greatest curvature (from differences of gradients), at all ``radii``.

    >>> loss = LogisticRegression(2)
    >>> normal = lambda size, draws: torch.randn(size, 2, generator=draws, dtype=torch.float64)
    >>> gradient_pac(loss, labelled(loss, normal)).holds
    True
    """
    if len(sizes) < 2 or min(sizes) < 1 or not radii or min(radii) <= 0 or draws < 1 or directions < 0 or k < 0:
        raise ConfigError("gradient_pac: needs two sizes >= 1, radii > 0, draws >= 1, directions >= 0 and k >= 0")
    radii = sorted(radii)
    lengths = np.zeros((len(sizes), draws))
    strongest, spread = 0.0, math.inf
    growth = np.full((len(sizes), len(radii)), math.inf)
    for i, size in enumerate(sizes):
        for draw in range(draws):
            source = generator(seed, "gradient-pac", i, draw)
            theta = torch.randn(loss.size, generator=source, dtype=torch.float64)
            theta = theta * (k / float(theta.norm()))
            data = sample(theta, size, source)
            start = loss.value_and_gradient(theta, data)[1]
            lengths[i, draw] = float(start.norm())
            if size == max(sizes):
                spread = min(spread, _spread(loss, data))
            for u in _directions(loss, theta, data, start, directions, source):
                for j, r in enumerate(radii):
                    rise = float(u @ (loss.value_and_gradient(theta + r * u, data)[1] - start))
                    pull = rise / (size * min(1.0, r))
                    growth[i, j] = min(growth[i, j], pull)
                    strongest = max(strongest, pull) if j == 0 else strongest
    noise, typical = lengths.max(1), np.median(lengths, axis=1)
    # Where hardly a sample was in doubt there is no noise to speak of, and its logarithm would make up any alpha.
    least = max(TINY * float(noise.max()), 1e-300)
    alpha = float(np.polyfit(np.log(sizes), np.log(np.maximum(typical, least)), 1)[0])
    return GradientPAC(
        sizes=tuple(sizes),
        noise=tuple(noise.tolist()),
        typical_noise=tuple(typical.tolist()),
        growth=tuple(growth.min(1).tolist()),
        radii=tuple(radii),
        growth_by_radius=tuple(growth.min(0).tolist()),
        strongest=strongest,
        spread=spread,
        a=float(growth.min()),
        b=float((noise / np.asarray(sizes, dtype=float) ** alpha).max()),
        alpha=alpha,
    )


def _directions(
    loss: UserLoss, theta: Tensor, data: Points, start: Tensor, count: int, draws: torch.Generator
) -> list[Tensor]:
    """Unit vectors: random ones, and those of the least and greatest curvature at ``theta``."""
    found = [torch.randn(loss.size, generator=draws, dtype=torch.float64) for _ in range(count)]
    step = 1e-4
    eye = torch.eye(loss.size, dtype=torch.float64)
    hessian = torch.stack([(loss.value_and_gradient(theta + step * e, data)[1] - start) / step for e in eye])
    vectors = torch.linalg.eigh((hessian + hessian.T) / 2).eigenvectors
    found += [vectors[:, 0], -vectors[:, 0], vectors[:, -1], -vectors[:, -1]]
    return [u / u.norm() for u in found]


def _spread(loss: UserLoss, data: Points) -> float:
    """How well ``data`` tell directions apart, at the model 0, which is sure of nothing."""
    # Steps of 1 are no derivatives, but rank is all that matters, and large steps lose the fewest digits.
    steps = torch.eye(loss.size, dtype=torch.float64)
    here = loss.value_and_gradient(torch.zeros_like(steps[0]), data)[1]
    values = torch.linalg.svdvals(torch.stack([loss.value_and_gradient(e, data)[1] - here for e in steps]))
    return float(values[-1] / values[0]) if values[0] > 0 else 0.0
