"""Gaussian noise instead of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Knowledge, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class Gaussian(UpdateAttack):
    r"""Untargeted: Gaussian noise of standard deviation ``sigma``, alone or around the honest mean.

    .. math:: u_i = c + \sigma z_i, \quad z_i \sim N(0, I), \quad c \in \{0, \bar x_S\}

    ``around`` says what c is: "zero" or "mean". Each attacker draws its own noise; with ``collude`` all send the same.

    Knows: nothing around "zero"; around "mean" every honest update of the round.
    Cost: q d normal numbers, and one weighted sum of the honest rows around "mean".
    Peers: ByzFL (one vector for all attackers), Blades (Noise) and FLPoison have it.
    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries, NeurIPS 2017.
    """

    sigma: float = 1.0
    around: Literal["zero", "mean"] = "zero"
    collude: bool = False

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ConfigError(f"gaussian: sigma must be a positive number, got {self.sigma}")
        if self.around not in ("zero", "mean"):
            raise ConfigError(f"gaussian: around must be 'zero' or 'mean', got {self.around!r}")

    @property
    def least(self) -> Knowledge:  # type: ignore[override]
        """Noise around zero asks for no knowledge."""
        return Knowledge.NONE if self.around == "zero" else Knowledge.OWN_DATA

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        vectors = []
        for sender in [0] if self.collude else context.clients.tolist():
            draws = generator(context.seed, "attack", context.round, sender)
            vectors.append(torch.randn(view.shape[1], generator=draws) * self.sigma)
        noise = torch.stack(vectors).to(view.device)
        if self.around == "mean":
            noise = noise.to(torch.promote_types(view.dtype, torch.float32)) + honest_mean(usable(view))
        return stack(view, noise.to(view.dtype), context.clients)
