"""The opposite of the honest mean, or of one's own update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import PlainSerializer
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class SignFlip(UpdateAttack):
    r"""Untargeted: an update with the opposite sign: the honest mean, or each attacker's own.

    .. math:: u = -c\,\bar x_S \quad\text{("mean")}, \qquad u_i = -c\, x_i \quad\text{("own")}

    ``scale`` is c. With the ``variant`` "mean" all attackers send the same vector, that of ``ipm`` with epsilon = c,
    under the name and the default of ByzFL's SignFlipping. With "own" each trains as an honest client would and sends
    what it got with the other sign (also known as bit flipping).

    Knows: "mean" every honest update of the round; "own" nothing but its own samples.
    Cost: "mean" one weighted sum of the honest rows; "own" honest training.
    Peers: ByzFL has "mean", Blades "own"; FLPoison's SignFlipping.
    Reference: Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed
        Learning from Heterogeneous Datasets, AAAI 2019.

    >>> from bezoar.attacks import ATTACKS
    >>> ATTACKS.build("sign-flip")
    SignFlip(scale=1.0, variant='mean')
    """

    scale: float = 1.0
    # Left out of tables at its default: experiments from before it existed keep their hashes.
    variant: Annotated[
        Literal["mean", "own"], PlainSerializer(lambda variant: None if variant == "mean" else variant)
    ] = "mean"

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"sign-flip: scale must be a positive number, got {self.scale}")
        if self.variant not in ("mean", "own"):
            raise ConfigError(f"sign-flip: variant must be 'mean' or 'own', got {self.variant!r}")

    @property
    def uses_own(self) -> bool:  # type: ignore[override]
        """Reversing one's own update needs it."""
        return self.variant == "own"

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        vectors = self._own(context) if self.variant == "own" else honest_mean(usable(view))[None]
        return stack(view, torch.mul(vectors, -self.scale), context.clients)

    def _own(self, context: AttackContext) -> Tensor:
        own = context.own_rows
        if own is None or not torch.equal(own.clients.cpu(), context.clients.cpu()):
            raise ConfigError(
                "sign-flip: variant 'own' needs AttackContext.own_rows, one row for each of AttackContext.clients"
            )
        return own.materialise()
