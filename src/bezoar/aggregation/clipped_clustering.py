"""Clipped clustering: rows clipped to the usual norm, and the larger of two clusters of directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation._features import cosine_distances, median
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.aggregation.clip import clip_factors
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class ClippedClustering(Rule):
    r"""Average the larger of two clusters of directions, clipped to the median of all norms seen so far.

    .. math:: F(x) = \frac{1}{|K|} \sum_{i \in K} x_i \min(1, \tau / \|x_i\|),\quad
        \tau = \operatorname{med} \{\|x_i^s\| : s \le t\}

    K is the larger cluster of an agglomerative clustering of the cosine distances into two (the one with the lowest
    row if both are equally large). With n <= 2 neither is a majority and all rows are kept. The norms of the last
    ``history`` rows are remembered, with ``history`` = 0 only those of this round count.

    Tolerates: f < n/2 (heuristic).
    Cost: one Gram matrix and a clustering of n points, O(n^2 d).
    Constant: none known; the answer is never longer than the median norm.
    Peers: Blades the same with an unbounded history, a cap of 1e5 on tau and clipping in place; FLPoison has a
        clustering without clipping.
    Reference: Li, Ngai, Voigt: An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning,
        IEEE Transactions on Big Data 2023.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    >>> ClippedClustering().aggregate(x).selected
    tensor([ True,  True,  True,  True, False])
    """

    linkage: Literal["average", "complete", "single"] = "average"
    history: int = 10000
    needs: ClassVar[Needs] = Needs.NORMS | Needs.GRAM

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linkage not in ("average", "complete", "single"):
            raise ConfigError(
                f"ClippedClustering: linkage must be 'average', 'complete' or 'single', not {self.linkage!r}"
            )
        if isinstance(self.history, bool) or not isinstance(self.history, int) or self.history < 0:
            raise ConfigError(f"ClippedClustering: history must be a whole number >= 0, got {self.history!r}")

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        norms = rows.squared_norms().sqrt()
        seen = norms.cpu()
        past = state.get("norms", seen[:0])
        seen = torch.cat([past, seen])[-max(self.history, len(seen)) :]
        kept = self._larger_cluster(cosine_distances(rows)).to(rows.device)
        weights = kept * clip_factors(norms, float(median(seen))) / kept.sum(dtype=torch.float64)
        why = "in the smaller cluster of directions"
        excluded = dict.fromkeys((~kept).nonzero().flatten().tolist(), why)
        remembered = {"norms": seen[len(seen) - min(self.history, len(seen)) :]}
        return Aggregate(rows.combine(weights), remembered, weights=weights, selected=kept, excluded=excluded)

    def _larger_cluster(self, distances: Tensor) -> Tensor:
        n = len(distances)
        if n <= 2:
            return torch.ones(n, dtype=torch.bool)
        # Importing scikit-learn takes most of a second.
        from sklearn.cluster import AgglomerativeClustering

        clustering = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=self.linkage)
        labels = torch.from_numpy(clustering.fit(distances.cpu().numpy()).labels_)
        with_first = labels == labels[0]
        return with_first if 2 * int(with_first.sum()) >= n else ~with_first
