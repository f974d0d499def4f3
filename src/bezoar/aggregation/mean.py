"""The mean: optimal without attackers, helpless against one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._weights import check_cap, client_shares
from bezoar.aggregation.base import Aggregate, Constant, Context, State, Sums, Weighting
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class Mean(Weighting):
    r"""The average of all updates.

    .. math:: \bar x = \frac1n \sum_i x_i

    Rows with NaN or infinity are excluded and reported, any number of them. ``weighted=True`` reads client weights
    (``weights=`` of the call, or ``Context.client_weights``). Clients report their own, so ``cap`` limits the share of
    all weight that one of them may have.

    Tolerates: no bad row.
    Sums: one, of the updates; with ``weighted=True`` of updates times weights and of weights, but not with a ``cap``.
    Cost: one pass, O(n d).
    Constant: 0 without bad rows, infinite with one (exact).
    Peers: ByzFL, Blades and FLPoison have it, without weights; in Blades one row with NaN makes the answer NaN.
    Reference: McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from
        Decentralized Data, AISTATS 2017, whose server averages.

    >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([2., 3.])
    """

    weighted: bool = False
    cap: float | None = None
    needs: ClassVar[Needs] = Needs.NONE
    spare: ClassVar[bool] = True

    @property
    def sums(self) -> Sums | None:  # type: ignore[override]
        # A cap depends on everybody's weight.
        return Sums.ONE if self.cap is None else None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cap(self.name, self.weighted, self.cap)

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.weighted:
            return ()
        return (Constant(0.0 if q == 0 else math.inf, "0 if q = 0 else infinity", "exact"),)

    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        n = len(rows)
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device=rows.device), None

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        if not self.weighted or context.client_weights is None:
            return super()._run(rows, state, context, generator)
        weights = client_shares(context.client_weights.to(rows.device), self.cap)
        return Aggregate(rows.combine(weights), weights=weights)
