r"""How far SparseFed's two runs lie apart in the l2 norm, through iterates that error feedback does not disturb.

With error memory W and rate lr, the *virtual* model theta - lr W moves by the whole update, whatever top-k chooses:
(theta - lr D) - lr (W + u - D) = (theta - lr W) - lr u. What top-k holds back therefore enters the distance of the two
real models once, as lr |W - W'|, and not in every round as in the paper's recurrence. Where the honest loss is convex
and smooth, gradient steps do not drive the virtual models apart. Proof in docs/certificates.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


def log(value: float) -> float:
    """The natural logarithm; minus infinity of zero."""
    return math.log(value) if value > 0 else -math.inf


def log_sum(*terms: float) -> float:
    """The logarithm of the sum of numbers given by their logarithms."""
    high = max(terms)
    return high if math.isinf(high) else high + math.log(math.fsum(math.exp(term - high) for term in terms))


@dataclass(frozen=True)
class Apart:
    r"""Bounds on what separates the two runs before a round, all as natural logarithms of l2 norms.

    Attributes:
        virtual: distance of the virtual models.
        memory: length of the clean run's error memory (known, not bounded).
        poisoned: length of the poisoned run's error memory, at most.

    >>> one = Apart().after(0.5, smoothness=1.0, clipped=0.0, force=2.0, kept=0.0, radius=9.0, update=1.0, memory=0.0)
    >>> math.exp(one.distance(0.5))
    1.0
    """

    virtual: float = -math.inf
    memory: float = -math.inf
    poisoned: float = -math.inf

    @property
    def gap(self) -> float:
        """How far the two error memories can lie apart."""
        return log_sum(self.memory, self.poisoned)

    def distance(self, lr: float) -> float:
        """How far the two models can lie apart; ``lr`` is the rate that the virtual models are made with."""
        return log_sum(self.virtual, log(lr) + self.gap if lr else -math.inf)

    def after(
        self,
        lr: float,
        smoothness: float,
        clipped: float,
        force: float,
        kept: float,
        radius: float,
        update: float,
        memory: float,
    ) -> Apart:
        r"""One round, the virtual models still made with ``lr``.

        Args:
            lr: the rate of the round.
            smoothness: beta of the mean loss of the cohort, convex.
            clipped: by how much, per unit of distance, the updates of clients that clipping may reach can differ.
            force: rho_2, the attackers' push.
            kept: largest share of its l2 norm that a memory keeps, sqrt(1 - k/d).
            radius: L, no mean of clipped updates is longer.
            update: length of the clean run's mean update; L if it is not known.
            memory: length of the clean run's error memory after the round.
        """
        distance, rate, push = self.distance(lr), log(lr), log(force)
        stretch = log(max(1.0, lr * smoothness - 1))
        virtual = log_sum(
            stretch + self.virtual,
            2 * rate + log(smoothness) + self.gap,
            rate + log(clipped) + distance,
            rate + push,
        )
        longest = min(log(radius), log_sum(log(update), log(smoothness + clipped) + distance, push))
        poisoned = log(kept) + log_sum(self.poisoned, longest) if kept else -math.inf
        return Apart(virtual, log(memory), poisoned)

    def shaken(self, *more: float) -> Apart:
        """The models further apart by the sum of what is given as logarithms: rounding."""
        return replace(self, virtual=log_sum(self.virtual, *more))

    def at(self, lr: float, other: float) -> Apart:
        """The virtual models made with the rate ``other`` instead of ``lr``."""
        return replace(self, virtual=log_sum(self.virtual, log(abs(lr - other)) + self.gap))
