"""FLTrust: clients are trusted as far as they agree with the server's own update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bezoar.aggregation.base import Aggregate, Context, Rule, State, Sums
from bezoar.updates.base import Needs, Updates


@dataclass(frozen=True)
class FLTrust(Rule):
    r"""Average of the rows, brought to the length of the server's update and weighted by their cosine with it.

    .. math:: F(x) = \frac{1}{\sum_j TS_j} \sum_i TS_i \frac{\|g_0\|}{\|x_i\|} x_i,\quad
        TS_i = \operatorname{ReLU}(\cos(x_i, g_0))

    ``Context.root_gradient`` is g_0, the update of a server that trains on a small data set of its own. If no
    client agrees with it (all TS_i are zero), the answer is g_0. A row of zeros has cosine 0, and so has one so short
    that the factor that lengthens it is no number of the updates' type.

    Tolerates: any number of bad rows, as far as the server's data can be trusted.
    Sums: one, of s_i = TS_i (|g_0| / |x_i|) x_i and of TS_i, if the server makes g_0 public; clients would have to
        prove that 0 <= TS_i <= 1 and that s_i has length TS_i |g_0| and product TS_i^2 |g_0|^2 with g_0.
    Cost: norms and one product with a vector, O(n d).
    Constant: none known; the answer is never longer than g_0.
    Peers: FLPoison has it; ByzFL and Blades do not.
    Reference: Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021.

    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]])
    >>> FLTrust()(x, context=Context(root_gradient=torch.tensor([1.0, 1.0])))
    tensor([0.9750, 0.9750])
    """

    needs: ClassVar[Needs] = Needs.NORMS | Needs.DOT
    uses_root: ClassVar[bool] = True
    sums: ClassVar[Sums | None] = Sums.ONE
    spare: ClassVar[bool] = True

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        assert context.root_gradient is not None
        root = context.root_gradient.detach().to(rows.device)
        largest = root.double().abs().max()
        unit = root.double() / largest if largest > 0 else torch.zeros_like(root, dtype=torch.float64)
        length = torch.linalg.vector_norm(unit)
        norms = rows.squared_norms().sqrt()
        along = rows.dot(unit / length) / norms if largest > 0 else torch.zeros_like(norms)
        trust = along.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(0.0, 1.0)
        factors = torch.where(trust > 0, length * largest / norms, torch.zeros_like(norms))
        wide = rows.dtype if rows.dtype == torch.float64 else torch.float32
        trust = torch.where(factors <= torch.finfo(wide).max, trust, torch.zeros_like(trust))
        total = trust.sum()
        if total == 0:
            none = torch.zeros_like(trust)
            return Aggregate(root.to(rows.dtype, copy=True), weights=none, scores=trust, selected=none.bool())
        weights = torch.where(trust > 0, trust / total * factors, torch.zeros_like(trust))
        return Aggregate(rows.combine(weights), weights=weights, scores=trust, selected=trust > 0)
