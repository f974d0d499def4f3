"""LFighter: label flippers betray themselves in the last layer's weights of two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._features import last_matrix, row_cosines
from bezoar.aggregation.base import COLUMN_BYTES, HUGE, Aggregate, Context, Rule, State
from bezoar.updates.base import Needs, Segment, Updates

#: Steps of Lloyd's algorithm; it ends when no row changes its cluster.
STEPS = 100


@dataclass(frozen=True)
class LFighter(Rule):
    r"""Cluster the last layer's rows of the two classes that move most into two; average the better cluster's clients.

    .. math:: F(x) = \frac{1}{|K|} \sum_{i \in K} x_i,\quad
        K = \arg\max_{C \in \{C_1, C_2\}} \frac{|C|}{n} \Big( 1 - \frac{1}{|C|} \sum_{i \in C}
        \min_{j \in C} \cos(z_i, z_j) [i \ne j] \Big)

    A class moves by the norms of its weights plus the absolute values of its biases, summed over clients; z_i holds
    client i's weights of the two classes that move most (of all, if there are at most two). As in the authors'
    code, a row's own similarity counts as 0, so a cluster without opposing members scores by its size alone, and a
    diverse one (honest clients) more than a uniform one (flippers that share a goal): recalled, unverified. The
    2-means start from the two rows farthest apart, where the authors draw random starts; ties go to the lowest row.
    The last layer is the last matrix [classes, inputs] of the layout, with the bias that follows it, if any. If all
    z_i are equal, everybody is kept.

    Tolerates: f < n/2 label flippers (heuristic); rows longer than 1e6 times the usual are excluded before.
    Cost: one pass over the columns, O(n d), and n x n distances of the two classes' weights.
    Constant: none known.
    Peers: ByzFL, Blades and FLPoison lack it.
    Reference: Jebreel, Domingo-Ferrer, Sánchez, Blanco-Justicia: LFighter: Defending against the Label-flipping Attack
        in Federated Learning, Neural Networks 2024.

    >>> flip = {"weight": torch.tensor([[-2.0, 0.0], [2.0, 0.0]])}
    >>> good = [{"weight": torch.tensor([[1.0, a], [-1.0, -a]])} for a in (0.5, 0.0, -0.5)]
    >>> LFighter().aggregate([*good, flip, flip]).selected
    tensor([ True,  True,  True, False, False])
    """

    needs: ClassVar[Needs] = Needs.NORMS | Needs.COLUMNS | Needs.BLOCKS | Needs.LAYOUT

    @property
    def huge(self) -> float | None:
        # One enormous row would choose the classes to look at.
        return HUGE

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        weight, bias = last_matrix(rows.layout, self.name)
        classes, inputs = weight.shape
        chosen = torch.arange(classes)
        if classes > 2:
            chosen = torch.argsort(_movement(rows, weight, bias), descending=True, stable=True)[:2].sort().values.cpu()
        index = weight.start + (chosen[:, None] * inputs + torch.arange(inputs)).flatten()
        moves = rows.columns(index.to(rows.device)).double()
        kept = _better_cluster(moves / moves.abs().max()) if moves.any() else moves.new_ones(len(moves)).bool()
        weights = kept / kept.sum(dtype=torch.float64)
        excluded = dict.fromkeys((~kept).nonzero().flatten().tolist(), "in the worse cluster of the last layer")
        return Aggregate(rows.combine(weights), weights=weights, selected=kept, excluded=excluded)


def _movement(rows: Updates, weight: Segment, bias: Segment | None) -> Tensor:
    """How far every class moves, summed over clients: float64 [classes]."""
    classes, inputs = weight.shape
    squares = torch.zeros(len(rows), classes, dtype=torch.float64, device=rows.device)
    for block in rows.share(COLUMN_BYTES):
        start, stop = max(block.start, weight.start), min(block.stop, weight.stop)
        at = start
        while at < stop:
            of = (at - weight.start) // inputs
            end = min(stop, weight.start + (of + 1) * inputs)
            part = block.values[:, at - block.start : end - block.start]
            squares[:, of] += torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).square()
            at = end
    moved = rows.spread.total(squares).sqrt().sum(0)
    if bias is not None:
        biases = rows.columns(torch.arange(bias.start, bias.stop, device=rows.device))
        moved += biases.double().abs().sum(0)
    return moved


def _better_cluster(points: Tensor) -> Tensor:
    """Which of ``points`` [n, k] are in the 2-means cluster with the higher score: bool [n]."""
    n = len(points)
    gaps = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    first, second = divmod(int(gaps.argmax()), n)
    # Rows that agree but for rounding have nothing to be told apart by.
    if gaps[first, second] <= 1e-12:
        return torch.ones(n, dtype=torch.bool, device=points.device)
    member = gaps[:, first] <= gaps[:, second]
    for _ in range(STEPS):
        centres = torch.stack([points[member].mean(0), points[~member].mean(0)])
        distance = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        moved = distance[:, 0] <= distance[:, 1]
        if torch.equal(moved, member) or moved.all() or not moved.any():
            break
        member = moved
    score, other = _score(points[member], n), _score(points[~member], n)
    return member if score > other or (score == other and bool(member[0])) else ~member


def _score(points: Tensor, n: int) -> float:
    similar = row_cosines(points).fill_diagonal_(0.0)
    return len(points) / n * (1 - float(similar.amin(1).mean()))
