"""Label flipping: honest training on wrong labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bezoar.attacks.base import AttackContext, Batch, DataAttack, Poisoned
from bezoar.errors import ConfigError
from bezoar.seeding import generator


@dataclass(frozen=True)
class LabelFlip(DataAttack):
    r"""Attackers train honestly on flipped labels.

    ``mode="static"`` maps y to C - 1 - y, ``"next"`` to (y + 1) mod C, ``"random"`` to a uniformly random wrong class
    (drawn anew every round).
    """

    mode: Literal["static", "next", "random"] = "static"

    def __post_init__(self) -> None:
        if self.mode not in ("static", "next", "random"):
            raise ConfigError(f"label-flip: mode must be 'static', 'next' or 'random', got {self.mode!r}")

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        draws = generator(context.seed, "attack", context.round)
        return Poisoned(replace(batch, targets=self.labels(batch.targets, context.classes, draws)))

    def labels(self, targets: Tensor, classes: int, draws: torch.Generator) -> Tensor:
        """Flipped labels for the true labels ``targets`` [N]."""
        if self.mode == "static":
            return classes - 1 - targets
        if self.mode == "next":
            return (targets + 1) % classes
        return wrong_labels(targets, classes, draws)


def wrong_labels(targets: Tensor, classes: int, draws: torch.Generator) -> Tensor:
    """A uniformly random wrong class for every target [N]."""
    shift = torch.randint(1, classes, targets.shape, generator=draws).to(targets.device)
    return (targets + shift) % classes
