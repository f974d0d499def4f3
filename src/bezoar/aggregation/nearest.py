"""The mean of the updates nearest to one that can be relied on: a trusted row, or another rule's answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.aggregation._gram import (
    distances_from_sum,
    distances_from_vector,
    mask,
    rounding,
    typical_row,
    uniform,
)
from bezoar.aggregation._holding import Holding
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State, check_count
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.kernels.gram import products_about
from bezoar.updates.base import Needs, Updates


def _mean_of_nearest(rows: Updates, distances: Tensor, count: int) -> Aggregate:
    """The mean of the ``count`` rows of least squared ``distances`` [n], ties up to rounding to the lowest."""
    last = distances.sort().values[count - 1]
    tied = (distances - last).abs() <= rounding(rows.dtype) * last
    # Surely nearer rows first, then the tied ones in their order.
    chosen = (tied.double() + 2 * ((distances > last) & ~tied)).sort(stable=True).indices[:count].sort().values
    weights = uniform(len(rows), chosen)
    return Aggregate(rows.combine(weights), weights=weights, scores=distances, selected=mask(len(rows), chosen))


@dataclass(frozen=True)
class MoNNA(Rule):
    r"""The mean of the n-f updates nearest to a trusted one.

    .. math:: F(x) = \frac{1}{n-f} \sum_{i \in N} x_i,\quad
        N = \text{the } n-f \text{ rows nearest to } x_{\text{trusted}} \text{, itself included}

    ``trusted`` is the index of a row that is surely honest, in the decentralised setting one's own. If that row is
    unusable there is no answer, but an error. Ties go to the lowest row. The scores are the squared distances from
    the trusted row. With f = 0 it is the mean.

    Tolerates: f <= (n-1)/2, if the trusted row is honest; nothing otherwise.
    Cost: one Gram matrix, O(n^2 d), of which one row is used.
    Constant: none over all S; for every S that holds the trusted row, 4f (n-f+1)/(n-f), proved.
    Peers: ByzFL trusts row 0 unless told otherwise; Blades and FLPoison have none.
    Reference: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan: Robust Collaborative Learning with Linear Gradient
        Overhead, ICML 2023.

    >>> MoNNA(f=1, trusted=0)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    trusted: int
    needs: ClassVar[Needs] = Needs.GRAM
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.name, "trusted", self.trusted)

    def check(self, n: int) -> None:
        super().check(n)
        if self.trusted >= n:
            raise ConfigError(
                f"MoNNA: trusted={self.trusted} is no row of n={n}; it must be between 0 and {n - 1}",
            )

    def within(self, kept: Tensor, n: int) -> Self:
        place = (kept == self.trusted).nonzero().flatten().tolist()
        if not place:
            raise HostileRowsError(
                f"MoNNA: the trusted row {self.trusted} of {n} is not finite, malformed or far too long",
                (self.trusted,),
            )
        return dataclasses.replace(super().within(kept, n), trusted=place[0])

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        return _mean_of_nearest(rows, rows.squared_distances()[self.trusted], len(rows) - self.f)


@dataclass(frozen=True)
class CVA(Holding):
    r"""The mean of the n-f updates nearest to another rule's answer.

    .. math:: F(x) = \frac{1}{n-f} \sum_{i \in N} x_i,\quad N = \text{the } n-f \text{ rows nearest to } P(x)

    ``pivot`` is that rule P, the geometric median unless given: it needs no more than the Gram matrix and is neither
    tied to the axes nor moved far by one row. Any rule or pipeline will do; its memory is kept. Ties go to the lowest
    row. The scores are the squared distances from the pivot. With f = 0 it is the mean.

    Tolerates: f <= (n-1)/2, and no more than the pivot.
    Cost: that of the pivot and n inner products, O(n d).
    Constant: 4f/(n-f) (1 + kappa) with the pivot's kappa, proved from it.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: the closest-vectors average; MoNNA (Farhadkhani et al., ICML 2023) with a computed vector to rely on.

    >>> CVA(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    pivot: Rule = field(default_factory=GeometricMedian)
    wants: ClassVar[Needs] = Needs.NORMS | Needs.DOT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pivot, Rule):
            raise ConfigError(f"CVA: pivot must be a rule, for example GeometricMedian(), got {self.pivot!r}")

    @property
    def by_client(self) -> bool:  # type: ignore[override]
        return self.pivot.by_client

    @property
    def huge(self) -> float | None:
        return self.pivot.huge

    @property
    def tolerated(self) -> int | None:
        return self.f if self.pivot.tolerated is None else min(self.f, self.pivot.tolerated)

    def check(self, n: int) -> None:
        top = self.largest_f(n)
        if self.f > top:
            raise ConfigError(f"CVA: f={self.f} is out of range for n={n} rows; f must be between 0 and {top}")
        self.pivot.check(n)

    def without(self, excluded: int) -> Self:
        return dataclasses.replace(self, f=self.f - excluded, pivot=self.pivot.without(excluded))

    def within(self, kept: Tensor, n: int) -> Self:
        return dataclasses.replace(self, f=self.f - (n - len(kept)), pivot=self.pivot.within(kept, n))

    def withstands(self, n: int) -> int:
        return min((n - 1) // 2, self.largest_f(n), self.pivot.withstands(n))

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        # Not the f asked for, which is the smaller one of rule and pivot: this many rows are left out.
        own, declared = self.f, self.pivot.tolerated
        if q > own or (declared is not None and q > declared):
            return ()
        return tuple(
            Constant(
                4 * own / (n - own) * (1 + known.value) if own else 0.0,
                f"4f/(n-f) (1 + kappa), f = {own}, kappa = {known.formula}",
                "proved" if known.source == "exact" else known.source,
            )
            for known in self.pivot.constants(n, own if declared is None else declared, q)
        )

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        answer = self.pivot._run(rows, state, context, generator)
        if isinstance(self.pivot, GeometricMedian) and answer.weights is not None:
            # A weighted sum of rows whose distances are known: the data need not be read again.
            known = rows.squared_distances()
            distances = distances_from_sum(products_about(known, typical_row(known)), answer.weights)
        else:
            distances = distances_from_vector(rows, answer.vector)
        nearest = _mean_of_nearest(rows, distances, len(rows) - self.f)
        return dataclasses.replace(nearest, state=answer.state)
