"""Divide and conquer: rows that stand out along the direction of largest spread are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import HUGE, Aggregate, Context, Rule, State, check_count, draws
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class DnC(Rule):
    r"""Drop the rows that stand out most along the top direction of a random sample of coordinates.

    .. math:: s_i = \langle \tilde x_i - \bar{\tilde x}, v \rangle^2,\quad
        F(x) = \frac{1}{|K|} \sum_{i \in K} x_i,\quad K = \bigcap_{\text{iterations}}
        \{\text{the } n - \operatorname{round}(c f) \text{ rows of least } s_i\}

    where the rows :math:`\tilde x` hold ``columns`` coordinates drawn anew in every iteration and v is the top right
    singular vector of the centred sample, found through its n x n Gram matrix. If no row is kept in every
    iteration, those kept most often are averaged; so the answer is never empty. Ties go to the lowest row. With
    c f < 1/2 it is the mean.

    Tolerates: f <= (n-1)/2 with c f <= n-1; rows longer than 1e6 times the (f+1)-th longest are excluded before.
    Cost: the norms, and ``iterations`` samples of n x ``columns`` entries, O(iterations n^2 columns).
    Constant: none known.
    Peers: Blades samples 1e4 coordinates; FLPoison 20 % of them in 5 iterations; both decompose the whole sample.
    Reference: Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
        Federated Learning, NDSS 2021.

    >>> DnC(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    iterations: int = 1
    columns: int = 10000
    c: float = 1.0
    seed: int = 0
    needs: ClassVar[Needs] = Needs.NORMS | Needs.COLUMNS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "columns"):
            check_count(self.name, name, getattr(self, name), least=1)
        if not isinstance(self.c, int | float) or not math.isfinite(self.c) or self.c <= 0:
            raise ConfigError(f"DnC: c must be a positive number, got {self.c!r}")

    @property
    def huge(self) -> float | None:
        # One enormous row would own the top direction and hide all others behind it.
        return HUGE

    def largest_f(self, n: int) -> int:
        return min((n - 1) // 2, math.floor((n - 1) / self.c))

    def withstands(self, n: int) -> int:
        # A second bad row hides behind the first along the one direction that is looked at.
        return 0

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        n, d = rows.shape
        keep = n - math.floor(self.c * self.f + 0.5)
        source = draws(generator, self.seed, "dnc", context)
        times = torch.zeros(n, dtype=torch.int64, device=rows.device)
        scores = torch.zeros(n, dtype=torch.float64, device=rows.device)
        for _ in range(self.iterations):
            index = torch.randperm(d, generator=source, device=source.device)[: self.columns].sort().values
            found = _scores(rows.columns(index.to(rows.device)))
            times[torch.argsort(found, stable=True)[:keep]] += 1
            scores += found
        kept = times == times.max()
        weights = kept / kept.sum(dtype=torch.float64)
        why = "stands out along the direction of largest spread"
        excluded = dict.fromkeys((~kept).nonzero().flatten().tolist(), why)
        return Aggregate(rows.combine(weights), weights=weights, scores=scores, selected=kept, excluded=excluded)


def _scores(sample: Tensor) -> Tensor:
    """Squared lengths of the centred rows along their top right singular direction: float64 [n]."""
    # Subtracting a row first keeps the digits of rows that nearly coincide.
    values = sample.double() - sample[0].double()
    values -= values.mean(0)
    size = values.abs().max()
    if size == 0:
        return torch.zeros(len(values), dtype=torch.float64, device=values.device)
    values /= size
    spread, directions = torch.linalg.eigh(values @ values.T)
    scores: Tensor = spread[-1].clamp(min=0) * directions[:, -1].square() * size.square()
    return scores
