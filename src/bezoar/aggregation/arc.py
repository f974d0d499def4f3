"""Adaptive robust clipping: a clipping radius from the norms of the round itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Constant, Context, Mixing
from bezoar.aggregation.clip import clip_factors
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class ARC(Mixing):
    r"""Scale the k longest updates down to the norm of the next one.

    .. math:: x_i \mapsto x_i \min(1, C / \|x_i\|_2),\quad C = \|x\|_{(k+1)},\quad k = \lfloor 2 (f/n) (n-f) \rfloor

    The norms are in descending order. As k >= f, the radius C never exceeds the largest honest norm, whatever f bad
    rows send, so the answer of any rule that follows is bounded by it.

    Tolerates: f <= (n-1)/2, followed by a rule that tolerates as many.
    Cost: norms only, O(n d).
    Constant: kappa + k/(n-q-k) <= kappa + 2f/(n-2f) after a rule with kappa, proved.
    Peers: ByzFL the same, but it changes the caller's array; Blades and FLPoison have none.
    Reference: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive Gradient Clipping for Robust Federated
        Learning, ICLR 2025.

    >>> import torch
    >>> ARC(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))[[2, 4]]
    tensor([[ 3.,  3.],
            [ 3., -3.]])
    """

    f: int
    needs: ClassVar[Needs] = Needs.NORMS
    bounds_norms: ClassVar[bool] = True

    def clipped(self, n: int, f: int) -> int:
        """How many of n rows may be shortened: k."""
        return 2 * f * (n - f) // n

    def constants(self, inner: Constant, n: int, f: int, q: int) -> tuple[Constant, ...]:
        k = self.clipped(n, f)
        source = "proved" if inner.source == "exact" else inner.source
        formula = f"kappa + k/(n-q-k), k = floor(2f(n-f)/n), kappa = {inner.formula}"
        return (Constant(inner.value + k / (n - q - k), formula, source),)

    def matrix(self, rows: Updates, context: Context, generator: torch.Generator | None) -> Tensor:
        norms = rows.squared_norms().sqrt()
        n = len(norms)
        radius = norms.sort(descending=True).values[self.clipped(n, self.f)]
        return clip_factors(norms, radius)
