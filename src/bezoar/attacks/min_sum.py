"""Min-Sum: as far from the honest mean as the most central honest update is in sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bezoar.aggregation.base import Rule
from bezoar.attacks._directions import Direction, check_direction, spread
from bezoar.attacks.base import AttackContext, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class MinSum(UpdateAttack):
    r"""Untargeted: leave the honest mean until the sum of squared distances is that of the most central honest update.

    .. math:: u = \bar x_S - \gamma p, \quad \gamma = \max\Bigl\{\gamma :
              \sum_{i \in S} \|x_i - u\|^2 \le \min_{i \in S} \sum_{j \in S} \|x_i - x_j\|^2\Bigr\}
              = \min_{i \in S} \|x_i - \bar x_S\| \,/\, \|p\|

    The closed form: both sums are :math:`\sum_j \|x_j - \bar x_S\|^2` plus |S| times the squared distance from the
    mean. So gamma is 0 if an honest update is the mean. p is the ``direction``: "unit" the mean over its norm, "sign"
    the signs of the mean, "std" the standard deviations by coordinate (ddof 1). All attackers send the same vector;
    the record tells ``gamma``.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one pass over the columns, O(n d).
    Peers: FLPoison for the unit vector; it searches by halving.
    Reference: Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
        Federated Learning, NDSS 2021.

    >>> import torch
    >>> MinSum()(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [0.0, 0.0]])).norm()
    tensor(0.)
    """

    direction: Direction = "unit"

    needs: ClassVar[Needs] = Needs.BLOCKS

    def __post_init__(self) -> None:
        check_direction("min-sum", self.direction)

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest = usable(view)
        if not honest.finite().all():
            return Sent(stack(view, honest_mean(honest)[None], context.clients), context.state)
        about = spread(honest, self.direction)
        distance = float(about.squared.min().sqrt())
        rows = stack(view, about.shifted(distance, view.dtype)[None], context.clients)
        return Sent(rows, context.state, {"gamma": about.gamma(distance)})
