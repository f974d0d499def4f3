"""Inner product manipulation: turn the aggregate against the honest mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class InnerProduct(UpdateAttack):
    r"""Untargeted: a small multiple of the honest mean, backwards (inner product manipulation, Fall of Empires).

    .. math:: u = -\varepsilon\,\bar x_S

    Short rows pass filters by norm and distance. The plain mean of n rows, q of them bad, is reversed if and only if
    epsilon > (n - q) / q. All attackers send the same vector.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one weighted sum of the honest rows.
    Peers: ByzFL (epsilon 2), Blades (1) and FLPoison (0.1).
    Reference: Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation, UAI
        2019.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ConfigError(f"ipm: epsilon must be a positive number, got {self.epsilon}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        mean, limit = honest_mean(usable(view)), torch.finfo(view.dtype).max
        vector = torch.mul(mean, -self.epsilon)
        # Honest rows that are all infinite stay so; finite ones must not become it.
        vector = torch.where(torch.isfinite(mean), vector.clamp(-limit, limit), vector)
        return stack(view, vector[None], context.clients)
