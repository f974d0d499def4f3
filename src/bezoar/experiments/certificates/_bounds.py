"""From the facts of all rounds to certified radii."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from bezoar.certify.error_feedback import Apart, log, log_sum
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

#: Roundings that a sum, a product or a function in a gradient takes beside those of its terms.
_FEW = 20.0


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
    gamma, width = 0.0, math.sqrt(server.width)
    if server.sparse:
        gamma = error_feedback_bound(loss_rate, update_bound(max(f.radius for f in facts), server.d))

    def growth(fact: Fact, log_radius: float) -> float:
        if c is not None:
            return server.width * c
        assert fact.regression is not None
        return fact.regression.growth + _clipped_growth(fact, fact.regression.mixed, log_radius, width)

    radius, held, begun = -math.inf, -math.inf, False
    radii, growths, rhos = [], [], []
    for fact, length in zip(facts, _lengths(facts, server), strict=True):
        begun = begun or fact.attackers > 0
        growths.append(growth(fact, radius))
        rhos.append(poison_bound(fact.attackers, fact.cohort, fact.radius, server.width, fact.honest))
        noise, more = _noise(fact, length) if begun else (0.0, 0.0)
        force = rhos[-1] + 2 * gamma + 4 * fact.unit * gamma + width * noise
        radius, held = grow_with_momentum(radius, held, fact.lr, growths[-1] + width * more, force, server.momentum)
        if begun:
            radius = log_sum(radius, *_stored(fact, width * length, radius))
        radii.append(radius)
    return March(tuple(radii), tuple(growths), tuple(rhos), gamma)


def convex(facts: Sequence[Fact], server: Server) -> March | None:
    """The recurrence in the l2 norm, where gradient steps do not drive models apart; None where it does not hold.

    It holds whatever top-k leaves behind. What was not measured of the clean run is bounded by the clipping radius.
    """
    if server.momentum or facts[0].regression is None:
        return None
    kept = math.sqrt(guaranteed_loss_rate(server.k, server.d)) if server.sparse else 0.0
    state, memory, begun = Apart(), 0.0, False
    radii, growths, rhos = [], [], []
    following = [*facts[1:], facts[-1]]
    for fact, after, length in zip(facts, following, _lengths(facts, server), strict=True):
        found = fact.regression
        assert found is not None
        begun = begun or fact.attackers > 0
        growths.append(_clipped_growth(fact, found.own, state.distance(fact.lr), 1.0))
        rhos.append(poison_bound(fact.attackers, fact.cohort, fact.radius, 1, fact.honest))
        update = fact.radius if fact.update is None else fact.update * (1 + _ROUNDING)
        memory = kept * (memory + update) if fact.memory is None else fact.memory * (1 + _ROUNDING)
        noise, more = _noise(fact, length) if begun else (0.0, 0.0)
        force = rhos[-1] + noise + 4 * fact.unit * linear(state.gap)
        longest, remains = fact.radius * (1 + _ROUNDING), kept * (1 + 4 * fact.unit)
        state = state.after(fact.lr, found.smoothness, growths[-1] + more, force, remains, longest, update, memory)
        if begun:
            state = state.shaken(*_stored(fact, length, state.distance(fact.lr)))
        radii.append(state.distance(fact.lr))
        state = state.at(fact.lr, after.lr)
    return March(tuple(radii), tuple(growths), tuple(rhos))


def _clipped_growth(fact: Fact, per_unit: Tensor, log_radius: float, factor: float) -> float:
    radius = linear(log_radius)
    # Nothing moves by an infinite amount times zero.
    change = per_unit * radius if math.isfinite(radius) else torch.full_like(per_unit, math.inf)
    may = clipped(fact, change)
    return factor * float(per_unit[may].sum()) / fact.cohort


def _lengths(facts: Sequence[Fact], server: Server, measured: bool = True) -> Iterator[float]:
    """The clean model's l2 norm after every round, as measured; else a bound, which the poisoned model keeps, too."""
    kept = math.sqrt(guaranteed_loss_rate(server.k, server.d)) if server.sparse else 0.0
    step = max(fact.radius for fact in facts) / ((1 - server.momentum) * (1 - kept))
    longest = facts[0].start
    for fact in facts:
        longest += fact.lr * step * (1 + _ROUNDING)
        yield fact.length if measured and fact.length is not None else longest


def _noise(fact: Fact, length: float) -> tuple[float, float]:
    """What rounding may do to both runs' updates, l2, and how much more of it per unit of the models' distance.

    Sums of N terms are taken to err by sqrt(N) and a few roundings (docs/certificates.md).
    """
    terms, logits = _FEW, 0.0
    if fact.regression is not None:
        terms += math.sqrt(fact.regression.samples)
        logits = (_FEW + math.sqrt(fact.regression.features)) * float(fact.regression.own.mean())
    longest = max(fact.start, length)
    return fact.unit * 2 * (terms * fact.radius + logits * longest), fact.unit * logits


def _stored(fact: Fact, length: float, log_radius: float) -> tuple[float, float]:
    """Logarithms whose sum bounds what storing both models rounds off: one is ``length`` long, the other near it."""
    return log(2 * fact.unit * length), log(fact.unit) + log_radius


def reach(facts: Sequence[Fact], server: Server) -> tuple[float, ...]:
    """How far two runs with clipped updates can lie apart at all, l1, natural logarithms."""
    update = update_bound(max(fact.radius for fact in facts), server.d, server.momentum)
    rate = guaranteed_loss_rate(server.k, server.d) if server.sparse else 0.0
    grown = log_reach([fact.lr for fact in facts], rate, update * (1 + _ROUNDING))
    lengths = _lengths(facts, server, measured=False)
    lost = accumulate(2 * fact.unit * length for fact, length in zip(facts, lengths, strict=True))
    return tuple(log_sum(one, log(math.sqrt(server.d) * other)) for one, other in zip(grown, lost, strict=True))
