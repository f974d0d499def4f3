"""The honest mean with the opposite sign."""

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
class SignFlip(UpdateAttack):
    r"""Untargeted: the mean of the honest updates with the opposite sign.

    .. math:: u = -c\,\bar x_S

    ``scale`` is c. All attackers send the same vector; they know every honest update of the round. Cost: one weighted
    sum of the honest rows. The same vector as ``ipm`` with epsilon = c, under the name and the default of ByzFL's
    SignFlipping.

    >>> from bezoar.attacks import ATTACKS
    >>> ATTACKS.build("sign-flip")
    SignFlip(scale=1.0)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"sign-flip: scale must be a positive number, got {self.scale}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        mean = honest_mean(usable(view))
        return stack(view, torch.mul(mean, -self.scale)[None], context.clients)
