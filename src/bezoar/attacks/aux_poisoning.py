"""Targeted poisoning through data: honest training on test points with wrong labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks._samples import check_share, handed
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, Tests
from bezoar.attacks.pgd import aux_points
from bezoar.errors import ConfigError
from bezoar.seeding import generator


@dataclass(frozen=True)
class AuxPoisoning(DataAttack):
    r"""Targeted: train honestly on test points with random wrong labels, beside or instead of one's own samples.

    .. math:: D_i \leftarrow A \cup O_i, \quad |O_i| \approx |A|\,\frac{1 - s}{s}, \quad O_i \subseteq D_i

    A are the ``aux`` test points that shall be misclassified (the same as with ``pgd``), or ``batch_size`` of them
    that each attacker draws anew every round (0: all); O_i are samples of its own with true labels, drawn every round
    from those that it has there, so many that a ``share`` s of what the attacker trains on is poison (all that it has
    there, if they are too few; none with share 1). The form of ``pgd`` that needs nothing but samples: the server sees
    honest work.

    Knows: the aux points, and its own samples if share < 1.
    Cost: that of training on the aux points.
    Reference: Panda et al.: SparseFed, AISTATS 2022 (its aux sets and its goal; there the update itself is optimised).
    """

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.OWN_DATA

    aux: int = 500
    share: float = 1.0
    batch_size: int = 0

    def __post_init__(self) -> None:
        if self.aux < 1 or self.batch_size < 0:
            raise ConfigError("aux-poisoning: aux must be at least 1 and batch_size at least 0 (all aux points)")
        check_share("aux-poisoning", "share", self.share)

    def goal(self, tests: Tests, seed: int) -> Goal:
        return aux_points(tests, self.aux, seed)

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        if context.goal is None:
            raise ConfigError("aux-poisoning needs AttackContext.goal: what shall be misclassified")
        goal, owners = context.goal, batch.owners.cpu()
        size = min(self.batch_size or len(goal.labels), len(goal.labels))
        kept = math.floor(size * (1 - self.share) / self.share + 0.5)
        parts = []
        for client in context.clients.tolist():
            draws = generator(context.seed, "attack", context.round, client)
            points = _some(torch.arange(len(goal.labels)), size, draws).to(goal.labels.device)
            own = _some((owners == client).nonzero().flatten(), kept, draws).to(batch.owners.device)
            parts += [
                batch.select(own),
                handed(batch, goal.inputs[points], goal.labels[points], torch.tensor([client])),
            ]
        return Poisoned(Batch.join(*parts))


def _some(rows: Tensor, size: int, draws: torch.Generator) -> Tensor:
    """``size`` of ``rows`` in their order, or all if there are fewer."""
    return rows[torch.randperm(len(rows), generator=draws)[:size].sort().values]
