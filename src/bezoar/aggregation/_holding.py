"""Rules that ask other rules for an answer, and go on from it."""

from __future__ import annotations

import dataclasses
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.updates.base import Needs


@dataclass(frozen=True)
class Holding(Rule, ABC):
    """A rule with other rules as fields: what they ask of updates and server, it asks."""

    #: What the rule asks of updates for itself.
    wants: ClassVar[Needs] = Needs.NONE

    @property
    def held(self) -> tuple[Rule, ...]:
        """The rules in its fields."""
        values = (getattr(self, spec.name) for spec in dataclasses.fields(self))
        return tuple(value for value in values if isinstance(value, Rule))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        total = self.wants
        for rule in self.held:
            total |= rule.needs
        return total

    @property
    def uses_root(self) -> bool:  # type: ignore[override]
        return any(rule.uses_root for rule in self.held)

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        return any(rule.weighted for rule in self.held)


def for_rest(rule: Rule, kept: Tensor, n: int) -> Rule:
    """``rule`` for the rows ``kept`` [m] of n, of which more may be gone than its f, which then becomes 0."""
    short = 0 if rule.tolerated is None else max(0, n - len(kept) - rule.tolerated)
    return (rule.without(-short) if short else rule).within(kept, n)
