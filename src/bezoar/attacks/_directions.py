"""The honest mean, a direction to leave it in, and how the honest rows lie about both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import COLUMN_BYTES
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates

Direction = Literal["unit", "sign", "std"]
DIRECTIONS = ("unit", "sign", "std")


def check_direction(who: str, direction: str) -> None:
    """Raise unless ``direction`` is one that :func:`spread` knows."""
    if direction not in DIRECTIONS:
        raise ConfigError(f"{who}: direction must be 'unit', 'sign' or 'std', got {direction!r}")


@dataclass(frozen=True)
class Spread:
    """Honest rows h_i about their mean, y_i = h_i - mean, all float64.

    Attributes:
        mean: the mean [d].
        direction: p / |p| [d]; zero if p is.
        length: |p|.
        along: y_i . p / |p| [n].
        squared: |y_i|^2 [n].
    """

    mean: Tensor
    direction: Tensor
    length: float
    along: Tensor
    squared: Tensor

    def shifted(self, distance: float, dtype: torch.dtype) -> Tensor:
        """The mean, moved by ``distance`` against the direction [d], as far as numbers of that type go."""
        limit = torch.finfo(dtype).max
        return (self.mean - distance * self.direction).clamp(-limit, limit).to(dtype)

    def gamma(self, distance: float) -> float:
        """How many p a ``distance`` is; 0 without a direction."""
        return distance / self.length if self.length > 0 else 0.0


def spread(honest: Updates, direction: Direction) -> Spread:
    """Measure ``honest`` (all finite) about its mean: one pass over the columns, in float64.

    ``direction`` is p: "unit" the mean over its norm, "sign" the signs of the mean, "std" the standard deviations by
    coordinate (ddof 1). Centred before they are multiplied, so that rows far from zero but close together keep digits.
    """
    n, d = honest.shape
    mean, p = (torch.empty(d, dtype=torch.float64, device=honest.device) for _ in range(2))
    along, squared = (torch.zeros(n, dtype=torch.float64, device=honest.device) for _ in range(2))
    # A power of two: the directions' squares stay legal numbers, whatever the size of the rows, and nothing is rounded.
    size = float(honest.squared_norms().max().sqrt())
    unit = 2.0 ** -int(torch.frexp(torch.tensor(size, dtype=torch.float64)).exponent) if 1e-290 < size < 1e290 else 1.0
    for block in honest.share(COLUMN_BYTES):
        values = block.values.double()
        middle = values.mean(0)
        # Equal rows must not be moved by the rounding of their mean.
        middle = torch.where((values == values[0]).all(0), values[0], middle)
        centred = values - middle
        if direction == "unit":
            part = middle * unit
        elif direction == "sign":
            part = middle.sign()
        else:
            part = ((centred * unit).square().sum(0) / max(1, n - 1)).sqrt()
        mean[block.start : block.stop], p[block.start : block.stop] = middle, part
        along += centred @ part
        squared += centred.square().sum(1)
    mean, p = honest.spread.join(mean), honest.spread.join(p)
    along, squared = honest.spread.total(along), honest.spread.total(squared)
    length = float(p.norm())
    if length > 0:
        p, along = p / length, along / length
    # What unit multiplied is no longer p itself: |p| is 1 for "unit", and in the rows' own size for "std".
    paper = {"unit": 1.0, "sign": length, "std": length / unit}[direction] if length > 0 else 0.0
    return Spread(mean, p, paper, along, squared)
