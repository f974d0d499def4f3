"""The longest update that a filter of norms lets pass, against those it lets pass with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked

#: How much shorter than the honest update that is left out, so that rounding does not decide.
_MARGIN = 1e-4


@dataclass(frozen=True)
class AntiCGE(UpdateAttack):
    r"""Untargeted: against comparative gradient elimination, which drops the f longest updates and adds up the others.

    .. math:: u = -r\, \frac{\sum_{i \in K} x_i}{\|\sum_{i \in K} x_i\|}, \quad
              r = (1 - 10^{-4})\, \text{the } f\text{-th largest } \|x_i\|, \quad
              K = S \setminus \{\text{the } f \text{ longest}\}

    f honest updates are longer, so that all attackers survive and as many honest ones are dropped; their direction is
    the opposite of what the honest survivors K add up to. ``f`` is what the filter drops (None: the number of
    attackers), at most the number of honest updates; if that leaves no K, the sum goes over all. The attack works
    against whatever bounds norms by those of the honest updates, ARC for example.

    Knows: every honest update of the round, and f.
    Cost: the norms and one weighted sum of the honest rows.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: the filter is Gupta, Liu, Vaidya: Byzantine Fault-Tolerant Distributed Machine Learning with Norm-Based
        Comparative Gradient Elimination, DSN-W 2021.
    """

    f: int | None = None

    needs: ClassVar[Needs] = Needs.NORMS

    def __post_init__(self) -> None:
        if self.f is not None and self.f < 1:
            raise ConfigError(f"anti-cge: f must be at least 1 (None: the number of attackers), got {self.f}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest = usable(view)
        order = honest.squared_norms().sort(stable=True)
        dropped = min(len(honest), len(context.clients) if self.f is None else self.f)
        kept = order.indices[: len(honest) - dropped]
        margin = max(_MARGIN, 4 * torch.finfo(view.dtype).eps)
        norm = float(order.values[len(honest) - dropped].sqrt()) * (1 - margin)
        total = honest_mean(honest.select(kept.sort().values) if len(kept) else honest).double()
        length = total.norm()
        limit = torch.finfo(view.dtype).max
        vector = (total * (-norm / length) if length > 0 else total).clamp(-limit, limit)
        return Sent(stack(view, vector.to(view.dtype)[None], context.clients), context.state, {"norm": norm})
