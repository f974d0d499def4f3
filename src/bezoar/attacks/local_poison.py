"""Attackers that train on poisoned data of their own and send what they make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks.base import (
    AttackContext,
    Batch,
    DataAttack,
    Goal,
    Knowledge,
    Poisoned,
    Sent,
    Tests,
    UpdateAttack,
    stack,
)
from bezoar.attacks.pgd import project
from bezoar.attacks.trigger import BadNets
from bezoar.errors import ConfigError
from bezoar.kernels.topk import top_k
from bezoar.seeding import generator
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


@dataclass(frozen=True)
class LocalPoison(UpdateAttack):
    """What attacks share that train on samples poisoned by another attack, ``poison``, and change the update."""

    trains: ClassVar[bool] = True
    name: ClassVar[str]

    poison: DataAttack = field(default_factory=BadNets)
    epochs: int = 5
    batch_size: int = 32
    lr: float | None = None
    alpha: float = 1.0
    radius: float | None = None
    collude: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.poison, DataAttack):
            raise ConfigError(f"{self.name}: poison must be an attack on data; {self.poison!r} is no attack on data")
        if self.epochs < 1 or self.batch_size < 0:
            raise ConfigError(f"{self.name}: epochs must be at least 1 and batch_size at least 0 (all samples)")
        if self.lr is not None and not 0 < self.lr <= 1e30:
            raise ConfigError(f"{self.name}: lr must be a positive number of at most 1e30, got {self.lr}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"{self.name}: alpha must be above 0 and at most 1, got {self.alpha}")
        if self.radius is not None and not self.radius > 0:
            raise ConfigError(f"{self.name}: radius must be positive, got {self.radius}")

    @property
    def least(self) -> Knowledge:  # type: ignore[override]
        """The model, and what the attack that poisons the samples needs."""
        return max(Knowledge.MODEL, self.poison.least)

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """As the attack that poisons the samples."""
        return self.poison.remembers

    @property
    def numeric(self) -> bool:  # type: ignore[override]
        """As the attack that poisons the samples."""
        return self.poison.numeric

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        """As the attack that poisons the samples."""
        return self.poison.targeted

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        return self.poison.goal(tests, seed)

    def factor(self, context: AttackContext) -> float:
        """What the update is multiplied by before it is bounded."""
        raise NotImplementedError

    def forbidden(self, context: AttackContext) -> Tensor | None:
        """Coordinates that training must not change; None: none."""
        return None

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        if context.own is None:
            raise ConfigError(f"{self.name} trains on the attackers' own samples: it needs AttackContext.own")
        poisoned = self.poison.poison(context.own, context)
        batch, frozen = poisoned.batch, self.forbidden(context)
        owners = batch.owners.cpu()
        senders = [0] if self.collude else context.clients.tolist()
        vectors = []
        for sender in senders:
            mine = batch if self.collude else batch.select((owners == sender).to(batch.owners.device))
            draws = generator(context.seed, "attack", context.round, sender)
            vectors.append(self._update(mine, context, frozen, draws))
        sent = torch.stack(vectors)
        return Sent(stack(view, sent, context.clients), poisoned.state, self._report(poisoned, sent))

    def _update(self, batch: Batch, context: AttackContext, frozen: Tensor | None, draws: torch.Generator) -> Tensor:
        """The update of attackers who train on ``batch``, as it is sent [d]."""
        model, start, lr = context.scratch, context.weights, context.lr if self.lr is None else self.lr
        model.load(start)
        for _ in range(self.epochs):
            order = torch.randperm(len(batch), generator=draws).to(batch.targets.device)
            for rows in torch.split(order, self.batch_size or len(batch)):
                gradient = model.differentiate(context.loss_fn, batch.inputs[rows], batch.targets[rows])
                with torch.no_grad():
                    if self.alpha < 1:
                        gradient.mul_(self.alpha).add_(model.weights - start, alpha=1 - self.alpha)
                    if frozen is not None:
                        gradient[frozen] = 0
                    model.weights.sub_(gradient, alpha=lr)
        # The server multiplies what it gets by its learning rate; an update is what it would have to subtract.
        step = context.server_lr if context.server_lr > 0 else 1.0
        radius = context.radius if self.radius is None else self.radius
        return project((start - model.weights.detach()) * (self.factor(context) / step), radius)

    def _report(self, poisoned: Poisoned, sent: Tensor) -> dict[str, float]:
        return {**poisoned.report, "sent_norm": float(torch.linalg.vector_norm(sent, dim=1).mean())}


@dataclass(frozen=True)
class ModelReplacement(LocalPoison):
    r"""Train on poisoned data, then boost the update until it replaces the global model.

    .. math:: u = \frac{\gamma}{\eta}\,(\theta^t - \tilde\theta), \quad \gamma = n / q

    The attackers' model :math:`\tilde\theta` is the global one after ``epochs`` passes over their samples, poisoned by
    ``poison`` (any attack on data), in batches of ``batch_size`` (0: all samples) with rate ``lr`` (None: the
    clients'); eta is the server's learning rate, 1 for FedAvg. With gamma = n / q, n clients in the round and q of them
    attackers, the plain mean lands exactly on their model if the honest updates cancel, and at their model plus the
    honest step (1 - q/n) times its usual length otherwise. Give gamma by hand as ``boost``. The update is brought down
    to norm ``radius`` if it is longer (None: the defence's clipping radius, if it is known and there is one), as in
    train-and-scale. With ``alpha`` < 1 the loss is constrained (constrain-and-scale), with the squared distance to the
    global model as what a defence may look at:

    .. math:: \alpha L(\theta) + (1 - \alpha) \tfrac12 \|\theta - \theta^t\|^2

    Colluding attackers train one model on all their samples and send the same vector; without ``collude`` each trains
    on its own.

    Knows: the global model, its own samples, the number of clients and of attackers in the round.
    Cost: ``epochs`` passes over the attackers' samples.
    Peers: FLPoison's ModelReplacement.
    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How To Backdoor Federated Learning, AISTATS 2020.
    """

    name: ClassVar[str] = "model-replacement"

    boost: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boost is not None and not (self.boost > 0 and math.isfinite(self.boost)):
            raise ConfigError(f"model-replacement: boost must be a positive number, got {self.boost}")

    def factor(self, context: AttackContext) -> float:
        return context.cohort / len(context.clients) if self.boost is None else self.boost


@dataclass(frozen=True)
class Neurotoxin(LocalPoison):
    r"""Train on poisoned data in the coordinates that honest clients hardly change, so that the backdoor lasts.

    .. math:: g \leftarrow P_C\, g, \quad C = [d] \setminus \operatorname{top}_k |\bar u^{t-1}|, \quad
              u = \frac{\gamma}{\eta}\,(\theta^t - \tilde\theta)

    Every local step is projected onto the coordinates outside the top k, k = ``top`` d rounded, of the last aggregate
    :math:`\bar u^{t-1}`; in the first round there is none, and nothing is projected. ``boost`` is gamma; the other
    parameters are those of ``model-replacement``.

    Knows: the global model, the last aggregate, its own samples.
    Cost: ``epochs`` passes over the attackers' samples and one top-k.
    Peers: FLPoison's Neurotoxin.
    Reference: Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal: Neurotoxin: Durable Backdoors in
        Federated Learning, ICML 2022.
    """

    name: ClassVar[str] = "neurotoxin"

    boost: float = 1.0
    top: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.boost > 0 and math.isfinite(self.boost)):
            raise ConfigError(f"neurotoxin: boost must be a positive number, got {self.boost}")
        if not 0 < self.top < 1:
            raise ConfigError(f"neurotoxin: top must be above 0 and below 1, got {self.top}")

    def factor(self, context: AttackContext) -> float:
        return self.boost

    def forbidden(self, context: AttackContext) -> Tensor | None:
        last = context.server_context.last_aggregate
        if last is None:
            return None
        k = math.floor(self.top * len(last) + 0.5)
        return top_k(last, k) if k else None
