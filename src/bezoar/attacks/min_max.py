"""Min-Max: as far from the honest mean as the two honest updates that are farthest apart allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks._directions import Direction, Spread, check_direction, spread
from bezoar.attacks.base import AttackContext, Sent, UpdateAttack, honest_mean, stack, usable
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class MinMax(UpdateAttack):
    r"""Untargeted: leave the honest mean until the farthest honest update is as far as honest updates are apart.

    .. math:: u = \bar x_S - \gamma p, \quad \gamma = \max\Bigl\{\gamma :
              \max_{i \in S} \|x_i - u\|^2 \le D := \max_{i, j \in S} \|x_i - x_j\|^2\Bigr\}
              = \min_i \frac{-y_i \cdot p + \sqrt{(y_i \cdot p)^2 - \|p\|^2 (\|y_i\|^2 - D)}}{\|p\|^2}

    with :math:`y_i = x_i - \bar x_S`; every row allows gamma up to the root of a quadratic, so that no search is
    needed. p is the ``direction``: "unit" the mean over its norm, "sign" the signs of the mean, "std" the standard
    deviations by coordinate (ddof 1). All attackers send the same vector; the record tells ``gamma``.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one Gram matrix, O(n^2 d), and one pass over the columns.
    Peers: Blades has it for "std" with gamma of at most 5, FLPoison for the unit vector; both search by halving.
    Reference: Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
        Federated Learning, NDSS 2021.

    >>> from bezoar.attacks import ATTACKS
    >>> ATTACKS.build("min-max")(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0]]))
    tensor([1.4189, 1.4189])
    """

    direction: Direction = "unit"

    needs: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS

    def __post_init__(self) -> None:
        check_direction("min-max", self.direction)

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        honest = usable(view)
        if not honest.finite().all():
            return Sent(stack(view, honest_mean(honest)[None], context.clients), context.state)
        about = spread(honest, self.direction)
        distance = farthest(about, float(honest.squared_distances().max()))
        rows = stack(view, about.shifted(distance, view.dtype)[None], context.clients)
        return Sent(rows, context.state, {"gamma": about.gamma(distance)})


def farthest(about: Spread, bound: float) -> float:
    """The largest way against the direction that keeps all rows within the squared distance ``bound``."""
    along = about.along
    left = (bound - about.squared).clamp(min=0)
    root = (along.square() + left).sqrt()
    # The form of the root that does not subtract what is nearly equal.
    ways = torch.where(along > 0, left / (along + root).clamp(min=1e-300), root - along)
    return float(ways.min())
