"""Krum: the one update that has the closest company."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from bezoar.aggregation.base import Constant, Weighting
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates

Variant = Literal["blanchard", "byzfl", "sparsefed", "code-2021-05"]

#: How many rows of n - f do not count as neighbours, by variant; the authors' code of SparseFed ignores f.
_FEWER: dict[str, int] = {"blanchard": 2, "byzfl": 1, "sparsefed": 3}

#: Variants that add up distances, not their squares.
_UNSQUARED = ("sparsefed", "code-2021-05")


def check_variant(owner: str, variant: str) -> None:
    """Raise unless ``variant`` is one of Krum's."""
    if variant not in get_args(Variant):
        names = ", ".join(map(repr, get_args(Variant)))
        raise ConfigError(f"{owner}: variant must be one of {names}, got {variant!r}")


def largest_krum_f(n: int, variant: Variant) -> int:
    """The largest f that n rows allow."""
    if variant == "code-2021-05":
        # Five rows are needed, also when f of them are excluded.
        return min((n - 3) // 2, n - 5)
    return {"blanchard": (n - 3) // 2, "byzfl": (n - 1) // 2, "sparsefed": n - 4}[variant]


def krum_scores(distances: Tensor, f: int, variant: Variant) -> Tensor:
    """Krum's score of every row [n] from squared ``distances`` [n, n]: the sum over its nearest others."""
    n = len(distances)
    if variant in _UNSQUARED:
        distances = distances.sqrt()
    count = n - 4 if variant == "code-2021-05" else n - f - _FEWER[variant]
    alone = torch.eye(n, dtype=torch.bool, device=distances.device)
    nearest = distances.masked_fill(alone, torch.inf).sort(dim=1).values[:, :count]
    return nearest.sum(1)


@dataclass(frozen=True)
class Krum(Weighting):
    r"""The update with the least sum of squared distances to its nearest others.

    .. math:: x_{i^*},\quad i^* = \arg\min_i \sum_{j \in N_i} \|x_i - x_j\|^2,\quad |N_i| = n - f - 2

    Variants: ``"blanchard"`` counts n-f-2 others and needs n >= 2f+3; ``"byzfl"`` counts n-f-1 others and needs
    n >= 2f+1; ``"sparsefed"`` counts n-f-3 others, unsquared, and needs n >= f+4 (Panda et al., Algorithm 8, as it is
    printed); ``"code-2021-05"`` counts n-4 others, unsquared, whatever f is, and needs n >= 5 (the code of the same
    authors, all revisions). Ties go to the lowest row.

    Tolerates: f <= (n-3)/2 ("blanchard", and "code-2021-05" if f <= n-5), (n-1)/2 ("byzfl"). "sparsefed" accepts
        f <= n-4 but withstands no more than (n-3)/2 bad rows: with a larger f so few others count that as many copies
        of one row win.
    Cost: one Gram matrix, O(n^2 d).
    Constant: 6 (1 + f/(n-2f)), published for "byzfl"; none known for the others.
    Peers: ByzFL counts n-f-1 others (variant "byzfl"); Blades sums fourth powers over n-f-2; FLPoison sums unsquared
        distances over n-f-1.
    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries, NeurIPS 2017.

    >>> Krum(f=1)(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
    tensor([2., 2.])
    """

    f: int
    variant: Variant = "blanchard"
    needs: ClassVar[Needs] = Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variant(self.name, self.variant)

    def largest_f(self, n: int) -> int:
        return largest_krum_f(n, self.variant)

    def withstands(self, n: int) -> int:
        if self.variant == "code-2021-05":
            return (n - 3) // 2 if n >= 5 else 0
        # With a larger f than this the bad rows alone are company enough for each other.
        known = super().withstands(n)
        return min(known, (n - 3) // 2) if self.variant == "sparsefed" else known

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        if self.variant != "byzfl":
            return ()
        return (Constant(6 * (1 + f / (n - 2 * f)), "6 (1 + f/(n-2f))", "published"),)

    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        scores = krum_scores(rows.squared_distances(), self.f, self.variant)
        chosen = (scores == scores.min()).nonzero()[0]
        weights = torch.zeros_like(scores)
        weights[chosen] = 1.0
        return weights, scores
