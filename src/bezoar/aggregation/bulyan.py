"""Bulyan: pick rows by Krum again and again, then look at every coordinate of the picked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from bezoar.aggregation._broken import BROKEN, NO_PROMISE, check_broken, one_number
from bezoar.aggregation._gram import mask
from bezoar.aggregation.base import Aggregate, Constant, Context, Rule, State, reduce_sorted
from bezoar.aggregation.krum import krum_scores
from bezoar.errors import ConfigError
from bezoar.kernels.columns import mean_around_median, trimmed_mean_of_sorted
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class Bulyan(Rule):
    r"""Pick n-2f rows by iterated Krum, then average the values nearest the median of every coordinate.

    .. math:: [F(x)]_j = \frac{1}{\theta - 2f} \sum_{i \in M_j} [x_i]_j,\quad \theta = n - 2f,\quad
        |M_j| = \theta - 2f \text{ values nearest the median of the } \theta \text{ picked}

    With r rows left, Krum counts max(1, r-f-2) nearest others; where that is one (last picks with f <= 2), rows nearest
    to each other always tie. Ties go to the lowest row, and of two values at the same
    distance below and above the median to the lower one. ``variant="sparsefed"`` is what Panda et al. print: Krum as
    their Algorithm 8 has it (the r-f-3 nearest others, unsquared; where that is none, the lowest row), and the trimmed
    mean of the picked, f values off each end; their code of 2021-08 does the same. With f = 0 both are the mean.

    Two variants are broken, for reproduction only: ``"code-2021-05"`` and ``"code-2021-06"`` are what two earlier
    revisions of that code run. They pick by the r-4 (r-f-3) nearest others, unsquared, put the picked rows into the
    order of their picks, drop the first f and the last f of these *rows*, and return ONE number, the mean of all that
    is left, in every coordinate. f = 0 leaves nothing there and is refused.

    Tolerates: f <= (n-3)/4.
    Cost: one Gram matrix, O(n^2 d), n-2f picks of O(n^2) and a sort of every column.
    Constant: none known; infinite for the broken variants (exact: they move equal rows).
    Peers: ByzFL and Blades have none; FLPoison picks by shrunken indices and averages all n-2f picked.
    Reference: El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018.

    >>> Bulyan(f=1)(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [100.0]]))
    tensor([3.])
    """

    f: int
    variant: Literal["el-mhamdi", "sparsefed", "code-2021-05", "code-2021-06"] = "el-mhamdi"
    needs: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("el-mhamdi", "sparsefed", *BROKEN)
        if self.variant not in known:
            raise ConfigError(f"Bulyan: variant must be one of {', '.join(map(repr, known))}, got {self.variant!r}")
        check_broken("Bulyan", self.variant, self.f)

    def largest_f(self, n: int) -> int:
        return (n - 3) // 4

    def withstands(self, n: int) -> int:
        return 0 if self.variant in BROKEN else super().withstands(n)

    def without(self, excluded: int) -> Self:
        return super().without(min(excluded, self.f - 1) if self.variant in BROKEN else excluded)

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        return (NO_PROMISE,) if self.variant in BROKEN else ()

    def _run(self, rows: Updates, state: State, context: Context, generator: object) -> Aggregate:
        n, f = len(rows), self.f
        distances = rows.squared_distances()
        plain = self.variant == "el-mhamdi"
        fewer = {"el-mhamdi": f + 2, "code-2021-05": 4}.get(self.variant, f + 3)
        order = picks(distances if plain else distances.sqrt(), fewer, n - 2 * f, least=int(plain))
        places = torch.tensor(order, device=distances.device)
        chosen = places.sort().values
        if self.variant in BROKEN:
            vector = one_number(rows, places[f : len(places) - f])
        elif plain:
            vector = reduce_sorted(rows, mean_around_median(n - 4 * f), chosen)
        else:
            vector = reduce_sorted(rows, trimmed_mean_of_sorted(f), chosen)
        scores = krum_scores(distances, f, "blanchard")
        return Aggregate(vector, scores=scores, selected=mask(n, chosen))


def picks(distances: Tensor, fewer: int, count: int, least: int = 1) -> list[int]:
    """The first ``count`` rows that Krum picks from those left, in the order of the picks.

    With r rows left the nearest r - ``fewer`` others count, but at least as many as ``least`` says (0 or 1); where none
    counts, all rows tie and the lowest is picked.

    Distances are sorted once. ``reach`` is the place of every row's farthest counted neighbour in its own order; a
    pick takes one neighbour out of every row's sum, either the picked row or the farthest, and only the entries that
    count are ever added up: nothing is subtracted, so huge neighbours leave no rounding behind.
    """
    n = len(distances)
    every = torch.arange(n, device=distances.device)
    order = distances.clone().fill_diagonal_(torch.inf).sort(dim=1, stable=True).indices[:, : n - 1]
    place = torch.full((n, n), n, device=distances.device).scatter_(
        1, order, torch.arange(n - 1, device=distances.device).expand(n, n - 1)
    )
    left = torch.ones(n, dtype=torch.bool, device=distances.device)
    reach = torch.full((n,), n - fewer - 1, device=distances.device)
    counted = torch.where(place <= reach[:, None], distances, torch.zeros_like(distances))
    picked: list[int] = []
    for r in range(n, n - count, -1):
        if r > fewer:
            scores = counted.sum(1)
        elif r > 1 and least:
            scores = distances.masked_fill(~left, torch.inf).fill_diagonal_(torch.inf).min(1).values
        else:
            scores = torch.zeros_like(distances[0])
        pick = int(scores.masked_fill(~left, torch.inf).argmin())
        picked.append(pick)
        left[pick] = False
        if r > fewer + 1:
            inside = place[:, pick] <= reach
            counted[every, torch.where(inside, pick, order[every, reach.clamp(min=0)])] = 0.0
            reach = reach - (~inside).long()
            while (gone := left.logical_not()[order[every, reach.clamp(min=0)]] & (reach >= 0)).any():
                reach = reach - gone.long()
    return picked
