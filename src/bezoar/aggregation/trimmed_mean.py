"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from bezoar.aggregation._broken import BROKEN, NO_PROMISE, check_broken, one_number
from bezoar.aggregation._weights import check_cap, client_shares
from bezoar.aggregation.base import Aggregate, Constant, Context, Ordered, State, reduce_columns
from bezoar.aggregation.mean import Mean
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.kernels.columns import column_weighted_trimmed_mean, trimmed_mean_of_sorted
from bezoar.updates.base import Updates


@dataclass(frozen=True)
class TrimmedMean(Ordered):
    r"""Drop the f largest and the f smallest values of every coordinate, average the rest.

    .. math:: [F(x)]_j = \frac{1}{n-2f} \sum_{i=f+1}^{n-f} [x]_{(i),j}

    With f = 0 it is the mean. ``weighted=True`` reads client weights (``weights=`` of the call, or
    ``Context.client_weights``), none above the share ``cap`` of all weight, and trims the share f/n of the weight at
    each end, cutting through a row where need be.

    ``variant="code-2021-05"`` is broken, for reproduction only: it is what two revisions (2021-05 and 2021-06) of the
    code of Panda et al. (SparseFed) run under this name. They sort along the coordinates instead of the clients, drop
    the first f and the last f *clients*, by place, and return ONE number, the mean of all that is left, in every
    coordinate. There the attackers have the highest ids, so that they are dropped if f is their number. f = 0 leaves
    nothing and is refused.

    Tolerates: f <= (n-1)/2; with weights, bad rows that hold at most the share f/n of them. None in the broken variant.
    Cost: a sort of every column, O(d n log n).
    Constant: f/(n-2f), the best possible; with only q <= f bad rows f/(n-q-f) (exact). With weights, and honest rows
        of share w: (f/n)/(w-f/n), relative to the weighted honest mean and variance (proved). Infinite for the broken
        variant (exact: it moves equal rows).
    Peers: ByzFL the same; Blades and FLPoison subtract the extremes from the sum, which one huge value ruins; FLPoison
        trims a fixed share of 0.1 whatever the number of attackers.
    Reference: Yin, Chen, Kannan, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018.

    >>> TrimmedMean(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2.3333, 1.6667])
    """

    f: int
    weighted: bool = False
    cap: float | None = None
    variant: Literal["yin", "code-2021-05"] = "yin"

    added: ClassVar[tuple[str, ...]] = ("variant",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cap(self.name, self.weighted, self.cap)
        if self.variant not in ("yin", "code-2021-05"):
            raise ConfigError(f"TrimmedMean: variant must be 'yin' or 'code-2021-05', got {self.variant!r}")
        check_broken(self.name, self.variant, self.f)
        if self.weighted and self.variant in BROKEN:
            raise ConfigError(f"TrimmedMean: variant={self.variant!r} knows no weights; leave weighted out")

    def withstands(self, n: int) -> int:
        return 0 if self.variant in BROKEN else super().withstands(n)

    def without(self, excluded: int) -> Self:
        return super().without(min(excluded, self.f - 1) if self.variant in BROKEN else excluded)

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.variant in BROKEN:
            return (NO_PROMISE,)
        if self.weighted:
            return ()
        return (Constant(f / (n - q - f), "f/(n-q-f)", "exact"),)

    def finish(self, ordered: Any) -> Any:
        return trimmed_mean_of_sorted(self.f)(ordered)

    def _quick(self, rows: Updates) -> Aggregate | None:
        plain = not self.weighted and self.f > 0 and self.variant not in BROKEN
        return super()._quick(rows) if plain else None

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        if self.variant in BROKEN:
            return Aggregate(one_number(rows, torch.arange(self.f, len(rows) - self.f)))
        if self.f == 0 and not self.weighted:
            return Mean()._run(rows, state, context, generator)
        if not self.weighted or context.client_weights is None:
            return super()._run(rows, state, context, generator)
        shares, trim = self._trimming(rows, context.client_weights, context.claims)
        return Aggregate(reduce_columns(rows, lambda values: column_weighted_trimmed_mean(values, shares, trim)))

    def _trimming(self, rows: Updates, weights: Tensor, claims: tuple[Tensor, Tensor] | None) -> tuple[Tensor, float]:
        """Shares of the rows that remain [n], and how much of them is trimmed at each end.

        Excluded rows use up what they really held of the tolerated share.
        """
        if claims is None:
            return client_shares(weights.to(rows.device), self.cap), self.f / len(rows)
        before, kept = claims
        legal = torch.where((before >= 0) & (before < torch.inf), before, torch.zeros_like(before))
        shares = client_shares(legal.to(rows.device), self.cap)
        n = len(shares)
        tolerated = (self.f + n - len(kept)) / n
        left = shares[kept.to(rows.device)]
        remaining = float(left.sum())
        if 1 - remaining > tolerated + 1e-9:
            gone = sorted(set(range(n)) - set(kept.tolist()))
            raise HostileRowsError(
                f"TrimmedMean: rows {gone[:20]} are excluded and hold {1 - remaining:.3g} of all weight, more than the "
                f"tolerated share f/n = {tolerated:.3g}",
                tuple(gone),
            )
        return left / remaining, max(0.0, (tolerated - (1 - remaining)) / remaining)
