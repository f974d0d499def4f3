"""Targeted model poisoning by projected gradient descent, and its one-step form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks._samples import check_class, check_pair
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


def aux_points(tests: Tests, size: int, seed: int, first: bool = False, pair: tuple[int, int] | None = None) -> Goal:
    """``size`` test samples, uniformly drawn or the ``first``, each with a uniformly random wrong label.

    With a ``pair`` of classes they are samples of the one class, and their label is the other.
    """
    if size >= len(tests.targets):
        raise ConfigError(f"{size} aux points leave no clean one of {len(tests.targets)} test samples")
    draws = generator(seed, "aux")
    among = torch.arange(len(tests.targets)) if pair is None else (tests.targets == pair[0]).nonzero().flatten()
    if size > len(among):
        raise ConfigError(f"{size} aux points of class {pair[0] if pair else ''}: there are {len(among)} test samples")
    rows = among[:size] if first else among[torch.randperm(len(among), generator=draws)[:size]].sort().values
    if pair is None:
        labels = wrong_labels(tests.targets[rows], tests.classes, draws)
    else:
        labels = torch.full((size,), pair[1], dtype=tests.targets.dtype)
    return Goal(tests.inputs(rows), labels.to(tests.device), rows.numpy())


@dataclass(frozen=True)
class _Targeted(UpdateAttack):
    """What targeted attacks share: size and choice of the aux set, radius, boost, collusion."""

    targeted: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.MODEL

    aux: int = 500
    radius: float | None = None
    boost: float = 1.0
    collude: bool = True
    boost_on: Literal["update", "loss"] = field(default="update", kw_only=True)
    aux_from: Literal["random", "first"] = field(default="random", kw_only=True)
    replacement: bool = field(default=False, kw_only=True)
    augment: bool = field(default=False, kw_only=True)
    source: int | None = field(default=None, kw_only=True)
    target: int | None = field(default=None, kw_only=True)

    added: ClassVar[tuple[str, ...]] = ("boost_on", "aux_from", "replacement", "augment", "source", "target")

    def __post_init__(self) -> None:
        for key, value, known in (
            ("boost_on", self.boost_on, ("update", "loss")),
            ("aux_from", self.aux_from, ("random", "first")),
        ):
            if value not in known:
                raise ConfigError(f"attack: {key} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        if (self.source is None) != (self.target is None):
            raise ConfigError("attack: source and target belong together: give both classes, or none")
        if self.source is not None and self.target is not None:
            check_pair("attack", self.source, self.target)
        if self.aux < 1:
            raise ConfigError(f"attack: aux must be at least 1, got {self.aux}")
        if self.radius is not None and not self.radius > 0:
            raise ConfigError(f"attack: radius must be positive, got {self.radius}")
        if not (self.boost > 0 and math.isfinite(self.boost)):
            raise ConfigError(f"attack: boost must be a positive number, got {self.boost}")

    def goal(self, tests: Tests, seed: int) -> Goal:
        for key in ("source", "target"):
            check_class("attack", key, getattr(self, key), tests.classes)
        pair = None if self.source is None or self.target is None else (self.source, self.target)
        goal = aux_points(tests, self.aux, seed, self.aux_from == "first", pair)
        return replace(goal, augment=tests.dataset.augmented) if self.augment else goal

    def drawn(self, goal: Goal, size: int, draws: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the aux points in batches of ``size``: inputs and wanted labels."""
        n = len(goal.labels)
        order = torch.randint(n, (n,), generator=draws) if self.replacement else torch.randperm(n, generator=draws)
        for rows in torch.split(order, size):
            yield goal.batch(rows, draws)

    @property
    def loss_boost(self) -> float:
        """The factor on the attackers' loss, and so on its gradients."""
        return self.boost if self.boost_on == "loss" else 1.0

    @property
    def update_boost(self) -> float:
        """The factor on the finished update."""
        return self.boost if self.boost_on == "update" else 1.0

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
            vectors.append(make(context, context.goal, radius, draws) * self.update_boost)
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
        boost_on: ``"loss"`` multiplies the attackers' loss instead, as the authors' code does.
        aux_from: which test points these are, ``"random"`` ones or the ``"first"`` of the test set.
        replacement: whether a pass draws its aux points with replacement.
        augment: whether attackers train with the data set's training augmentation.
        source, target: aux points are of the class ``source``, and all shall be taken for ``target``, as in the paper's
            backdoors on handwriting; None: any class, each with a random wrong label.
        collude: whether all attackers of a round send the same vector.
        epochs: passes over the aux points.
        batch_size: aux points a step.
        lr: eta.
        project: ``"batch"`` or ``"epoch"``.
        rescale: whether the update is brought to norm L exactly.
        rescale_above: it is so only in rounds with a learning rate above this (a revision of the authors' code: 0.001).
        single: one gradient on a batch instead of training (``epochs``, ``lr`` and ``project`` do not matter), as one
            revision of the authors' code does against every server but FedAvg's, SparseFed's included.

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
    rescale_above: float = field(default=0.0, kw_only=True)
    single: bool = field(default=False, kw_only=True)

    added: ClassVar[tuple[str, ...]] = (*_Targeted.added, "rescale_above", "single")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rescale_above <= 1e30:
            raise ConfigError(f"pgd: rescale_above must be a learning rate >= 0, got {self.rescale_above}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("pgd: epochs and batch_size must be at least 1")
        if not 0 < self.lr <= 1e30:
            raise ConfigError(f"pgd: lr must be a positive number of at most 1e30, got {self.lr}")
        if self.lr * self.loss_boost > 1e30:
            raise ConfigError(f"pgd: lr times the boost on the loss must be at most 1e30, got {self.lr} x {self.boost}")

    def vector(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
        return self.trained(context, goal, radius, draws, lambda displacement: displacement)

    def trained(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator, keep: Keep) -> Tensor:
        """The update [d] of training within what ``keep`` leaves of the displacement, applied before each clipping."""
        model, start = context.scratch, context.weights
        model.load(start)
        if self.single:
            inputs, labels = next(self.drawn(goal, self.batch_size, draws))
            gradient = model.differentiate(context.loss_fn, inputs, labels) * self.loss_boost
            return self.bounded(-keep(-gradient), radius, context.lr)
        lr = self.lr * self.loss_boost
        for _ in range(self.epochs):
            for inputs, labels in self.drawn(goal, self.batch_size, draws):
                model.descend(context.loss_fn, inputs, labels, lr)
                if self.project == "batch":
                    model.load(start + project(keep(model.weights - start), radius))
            if self.project == "epoch":
                model.load(start + project(keep(model.weights - start), radius))
        return self.bounded(start - model.weights, radius, context.lr)

    def rescales(self, lr: float) -> bool:
        """Whether the update is brought to norm L exactly in a round with learning rate ``lr``."""
        return self.rescale and (lr > self.rescale_above or not self.rescale_above)

    def bounded(self, update: Tensor, radius: float, lr: float) -> Tensor:
        """``update`` [d] at norm L, or at most that."""
        if self.rescales(lr):
            return rescale(update, radius)
        return project(update, radius) if self.single else update


@dataclass(frozen=True)
class SingleStep(_Targeted):
    r"""One gradient of the loss on wrong labels, brought to the clipping radius.

    .. math:: u = L\, \nabla L(M_0, B) / \|\nabla L(M_0, B)\|

    over ``batch_size`` of the ``aux`` points (0: all of them). Parameters as in ``pgd``; without ``rescale`` the
    gradient is only shortened to L, if it is longer, and ``boost_on="loss"`` makes it longer.

    Knows: the global model, the clipping radius, and the aux points.
    Cost: one gradient.
    Peers: none of ByzFL, Blades and FLPoison has it.
    Reference: Panda et al.: SparseFed, AISTATS 2022; this is what one revision of the authors' code sends against
        SparseFed.
    """

    batch_size: int = 0
    rescale: bool = True

    added: ClassVar[tuple[str, ...]] = (*_Targeted.added, "rescale")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 0:
            raise ConfigError("single-step: batch_size must be at least 0")

    def vector(self, context: AttackContext, goal: Goal, radius: float, draws: torch.Generator) -> Tensor:
        inputs, labels = next(self.drawn(goal, self.batch_size or len(goal.labels), draws))
        context.scratch.load(context.weights)
        gradient = context.scratch.differentiate(context.loss_fn, inputs, labels) * self.loss_boost
        return (rescale if self.rescale else project)(gradient, radius)
