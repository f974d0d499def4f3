"""SignGuard: rows of usual length whose shares of positive, zero and negative entries are usual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation._features import median
from bezoar.aggregation.base import COLUMN_BYTES, Aggregate, Context, Rule, State, draws
from bezoar.aggregation.clip import clip_factors
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates

#: Signs are counted on at least this many coordinates, or on all: fewer say little.
FEWEST = 100

#: Radius and least company of a core point in DBSCAN.
DBSCAN_RADIUS, DBSCAN_COMPANY = 0.05, 3


@dataclass(frozen=True)
class SignGuard(Rule):
    r"""Average the rows that pass a filter of norms and a clustering of sign statistics, clipped to the median norm.

    .. math:: F(x) = \frac{1}{|K|} \sum_{i \in K} x_i \min(1, M / \|x_i\|),\quad M = \operatorname{med}_i \|x_i\|,\quad
        K = \{i : L \le \|x_i\| / M \le R\} \cap C

    C is the largest cluster (first row wins ties) of the shares of positive, zero and negative entries on a random
    ``share`` of the coordinates, of at least 100 (or all, if there are fewer). ``"meanshift"`` takes as bandwidth the
    mean over the rows of the distance to the floor(n/2)-th nearest row, itself counted as the first, at least one
    entry's share; ``"dbscan"`` a radius of 0.05 and 3 rows for a core point. Bandwidth, radius and company
    are recalled from the authors' code: unverified. If no cluster is found, C is all rows; if C holds no row of
    usual norm, the rows of usual norm are averaged, and if there are none either, all: never an empty set.

    Tolerates: f < n/2 (heuristic).
    Cost: the norms and one pass over the columns, O(n d).
    Constant: none known; the answer is never longer than the median norm.
    Peers: Blades clusters with k-means; FLPoison's crashes on NumPy 2; both sample 10 % of the coordinates.
    Reference: Xu, Huang, Song, Lan: Byzantine-robust Federated Learning through Collaborative Malicious Gradient
        Filtering, ICDCS 2022.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    >>> SignGuard().aggregate(x).selected
    tensor([ True,  True,  True,  True, False])
    """

    low: float = 0.1
    high: float = 3.0
    share: float = 0.1
    clustering: Literal["meanshift", "dbscan"] = "meanshift"
    seed: int = 0
    needs: ClassVar[Needs] = Needs.NORMS | Needs.BLOCKS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.low, int | float) and isinstance(self.high, int | float)):
            raise ConfigError(f"SignGuard: low and high must be numbers, got {self.low!r} and {self.high!r}")
        if not 0 <= self.low <= 1 <= self.high or math.isnan(self.high):
            raise ConfigError(f"SignGuard: 0 <= low <= 1 <= high must hold, got low={self.low}, high={self.high}")
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise ConfigError(f"SignGuard: share must be in (0, 1], got {self.share!r}")
        if self.clustering not in ("meanshift", "dbscan"):
            raise ConfigError(f"SignGuard: clustering must be 'meanshift' or 'dbscan', got {self.clustering!r}")

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        norms = rows.squared_norms().sqrt()
        typical = median(norms)
        usual = (norms >= self.low * typical) & (norms <= self.high * typical)
        statistics, counted = self._signs(rows, draws(generator, self.seed, "signguard", context))
        common = self._largest_cluster(statistics, counted).to(rows.device)
        kept = usual & common
        if not kept.any():
            kept = usual if usual.any() else torch.ones_like(usual)
        weights = kept * clip_factors(norms, typical) / kept.sum(dtype=torch.float64)
        excluded = {
            row: "unusual signs" if usual[row] else "unusual norm" for row in (~kept).nonzero().flatten().tolist()
        }
        return Aggregate(rows.combine(weights), weights=weights, selected=kept, excluded=excluded)

    def _signs(self, rows: Updates, source: torch.Generator) -> tuple[Tensor, int]:
        """Shares of positive, zero and negative entries [n, 3] on a sample, and the size of the sample."""
        n, d = rows.shape
        counted = min(d, max(math.ceil(self.share * d), FEWEST))
        index = torch.randperm(d, generator=source, device=source.device)[:counted].sort().values.to(rows.device)
        counts = torch.zeros(n, 2, dtype=torch.float64, device=rows.device)
        for block in rows.share(COLUMN_BYTES):
            inside = index[(index >= block.start) & (index < block.stop)] - block.start
            values = block.values[:, inside]
            counts[:, 0] += (values > 0).sum(1)
            counts[:, 1] += (values < 0).sum(1)
        positive, negative = rows.spread.total(counts).T
        return torch.stack([positive, counted - positive - negative, negative], dim=1) / counted, counted

    def _largest_cluster(self, statistics: Tensor, counted: int) -> Tensor:
        n = len(statistics)
        points = statistics.cpu().numpy()
        # Importing scikit-learn takes most of a second.
        from sklearn.cluster import DBSCAN, MeanShift

        if self.clustering == "dbscan":
            labels = DBSCAN(eps=DBSCAN_RADIUS, min_samples=DBSCAN_COMPANY).fit(points).labels_
        else:
            gaps = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)
            bandwidth = max(float(gaps[:, max(n // 2, 1) - 1].mean()), 1.0 / counted)
            labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(points).labels_
        names, first, sizes = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
        if len(names) == 0:
            return torch.ones(n, dtype=torch.bool)
        return torch.from_numpy(labels == names[np.lexsort((first, -sizes))[0]])
