"""The certificate for one value of k."""

from __future__ import annotations

from dataclasses import dataclass

from bezoar.experiments.certificates._bounds import March
from bezoar.experiments.certificates._covered import Server
from bezoar.experiments.certificates._facts import Fact
from bezoar.experiments.certificates._predictions import Predictions
from bezoar.experiments.certificates._search import Search


@dataclass(frozen=True, eq=False)
class Cell:
    """Radii are natural logarithms after every round, of l1 distances unless named l2.

    Attributes:
        facts: what holds for both runs.
        c: the constant used, None where growth is proved from the data.
        always: the recurrence with the loss rate that holds in every run; None where there is no recurrence.
        if_measured: the recurrence with the largest loss rate that was measured on both runs.
        convex: the l2 recurrence of convex losses.
        reach: how far any two clipped runs can lie apart.
        invalid: the paper's closed form, which is no bound.
        loss_rates: of the clean and the poisoned run, every round; empty if nothing was measured.
        distances: l1 and l2 distance of the two runs after every round, likewise.
        moved: l1 distance that the clean run's model went, None if nothing was measured.
    """

    server: Server
    facts: tuple[Fact, ...]
    c: float | None
    always: March | None
    if_measured: March | None
    convex: March | None
    reach: tuple[float, ...]
    invalid: float | None
    loss_rates: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    distances: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    moved: float | None = None
    predictions: Predictions | None = None
    search: Search | None = None

    @property
    def bound(self) -> tuple[float, ...]:
        """The l1 radius that holds whatever top-k leaves behind: the recurrence, or the reach where that is less.

        With an estimated constant the recurrence is no bound, and the reach is all there is.
        """
        if self.always is None or self.estimated:
            return self.reach
        return tuple(map(min, self.always.log_radius, self.reach))

    #: Whether c is only a lower estimate.
    estimated: bool = False
