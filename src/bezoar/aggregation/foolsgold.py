"""FoolsGold: clients whose histories point the same way count as sybils of one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation._features import Features, check_features, check_memory, features, merge, row_cosines, widen
from bezoar.aggregation.base import Aggregate, Context, Rule, State
from bezoar.updates.base import Needs, Updates

#: Of the authors' code: keeps maxima positive and logarithms finite.
EPSILON = 1e-5


@dataclass(frozen=True)
class FoolsGold(Rule):
    r"""Weigh down clients whose summed updates of all rounds so far are similar to those of another client.

    .. math:: c_{ij} = \cos(H_i, H_j),\quad H_i = \sum_t x_i^t,\quad m_i = \max_{j \ne i} c_{ij},\quad
        c_{ij} \leftarrow c_{ij} \frac{m_i}{m_j} \text{ if } m_i < m_j,\quad a_i = 1 - \max_j c_{ij}

    a is clipped to [0, 1] and divided by its maximum, 1 becomes 0.99, and the weight is ln(a / (1 - a)) + 1/2,
    clipped to [0, 1]. Only clients of the same round are compared. If no a exceeds 1e-5 or every weight is zero,
    nobody can be told from anybody and all count alike. ``normalise`` divides by the sum of the weights, so that the
    answer is an average of updates; without it the answer is the plain weighted sum of the paper, up to n times as
    long.

    The history keeps, for every client ever seen, a seeded random projection of its sum to ``size`` numbers (float64;
    a cosine is then off by about 1/sqrt(size), copies stay copies), the columns of the last layer, or everything
    (``features``); beyond ``memory`` bytes it is refused.

    Tolerates: any number of sybils but at least two: a lone attacker passes, and honest clients with equal data count
        as sybils.
    Cost: one pass over the columns and O(n^2 size).
    Constant: none known.
    Peers: FLPoison sums over the whole history of full updates; ByzFL and Blades lack it.
    Reference: Fung, Yoon, Beschastnikh: The Limitations of Federated Learning in Sybil Settings, RAID 2020.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    >>> FoolsGold().aggregate(x).weights
    tensor([0., 0., 0., 0., 1.], dtype=torch.float64)
    """

    features: Features = "projection"
    size: int = 1024
    normalise: bool = True
    memory: int = 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_features(self.name, self.features, self.size, self.memory)

    by_client: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.LAYOUT | Needs.COLUMNS if self.features == "last-layer" else Needs.BLOCKS

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        present = rows.clients.cpu()
        clients, old, here = merge(state.get("clients", present[:0]), present)
        if self.features == "full":
            check_memory(self.name, len(clients), rows.shape[1], self.memory)
        new = features(rows, self.features, self.size, self.seed, self.name).cpu()
        check_memory(self.name, len(clients), new.shape[1], self.memory)
        history = widen(state.get("history"), len(clients), old, new.shape[1]).index_add_(0, here, new)
        similar = row_cosines(history[here]).fill_diagonal_(0.0)
        weights = foolsgold_weights(similar)
        if self.normalise:
            weights = weights / weights.sum()
        weights = weights.to(rows.device)
        return Aggregate(
            rows.combine(weights),
            {"clients": clients, "history": history},
            weights=weights,
            scores=similar.amax(1).to(rows.device),
        )


def foolsgold_weights(similar: Tensor) -> Tensor:
    """Weights [n] in [0, 1] from cosine similarities [n, n] with a zero diagonal; 1/n each if all would be zero."""
    n = len(similar)
    most = similar.amax(1) + EPSILON
    pardoned = torch.where(most[:, None] < most, similar * (most[:, None] / most), similar)
    unlike = (1 - pardoned.amax(1)).clamp(0.0, 1.0)
    if unlike.max() <= EPSILON:
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device=similar.device)
    unlike = unlike / unlike.max()
    unlike = unlike.masked_fill(unlike == 1, 0.99)
    weights = (torch.log(unlike / (1 - unlike) + EPSILON) + 0.5).clamp(0.0, 1.0)
    return weights if weights.sum() > 0 else torch.full_like(weights, 1.0 / n)
