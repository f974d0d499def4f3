"""FLAME: the majority cluster by direction, clipped to the median norm, plus noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._features import cosine_distances, median
from bezoar.aggregation.base import Aggregate, Context, Rule, State, draws
from bezoar.aggregation.clip import clip_factors
from bezoar.errors import ConfigError
from bezoar.kernels.gram import wide_type
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class FLAME(Rule):
    r"""Average the majority cluster of directions, clipped to the median norm, and add Gaussian noise.

    .. math:: F(x) = \frac{1}{|A|} \sum_{i \in A} x_i \min(1, S / \|x_i\|) + \mathcal N(0, (\lambda S)^2 I),\quad
        S = \operatorname{med}_i \|x_i\|

    A is the cluster that HDBSCAN finds in the cosine distances with a minimal size of floor(n/2) + 1, one sample
    per core point and a single cluster allowed: in effect the first connected majority as the distance grows. So at
    most one cluster exists, and if HDBSCAN should name none, all rows are admitted. With n <= 2 there is nothing to
    cluster. S is the median over all rows, ``noise`` is lambda. The diagnostics ``weights`` describe the answer before
    the noise.

    Tolerates: f < n/2.
    Cost: one Gram matrix and a clustering of n points, O(n^2 d).
    Constant: none known (a bound on backdoors through the noise, in the manner of differential privacy, is the
        authors').
    Peers: FLPoison has it; ByzFL and Blades lack it.
    Reference: Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni,
        Koushanfar, Sadeghi, Schneider: FLAME: Taming Backdoors in Federated Learning, USENIX Security 2022.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    >>> FLAME(noise=0.0).aggregate(x).selected
    tensor([ True,  True,  True,  True, False])
    """

    noise: float = 0.001
    seed: int = 0
    needs: ClassVar[Needs] = Needs.NORMS | Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.noise, int | float) or not math.isfinite(self.noise) or self.noise < 0:
            raise ConfigError(f"FLAME: noise must be a number >= 0, got {self.noise!r}")

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        admitted = majority_cluster(cosine_distances(rows)).to(rows.device)
        norms = rows.squared_norms().sqrt()
        typical = median(norms)
        weights = admitted * clip_factors(norms, typical) / admitted.sum(dtype=torch.float64)
        vector = rows.combine(weights)
        if self.noise > 0:
            source = draws(generator, self.seed, "flame", context)
            wide = wide_type(vector.dtype)
            draw = torch.randn(vector.shape, generator=source, dtype=wide, device=source.device).to(vector.device)
            vector = (vector.to(wide) + draw * (self.noise * typical).to(wide)).to(vector.dtype)
        why = "not in the majority cluster of directions"
        excluded = dict.fromkeys((~admitted).nonzero().flatten().tolist(), why)
        return Aggregate(
            vector, weights=weights, selected=admitted, excluded=excluded, noise=self.noise * float(typical)
        )


def majority_cluster(distances: Tensor) -> Tensor:
    """Which rows are in the cluster of more than half of them, by ``distances`` [n, n]: bool [n], never none."""
    n = len(distances)
    if n <= 2:
        return torch.ones(n, dtype=torch.bool)
    # Importing scikit-learn takes most of a second.
    from sklearn.cluster import HDBSCAN

    clustering = HDBSCAN(
        metric="precomputed", min_cluster_size=n // 2 + 1, min_samples=1, allow_single_cluster=True, copy=True
    )
    member = torch.from_numpy(clustering.fit(distances.cpu().numpy()).labels_ >= 0)
    return member if member.any() else torch.ones_like(member)
