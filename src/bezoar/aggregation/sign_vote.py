"""Majority vote of signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Columnwise, Sums
from bezoar.errors import ConfigError


@dataclass(frozen=True)
class SignVote(Columnwise):
    r"""The majority's sign of every coordinate, times ``scale``.

    .. math:: [F(x)]_j = \text{scale} \cdot \operatorname{sign} \Big( \sum_i \operatorname{sign}([x_i]_j) \Big)

    Zeros abstain, and a tie gives zero. The size of the updates is lost: ``scale`` sets the length of a step. A row
    can change a coordinate by at most twice ``scale``, whatever it holds.

    Tolerates: f < n/2; a coordinate is right if honest votes for its sign exceed the others by more than f.
    Sums: one, of the signs; clients would have to prove that every entry they send is -1, 0 or 1.
    Cost: one pass over the columns, O(n d).
    Constant: none known; the answer is not near the mean but has its signs.
    Peers: ByzFL, Blades and FLPoison lack it.
    Reference: Bernstein, Zhao, Azizzadenesheli, Anandkumar: signSGD with Majority Vote is Communication Efficient and
        Fault Tolerant, ICLR 2019.

    >>> SignVote()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([1., 1.])
    """

    scale: float = 1.0
    sums: ClassVar[Sums | None] = Sums.ONE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scale, int | float) or not math.isfinite(self.scale) or self.scale <= 0:
            raise ConfigError(f"SignVote: scale must be a positive number, got {self.scale!r}")

    def reduce(self, values: Tensor) -> Tensor:
        # Half precision can not count beyond 2048.
        votes = torch.sign(values).sum(0, dtype=values.dtype if values.dtype == torch.float64 else torch.float32)
        return torch.sign(votes) * self.scale
