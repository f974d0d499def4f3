"""What an attack is: poisoned rows, or poisoned labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.clients.scratch import Scratch
from bezoar.updates.base import Needs, Updates
from bezoar.updates.stacked import Stacked

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Goal:
    """What targeted attackers want: ``inputs`` [s, ...] (as the model takes them) classified as ``labels`` [s]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class AttackContext:
    """What the attackers of one round know beside the honest updates.

    Attributes:
        round: the round, from 1.
        seed: the experiment's seed; draws come from streams of their own.
        clients: ids of this round's attackers [q], ascending.
        weights: the global model, flat [d]; not to be changed.
        scratch: a private copy of the model to train on.
        loss_fn: one loss a sample.
        radius: the defence's clipping radius this round, infinity without clipping.
        goal: what targeted attackers want, None for the others.
        cohort: clients in this round, attackers included.
    """

    round: int
    seed: int
    clients: Tensor
    weights: Tensor
    scratch: Scratch
    loss_fn: Loss
    radius: float
    goal: Goal | None
    cohort: int


@dataclass(frozen=True)
class Attack:
    """A way to poison; which clients do it and when is the adversary's business."""

    #: Whether there are test points that must get wrong labels (then ``aux`` of them are drawn).
    targeted: ClassVar[bool] = False


@dataclass(frozen=True)
class UpdateAttack(Attack, ABC):
    """Attackers send rows of their choice instead of their honest updates."""

    #: What the attack asks of the honest updates; norms and weighted sums can always be had.
    needs: ClassVar[Needs] = Needs.NONE

    @abstractmethod
    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        """Stack the malicious rows on the honest updates ``view`` (read-only), in the order of client ids."""


@dataclass(frozen=True)
class DataAttack(Attack, ABC):
    """Attackers train honestly on poisoned labels."""

    @abstractmethod
    def labels(self, targets: Tensor, classes: int, generator: torch.Generator) -> Tensor:
        """Poisoned labels [N] for the attackers' samples with true labels ``targets`` [N]."""


def stack(view: Updates, vectors: Tensor, clients: Tensor) -> Stacked:
    """Put malicious ``vectors`` on ``view``: [1, d] is sent by every attacker (collusion), [q, d] one each."""
    q = len(clients)
    shape = torch.ones(q, 1) if len(vectors) == 1 else torch.eye(q)
    return Stacked.by_client(view, shape, vectors, clients)


def usable(view: Updates) -> Updates:
    """The honest updates that hold finite numbers only; all of them if none does."""
    finite = view.finite()
    return view.select(finite.nonzero().flatten()) if finite.any() and not finite.all() else view


def honest_mean(rows: Updates) -> Tensor:
    """The mean [d] of ``rows``."""
    n = len(rows)
    return rows.combine(torch.full((n,), 1 / n, dtype=torch.float64, device=rows.device))
