"""Multi-Krum: the mean of the updates that have the closest company."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bezoar.aggregation._gram import mask, uniform
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State
from bezoar.aggregation.krum import Variant, check_variant, krum_scores, largest_krum_f
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class MultiKrum(Rule):
    r"""The mean of the m updates with the least sum of squared distances to their nearest others.

    .. math:: \frac1m \sum_{i \in M} x_i,\quad M = \text{the } m \text{ rows of least } s(i)
        = \sum_{j \in N_i} \|x_i - x_j\|^2,\quad |N_i| = n - f - 2

    m is n-f unless given; with m = 1 it is Krum. Rows are scored once, not again after each pick. The variants are
    those of Krum: they differ in the number of neighbours that count. Ties go to the lowest row.

    Tolerates: f <= (n-3)/2 ("blanchard", and "code-2021-05" if f <= n-5), (n-1)/2 ("byzfl"). "sparsefed" accepts
        f <= n-4 but withstands no more than (n-3)/2 bad rows: with a larger f so few others count that as many copies
        of one row win.
    Cost: one Gram matrix, O(n^2 d).
    Constant: 4f/(n-2f) for "byzfl" with m = n-f, unverified (consistent with numerical search); none known otherwise.
    Peers: ByzFL has m = n-f and counts n-f-1 others (variant "byzfl"); Blades sums fourth powers and picks one row
        unless told; FLPoison averages a share of 0.2 of the rows, whatever f.
    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries, NeurIPS 2017.

    >>> import torch
    >>> MultiKrum(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    m: int | None = None
    variant: Variant = "blanchard"
    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variant(self.name, self.variant)
        if self.m is not None and (isinstance(self.m, bool) or not isinstance(self.m, int) or self.m < 1):
            raise ConfigError(f"MultiKrum: m must be a whole number >= 1 or None for n-f, got {self.m!r}")

    def largest_f(self, n: int) -> int:
        return largest_krum_f(n, self.variant)

    def check(self, n: int) -> None:
        super().check(n)
        if self.m is not None and self.m > n - self.f:
            raise ConfigError(
                f"MultiKrum: m={self.m} rows can not all be honest with n={n} and f={self.f}; "
                f"m must be between 1 and {n - self.f}"
            )

    def withstands(self, n: int) -> int:
        known = super().withstands(n) if self.m is None else max(min(super().withstands(n), n - self.m), 0)
        # With a larger f than this the bad rows alone are company enough for each other.
        return min(known, (n - 3) // 2) if self.variant == "sparsefed" else known

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.variant != "byzfl" or (self.m is not None and self.m != n - f) or 2 * f >= n:
            return ()
        return (Constant(4 * f / (n - 2 * f), "4f/(n-2f)", "unverified"),)

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        scores = krum_scores(rows.squared_distances(), self.f, self.variant)
        n = len(scores)
        chosen: Tensor = scores.sort(stable=True).indices[: n - self.f if self.m is None else self.m]
        weights = uniform(n, chosen)
        return Aggregate(rows.combine(weights), weights=weights, scores=scores, selected=mask(n, chosen))
