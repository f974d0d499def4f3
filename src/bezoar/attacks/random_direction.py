"""Untargeted Byzantine noise on the clipping sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Knowledge, UpdateAttack, stack
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class RandomDirection(UpdateAttack):
    r"""Untargeted: a random direction of length L.

    .. math:: u = L\, z / \|z\|, \quad z \sim N(0, I)

    L is ``radius``, by default the defence's clipping radius, without clipping ``scale`` times the largest honest
    norm. Colluding attackers send the same vector.

    Knows: nothing if ``radius`` is given; else the clipping radius, if there is one and it is known, and otherwise the
        norms of the honest updates, or of the attackers' own.
    Cost: one vector of normal numbers, or one for every attacker.
    Peers: none of ByzFL, Blades and FLPoison scales its noise to the defence.
    Reference: Panda et al.: SparseFed, AISTATS 2022, whose threat is any update on the clipping sphere.
    """

    radius: float | None = None
    scale: float = 10.0
    collude: bool = True

    def __post_init__(self) -> None:
        if self.radius is not None and not self.radius > 0:
            raise ConfigError(f"random-direction: radius must be positive, got {self.radius}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"random-direction: scale must be a positive number, got {self.scale}")

    @property
    def least(self) -> Knowledge:  # type: ignore[override]
        """Without a radius of its own it measures updates."""
        return Knowledge.OWN_DATA if self.radius is None else Knowledge.NONE

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        radius = context.radius if self.radius is None else self.radius
        if radius == float("inf"):
            norms = view.squared_norms()
            finite = norms[torch.isfinite(norms)]
            radius = self.scale * float(finite.max().sqrt() if len(finite) else 1.0)
        limit = min(torch.finfo(view.dtype).max, torch.finfo(torch.float32).max)
        vectors = []
        for sender in [0] if self.collude else context.clients.tolist():
            noise = torch.randn(view.shape[1], generator=generator(context.seed, "attack", context.round, sender))
            vectors.append((noise * (radius / noise.norm())).clamp(-limit, limit).to(view.device, view.dtype))
        return stack(view, torch.stack(vectors), context.clients)
