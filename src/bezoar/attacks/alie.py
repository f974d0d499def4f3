"""A little is enough: hide a shift inside the spread of the honest updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import COLUMN_BYTES, Rule
from bezoar.attacks.base import AttackContext, UpdateAttack, honest_mean, stack, usable
from bezoar.errors import ConfigError
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked


def largest_hidden_shift(n: int, q: int) -> float:
    """The z at which q attackers among n clients still find s honest ones farther out, at least 0.

    >>> round(largest_hidden_shift(n=25, q=5), 5)
    0.25335
    """
    # Attackers in the majority need nobody's support; one supporter keeps z finite.
    supporters = max(1, n // 2 + 1 - q)
    share = (n - q - supporters) / (n - q)
    return NormalDist().inv_cdf(share) if share > 0.5 else 0.0


@dataclass(frozen=True)
class ALIE(UpdateAttack):
    r"""Untargeted: the honest mean, shifted by z standard deviations in every coordinate (a little is enough).

    .. math:: u = \bar x_S - z\,\sigma_S, \quad z = \max\Bigl(0, \Phi^{-1}\Bigl(\frac{n-q-s}{n-q}\Bigr)\Bigr), \quad
              s = \lfloor n/2 + 1 \rfloor - q

    with n clients in the round, q of them attackers, and sigma the standard deviation of the honest rows by
    coordinate, divided by (number of honest rows - 1) (ddof = 1; zero for a single row). Give ``z`` to set it by
    hand; for small cohorts the formula gives 0, and the attack then sends the honest mean. ``direction`` is the sign
    before z. All attackers send the same vector.

    Knows: every honest update of the round; with less, the attackers' own, from which they guess.
    Cost: one pass over the columns of the honest rows.
    Peers: ByzFL has z = 1.5 for all n and adds it; Blades and FLPoison take z from n and q, FLPoison with ddof = 0.
    Reference: Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning, NeurIPS
        2019.
    """

    z: float | None = None
    direction: Literal["minus", "plus"] = "minus"

    needs: ClassVar[Needs] = Needs.BLOCKS

    def __post_init__(self) -> None:
        if self.z is not None and not (self.z >= 0 and math.isfinite(self.z)):
            raise ConfigError(f"alie: z must be a number >= 0 (direction sets the sign), got {self.z}")
        if self.direction not in ("minus", "plus"):
            raise ConfigError(f"alie: direction must be 'minus' or 'plus', got {self.direction!r}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        z = largest_hidden_shift(context.cohort, len(context.clients)) if self.z is None else self.z
        honest = usable(view)
        if z == 0:
            return stack(view, honest_mean(honest)[None], context.clients)
        return stack(view, self._shifted(honest, -z if self.direction == "minus" else z)[None], context.clients)

    def _shifted(self, honest: Updates, z: float) -> Tensor:
        limit = torch.finfo(honest.dtype).max
        vector = torch.empty(honest.shape[1], dtype=honest.dtype, device=honest.device)
        for block in honest.share(COLUMN_BYTES):
            values = block.values.double()
            mean = values.mean(0)
            variance = (values - mean).square_().sum(0) / max(1, len(honest) - 1)
            vector[block.start : block.stop] = (mean + z * variance.sqrt()).clamp(-limit, limit).to(honest.dtype)
        return honest.spread.join(vector)
