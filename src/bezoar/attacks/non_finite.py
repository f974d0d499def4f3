"""What is no number, or nearly none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Knowledge, UpdateAttack, stack
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked

_VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


@dataclass(frozen=True)
class NonFinite(UpdateAttack):
    r"""Untargeted: updates of NaN, of infinities, or of numbers so large that sums and squares of them overflow.

    .. math:: u_j = v, \quad v \in \{\mathrm{NaN}, \infty, -\infty, \max\}

    ``value`` is v; "overflow" is the largest finite number of the updates' type. ``where`` is "all" coordinates, or
    "one" that each attacker draws every round; the others are then zero. Rules here leave out what is not finite and
    count it among the f; a round in which there is more of it is skipped.

    Knows: nothing.
    Cost: none.
    Peers: ByzFL's Inf; none of ByzFL, Blades and FLPoison sends NaN.
    Reference: none.
    """

    least: ClassVar[Knowledge] = Knowledge.NONE

    value: Literal["nan", "inf", "-inf", "overflow"] = "nan"
    where: Literal["all", "one"] = "all"

    def __post_init__(self) -> None:
        if self.value not in (*_VALUES, "overflow"):
            raise ConfigError(f"non-finite: value must be 'nan', 'inf', '-inf' or 'overflow', got {self.value!r}")
        if self.where not in ("all", "one"):
            raise ConfigError(f"non-finite: where must be 'all' or 'one', got {self.where!r}")

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        d, value = view.shape[1], _VALUES.get(self.value, torch.finfo(view.dtype).max)
        if self.where == "all":
            vectors = torch.full((1, d), value, dtype=view.dtype, device=view.device)
            return stack(view, vectors, context.clients)
        vectors = torch.zeros(len(context.clients), d, dtype=view.dtype, device=view.device)
        for row, client in zip(vectors, context.clients.tolist(), strict=True):
            draws = generator(context.seed, "attack", context.round, client)
            row[torch.randint(d, (), generator=draws)] = value
        return stack(view, vectors, context.clients)
