"""Bucketing: random small groups of updates are averaged before a rule looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Constant, Context, Mixing, Sums, check_count, draws
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class Bucketing(Mixing):
    r"""Shuffle the updates and average every s consecutive ones.

    .. math:: y_b = \frac{1}{|B_b|} \sum_{i \in B_b} x_{\pi(i)},\quad B_b = \{s(b-1)+1, \dots, \min(sb, n)\}

    ceil(n/s) rows come out, the last from a smaller bucket if s does not divide n. A bad row spoils one bucket, so f
    bad rows spoil at most f: give the rule that follows the same f; it is checked against the number of buckets.
    The permutation comes from the caller's generator, else from ``seed`` and the round.

    Tolerates: f bad rows if the rule that follows tolerates f of ceil(n/s).
    Sums: of groups of s clients, drawn anew every round; every rule can follow. A client hides among s, not among n;
        who is left over, n mod s clients, among fewer: s must divide n lest one be alone.
    Cost: O(n); no bucket is ever stored.
    Constant: (kappa + 1 - a)/a with a = (n - sq)/(n-q), proved for s that divides n after a rule with kappa for n/s
        rows; none known otherwise. That is for the worst permutation: what bucketing gains, it gains on average.
    Peers: ByzFL has it; FLPoison as a wrapper that loses half of the clients; Blades has none.
    Reference: Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.

    >>> import torch
    >>> Bucketing(s=4)(torch.tensor([[1.0], [2.0], [3.0], [6.0]]))
    tensor([[3.]])
    """

    s: int = 2
    seed: int = 0
    needs: ClassVar[Needs] = Needs.NONE
    regroups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.name, "s", self.s)
        if self.s == 0:
            raise ConfigError("Bucketing: s must be at least 1, got 0")

    @property
    def sums(self) -> Sums | None:  # type: ignore[override]
        # The sum of a group of one is an update.
        return Sums.GROUPS if self.s > 1 else None

    def rows_out(self, n: int) -> int:
        return -(-n // self.s)

    def constants(self, inner: Constant, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if n % self.s or n <= self.s * q:
            return ()
        share = (n - self.s * q) / (n - q)
        source = "proved" if inner.source == "exact" else inner.source
        formula = f"(kappa + 1 - a)/a, a = (n-sq)/(n-q), kappa of n/s rows = {inner.formula}"
        return (Constant((inner.value + 1 - share) / share, formula, source),)

    def matrix(self, rows: Updates, context: Context, generator: torch.Generator | None) -> Tensor:
        n = len(rows)
        source = draws(generator, self.seed, "bucketing", context)
        order = torch.randperm(n, generator=source, device=source.device).to(rows.device)
        bucket = torch.arange(n, device=rows.device) // self.s
        matrix = torch.zeros(self.rows_out(n), n, dtype=torch.float64, device=rows.device)
        matrix[bucket, order] = 1.0
        return matrix / matrix.sum(1, keepdim=True)
