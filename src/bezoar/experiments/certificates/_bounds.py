"""From the facts of all rounds to certified radii."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.certify.error_feedback import Apart
from bezoar.certify.lipschitz import softmax_growth
from bezoar.certify.radius import (
    error_feedback_bound,
    grow_with_momentum,
    guaranteed_loss_rate,
    linear,
    log_reach,
    poison_bound,
    update_bound,
)
from bezoar.experiments.certificates._covered import Server
from bezoar.experiments.certificates._facts import Fact

#: Room for the rounding of float32 updates when asking whether clipping binds.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class March:
    """A recurrence as it went: natural logarithms of the radius after every round, and what it was made of."""

    log_radius: tuple[float, ...]
    growth: tuple[float, ...]
    rho: tuple[float, ...]
    gamma: float = 0.0

    @property
    def last(self) -> float:
        """The log-radius after the last round."""
        return self.log_radius[-1]


def clipped(fact: Fact, change: Tensor) -> Tensor:
    """Which clients' updates may be clipped (bool [n]) in a run whose updates differ by at most ``change`` [n], l2."""
    assert fact.regression is not None
    most = fact.regression.ceiling
    if fact.norms is not None:
        most = torch.minimum(most, fact.norms.to(most.device).double() + change)
    return most * (1 + _ROUNDING) > fact.radius


def march(facts: Sequence[Fact], server: Server, loss_rate: float, c: float | None) -> March | None:
    """The recurrence in the l1 norm; None where it does not hold.

    ``c`` is the coordinate-Lipschitz constant of the mean of clipped updates; None takes what is proved of softmax
    regression, clients that may be clipped apart.
    """
    if not server.recurrent:
        return None
    gamma = 0.0
    if server.sparse:
        gamma = error_feedback_bound(loss_rate, update_bound(max(f.radius for f in facts), server.d))
    known: dict[int, float] = {}

    def growth(fact: Fact, log_radius: float) -> float:
        if c is not None:
            return server.width * c
        assert fact.regression is not None
        if id(fact.regression) not in known:
            known[id(fact.regression)] = softmax_growth(fact.regression.products, server.width)
        return known[id(fact.regression)] + _clipped_growth(
            fact, fact.regression.mixed, log_radius, math.sqrt(server.width)
        )

    def force(fact: Fact) -> float:
        return poison_bound(fact.attackers, fact.cohort, fact.radius, server.width, fact.honest)

    return _march(facts, growth, force, gamma, server.momentum)


def convex(facts: Sequence[Fact], server: Server) -> March | None:
    """The recurrence in the l2 norm, where gradient steps do not drive models apart; None where it does not hold.

    It holds whatever top-k leaves behind. What was not measured of the clean run is bounded by the clipping radius.
    """
    if server.momentum or facts[0].regression is None:
        return None
    kept = math.sqrt(guaranteed_loss_rate(server.k, server.d)) if server.sparse else 0.0
    state, memory = Apart(), 0.0
    radii, growths, rhos = [], [], []
    for fact, following in zip(facts, [*facts[1:], facts[-1]], strict=True):
        found = fact.regression
        assert found is not None
        growths.append(_clipped_growth(fact, found.own, state.distance(fact.lr), 1.0))
        rhos.append(poison_bound(fact.attackers, fact.cohort, fact.radius, 1, fact.honest))
        update = fact.radius if fact.update is None else fact.update * (1 + _ROUNDING)
        memory = kept * (memory + update) if fact.memory is None else fact.memory * (1 + _ROUNDING)
        state = state.after(fact.lr, found.smoothness, growths[-1], rhos[-1], kept, fact.radius, update, memory)
        radii.append(state.distance(fact.lr))
        state = state.at(fact.lr, following.lr)
    return March(tuple(radii), tuple(growths), tuple(rhos))


def _clipped_growth(fact: Fact, per_unit: Tensor, log_radius: float, factor: float) -> float:
    radius = linear(log_radius)
    # Nothing moves by an infinite amount times zero.
    change = per_unit * radius if math.isfinite(radius) else torch.full_like(per_unit, math.inf)
    may = clipped(fact, change)
    return factor * float(per_unit[may].sum()) / fact.cohort


def _march(
    facts: Sequence[Fact],
    growth: Callable[[Fact, float], float],
    force: Callable[[Fact], float],
    gamma: float,
    momentum: float,
) -> March:
    radius, held = -math.inf, -math.inf
    radii, growths, rhos = [], [], []
    for fact in facts:
        growths.append(growth(fact, radius))
        rhos.append(force(fact))
        radius, held = grow_with_momentum(radius, held, fact.lr, growths[-1], rhos[-1] + 2 * gamma, momentum)
        radii.append(radius)
    return March(tuple(radii), tuple(growths), tuple(rhos), gamma)


def reach(facts: Sequence[Fact], server: Server) -> tuple[float, ...]:
    """How far two runs with clipped updates can lie apart at all, l1, natural logarithms."""
    update = update_bound(max(fact.radius for fact in facts), server.d, server.momentum)
    rate = guaranteed_loss_rate(server.k, server.d) if server.sparse else 0.0
    return log_reach([fact.lr for fact in facts], rate, update)
