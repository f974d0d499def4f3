"""Targeted model poisoning by projected gradient descent, and its one-step form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import AttackContext, Goal, Knowledge, Tests, UpdateAttack, stack
from bezoar.attacks.label_flip import wrong_labels
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked

#: How a targeted attack makes one vector [d] in descent sign, before boosting, from (context, goal, radius, draws).
Make = Callable[[AttackContext, Goal, float, torch.Generator], Tensor]

#: What attackers allow of a displacement [d] before it is clipped.
Keep = Callable[[Tensor], Tensor]


#: Between these lengths, squares of the entries neither overflow nor vanish in float32.
ORDINARY = (1e-15, 1e18)


def project(displacement: Tensor, radius: float) -> Tensor:
    """Scale ``displacement`` [d] down to l2 norm ``radius`` if it is longer."""
    if math.isinf(radius):
        return displacement
    peak = _peak(displacement)
    if peak is not None:
        return rescale(displacement, radius) if _length(displacement / peak) * peak > radius else displacement
    return displacement * torch.clamp(radius / torch.linalg.vector_norm(displacement), max=1.0)


def rescale(vector: Tensor, radius: float) -> Tensor:
    """Bring ``vector`` [d] to l2 norm ``radius`` exactly (zero and infinite radius leave it as it is)."""
    if math.isinf(radius):
        return vector
    peak = _peak(vector)
    vector = vector if peak is None else vector / peak
    norm = torch.linalg.vector_norm(vector)
    return vector * torch.where(norm > 0, torch.div(radius, norm), torch.ones_like(norm))


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _peak(vector: Tensor) -> float | None:
    """The largest absolute value, where the length is too long or too short to be told from squares."""
    low, high = ORDINARY
    if low < _length(vector) < high:
        return None
    peak = float(vector.abs().max())
    return peak if 0 < peak < math.inf else None


def aux_points(tests: Tests, size: int, seed: int) -> Goal:
    """``size`` uniformly drawn test samples, each with a uniformly random wrong label."""
    if size >= len(tests.targets):
        raise ConfigError(f"{size} aux points leave no clean one of {len(tests.targets)} test samples")
    draws = generator(seed, "aux")
    rows = torch.randperm(len(tests.targets), generator=draws)[:size].sort().values
    labels = wrong_labels(tests.targets[rows], tests.classes, draws)
    return Goal(tests.inputs(rows), labels.to(tests.device), rows.numpy())


@dataclass(frozen=True)
class _Targeted(UpdateAttack):
    """What targeted attacks share: size of the aux set, radius, boost, collusion."""

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.MODEL

    aux: int = 500
    radius: float | None = None
    boost: float = 1.0
    collude: bool = True

    def __post_init__(self) -> None:
        if self.aux < 1:
            raise ConfigError(f"attack: aux must be at least 1, got {self.aux}")
        if self.radius is not None and not self.radius > 0:
            raise ConfigError(f"attack: radius must be positive, got {self.radius}")
        if not (self.boost > 0 and math.isfinite(self.boost)):
            raise ConfigError(f"attack: boost must be a positive number, got {self.boost}")

    def goal(self, tests: Tests, seed: int) -> Goal:
        return aux_points(tests, self.aux, seed)

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.made_by(self.vector, view, context)

    def made_by(self, make: Make, view: Updates, context: AttackContext) -> Stacked:
        """The vectors that ``make`` makes, one for all attackers or one each, boosted and stacked on ``view``."""
        if context.goal is None:
            raise ConfigError(f"{type(self).__name__} needs AttackContext.goal: what shall be misclassified")
        radius = context.radius if self.radius is None else self.radius
        senders = [0] if self.collude else context.clients.tolist()
        vectors = []
        for sender in senders:
            draws = generator(context.seed, "attack", context.round, sender)
            vectors.append(make(context, context.goal, radius, draws) * self.boost)
        return stack(view, torch.stack(vectors), context.clients)

    def vector(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
        """The malicious update [d] in descent sign, before boosting."""
        raise NotImplementedError


@dataclass(frozen=True)
class PGD(_Targeted):
    r"""Targeted model poisoning: train on wrong labels, stay inside the clipping ball, send the displacement.

    .. math:: M \leftarrow M - \eta \nabla L(M, B), \quad M \leftarrow M_0 + \operatorname{clip}_L(M - M_0), \quad
              u = M_0 - M

    over ``epochs`` passes through the attackers' ``aux`` test points with random wrong labels, in batches of
    ``batch_size``. The ball is projected onto after every batch (``project="batch"``) or once an epoch; at the end u
    is brought to norm L exactly (``rescale``). L is ``radius``, by default the defence's clipping radius. Colluding
    attackers compute one vector a round and all send it.

    Args:
        aux: number of test points that must be misclassified.
        radius: L; None takes the defence's clipping radius (no projection if it does not clip).
        boost: factor on the finished update (model replacement uses cohort / attackers).
        collude: whether all attackers of a round send the same vector.
        epochs: passes over the aux points.
        batch_size: aux points a step.
        lr: eta.
        project: ``"batch"`` or ``"epoch"``.
        rescale: whether the update is brought to norm L exactly.

    Knows: the global model, the clipping radius, and the aux points.
    Cost: ``epochs`` passes over the aux points.
    Peers: none of ByzFL, Blades and FLPoison projects onto the defence's clipping ball.
    Reference: Panda et al.: SparseFed, AISTATS 2022, Algorithm 6 (its printed sign of the projection jumps away from
        M_0; this is the projection).
    """

    epochs: int = 5
    batch_size: int = 100
    lr: float = 0.1
    project: Literal["batch", "epoch"] = "batch"
    rescale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("pgd: epochs and batch_size must be at least 1")
        if not 0 < self.lr <= 1e30:
            raise ConfigError(f"pgd: lr must be a positive number of at most 1e30, got {self.lr}")

    def vector(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
        return self.trained(context, goal, radius, draws, lambda displacement: displacement)

    def trained(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator, keep: Keep) -> Tensor:
        """The update [d] of training within what ``keep`` leaves of the displacement, applied before each clipping."""
        model, start = context.scratch, context.weights
        model.load(start)
        for _ in range(self.epochs):
            order = torch.randperm(len(goal.labels), generator=draws).to(start.device)
            for batch in torch.split(order, self.batch_size):
                model.descend(context.loss_fn, goal.inputs[batch], goal.labels[batch], self.lr)
                if self.project == "batch":
                    model.load(start + project(keep(model.weights - start), radius))
            if self.project == "epoch":
                model.load(start + project(keep(model.weights - start), radius))
        update = start - model.weights
        return rescale(update, radius) if self.rescale else update


@dataclass(frozen=True)
class SingleStep(_Targeted):
    r"""One gradient of the loss on wrong labels, brought to the clipping radius.

    .. math:: u = L\, \nabla L(M_0, B) / \|\nabla L(M_0, B)\|

    over ``batch_size`` of the ``aux`` points (0: all of them). Parameters as in ``pgd``.

    Knows: the global model, the clipping radius, and the aux points.
    Cost: one gradient.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: Panda et al.: SparseFed, AISTATS 2022; this is what one revision of the authors' code sends against
        SparseFed.
    """

    batch_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 0:
            raise ConfigError("single-step: batch_size must be at least 0")

    def vector(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
        size = self.batch_size or len(goal.labels)
        batch = torch.randperm(len(goal.labels), generator=draws)[:size].to(context.weights.device)
        context.scratch.load(context.weights)
        gradient = context.scratch.differentiate(context.loss_fn, goal.inputs[batch], goal.labels[batch])
        return rescale(gradient.clone(), radius)
