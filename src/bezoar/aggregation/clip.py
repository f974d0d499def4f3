"""Clipping every update to a ball: the first line of defence, and half of SparseFed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Context, Mixing, Sums
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


def clip_factors(norms: Tensor, bound: Tensor | float) -> Tensor:
    """Factors that bring rows with these ``norms`` [n] down to ``bound`` where they are longer."""
    return (bound / norms).clamp(max=1.0).nan_to_num(nan=1.0)


@dataclass(frozen=True)
class Clip(Mixing):
    r"""Scale every update down to l2 norm ``radius`` if it is longer.

    .. math:: x_i \mapsto x_i \min(1, L / \|x_i\|_2)

    Direction is kept. ``radius`` has the unit of the updates and must be positive; infinity leaves every row as it is.

    Tolerates: any number of bad rows as far as their length goes; their direction is left to the rule that follows.
    Sums: one, if clients clip; they would have to prove that what they send is no longer than ``radius``.
    Cost: norms only, O(n d).
    Constant: none, it biases: honest rows that agree beyond the radius are all moved.
    Peers: ByzFL the same with radius 2 by default, but it changes the caller's array; FLPoison has norm clipping.
    Reference: Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal: SparseFed, AISTATS 2022, among many.

    >>> import torch
    >>> from bezoar.aggregation import Mean
    >>> (Clip(5.0) >> Mean())(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
    tensor([3., 4.])
    """

    radius: float
    needs: ClassVar[Needs] = Needs.NORMS
    sums: ClassVar[Sums | None] = Sums.ONE
    bounds_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.radius, int | float) or math.isnan(self.radius) or self.radius <= 0:
            raise ConfigError(f"Clip: radius must be a positive number, got {self.radius!r}")

    def matrix(self, rows: Updates, context: Context, generator: torch.Generator | None) -> Tensor:
        norms = rows.squared_norms().sqrt()
        return clip_factors(norms, self.radius)
