"""Counter-gradient: guess what the honest will send, cancel it, and walk the model to a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Rule
from bezoar.attacks._target_model import noted, train
from bezoar.attacks.base import AttackContext, Batch, Knowledge, Sent, Tests, UpdateAttack, honest_mean, stack, usable
from bezoar.attacks.pgd import project
from bezoar.errors import ConfigError
from bezoar.updates.base import Updates
from bezoar.updates.stacked import Stacked


def honest_sum(previous: Tensor, current: Tensor, lr: float, sent: Tensor, clients: int = 1) -> Tensor:
    r"""The sum of honest updates of the last step, from what everybody sees.

    .. math:: \hat G = n (\rho^{t-1} - \rho^t)/\eta_{t-1} - \textstyle\sum_{\mathrm{attackers}} g^{t-1}

    Args:
        previous: the model before the step [d].
        current: the model after it [d].
        lr: the step's learning rate.
        sent: the sum of what the attackers sent [d].
        clients: n, if the server steps along the mean of n updates; 1 if it steps along their sum.
    """
    return clients * (previous - current) / lr - sent


def counter_gradient(
    model: Tensor,
    target: Tensor,
    lr: float,
    honest: Tensor | None = None,
    *,
    clients: int = 1,
    attackers: int = 1,
    reach: float = math.inf,
) -> Tensor:
    r"""What each attacker sends so that the server's next step ends at ``target``, if the honest sum is as guessed.

    .. math:: g = \big[ n (\rho - \theta^\dagger)/\eta - \hat G \big]/m,
        \quad\text{then}\quad g \leftarrow g \min(1, \mathrm{reach}/\|g\|)

    Args:
        model: rho [d].
        target: theta^dagger [d].
        lr: eta of the coming step.
        honest: the guessed sum of honest updates; none: zero.
        clients: n, if the server steps along the mean of n updates; 1 if it steps along their sum.
        attackers: m, how many send the same.
        reach: the longest vector that one attacker can send.

    >>> rho, target, honest = torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([0.0, 3.0])
    >>> g = counter_gradient(rho, target, 0.5, honest, clients=4, attackers=1)
    >>> (rho - 0.5 * (honest + g) / 4).tolist()
    [0.0, 0.0]
    """
    if not lr > 0:
        raise ConfigError(f"counter-gradient: the learning rate must be positive, got {lr}")
    wanted = clients * (model - target) / lr
    g = (wanted if honest is None else wanted - honest) / attackers
    return _within(g, reach)


def _within(vector: Tensor, reach: float) -> Tensor:
    """``vector`` [d], brought to the length ``reach`` if it is longer."""
    length = float(torch.linalg.vector_norm(vector))
    if math.isinf(length):
        return project(vector, reach)
    return vector if length <= reach else vector * (reach / length)


@dataclass(frozen=True)
class CounterGradient(UpdateAttack):
    r"""Cancel what the honest will send, and add what brings the global model to one that the attackers trained.

    .. math:: u = \big[ n (w - w^\dagger)/\eta - \hat G \big]/m

    n clients, m of them attackers, eta the server's step. The target w^dagger is trained in the attack's first round,
    from that round's model, by ``epochs`` epochs of SGD (``lr``, batches of ``batch_size``) on the attackers' samples
    with labels (y + ``shift``) mod C. The guess of the honest sum is what they sent in the round before
    (``honest="inferred"``, from the last two models and what the attackers sent), or what they send now (``"seen"``,
    for attackers who know it; others see their own honest updates in its place). A u longer than ``reach``, or than a
    clipping radius that the attackers know, is brought to that length. Against the mean one round is enough if the
    guess is right; other rules and changing cohorts make it wrong, and so does a server momentum that is not the
    ``momentum`` that the attackers reckon with. Where the number of honest clients changes, the guess is what they sent
    on average. A rate of 0, or one so small that u is no number, moves no model: the attackers then send the mean of
    the honest updates that they see.
    The record has the ``distance`` of the model to the target and the ``length`` of u.

    Knows: its own samples, the models that every client is sent, the size of the cohort and the server's learning rate;
        the honest updates with "seen".
    Cost: epochs over the attackers' samples, once; O(d) a round.
    Peers: none has it.
    Reference: Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and Byzantine Gradient
        Attacks, ICML 2022; m attackers, the mean in the place of the sum, and local training derived here.
    """

    remembers: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.MODEL

    shift: int = 1
    epochs: int = 20
    lr: float = 0.1
    batch_size: int = 64
    honest: Literal["inferred", "seen"] = "inferred"
    reach: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"counter-gradient: momentum must be in [0, 1), got {self.momentum}")
        for key in ("shift", "epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"counter-gradient: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("lr", "reach"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"counter-gradient: {key} must be finite and positive, got {value}")
        if self.honest not in ("inferred", "seen"):
            raise ConfigError(f"counter-gradient: honest must be 'inferred' or 'seen', got {self.honest!r}")

    def goal(self, tests: Tests, seed: int) -> None:
        self._check(tests.classes)

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        w, m, n = context.weights, len(context.clients), context.cohort
        target = self._target(context)
        step, guess = self._seen(context)
        radius = context.radius if self.reach is None else min(self.reach, context.radius)
        if self.honest == "seen":
            guess = (n - m) * _honest(view, w)
        # What the server's momentum does by itself, the attackers need not.
        carried = w - context.server_lr * self.momentum * step
        u = torch.full_like(w, math.nan)
        if context.server_lr > 0:
            u = counter_gradient(carried, target, context.server_lr, guess, clients=n, attackers=m, reach=radius)
        if not bool(torch.isfinite(u).all()):
            u = _within(_honest(view, w), radius)
        report = {"distance": float((w - target).norm()), "length": float(u.norm())}
        return Sent(stack(view, u[None], context.clients), {**noted(context), "target": target, "step": step}, report)

    def _seen(self, context: AttackContext) -> tuple[Tensor, Tensor]:
        """The last step of the server over its rate [d], and the sum of what the honest sent then; zeros at first."""
        w, now = context.weights, context.cohort - len(context.clients)
        nothing = torch.zeros_like(w)
        if context.previous_weights is None or context.previous_cohort < 1:
            return nothing, nothing
        known = context.state
        active = "round" in known and int(known["round"]) == context.round - 1
        lr = float(known["server_lr"]) if active else context.server_lr
        if not lr > 0:
            # A model that does not move says nothing of what was sent.
            return nothing, nothing
        step = (context.previous_weights - w) / lr
        carried = known["step"].to(w) if active else nothing
        before = context.previous_weights - lr * self.momentum * carried
        n = context.previous_cohort
        sent = context.previous_sent.to(w) if active and context.previous_sent is not None else None
        # Attackers who did not attack then were as honest as the others.
        then = n if sent is None else n - int(known["attackers"])
        if then < 1:
            return _finite(step), nothing
        others = honest_sum(before, w, lr, nothing if sent is None else sent, clients=n)
        # Other clients than then may be honest now, and more or fewer of them.
        return _finite(step), _finite(others if then == now else others * (now / then))

    def _target(self, context: AttackContext) -> Tensor:
        known = context.state.get("target")
        if known is not None:
            return known.to(context.weights)
        if context.own is None:
            raise ConfigError("counter-gradient trains on the attackers' samples: it needs context.own")
        self._check(context.classes)
        own = context.own
        wrong = Batch(own.inputs, (own.targets + self.shift) % context.classes, own.owners)
        return train(context, context.weights, wrong, self.epochs, self.lr, self.batch_size)

    def _check(self, classes: int) -> None:
        """Raise if the shifted labels are the true ones."""
        if classes < 1 or self.shift % classes == 0:
            raise ConfigError(
                f"counter-gradient: a shift of {self.shift} leaves the labels of {classes} classes as they are; it "
                "must be no multiple of their number"
            )


def _honest(view: Updates, like: Tensor) -> Tensor:
    """The mean [d] of the honest updates that hold numbers; zero if none does."""
    return _finite(honest_mean(usable(view)).to(like))


def _finite(vector: Tensor) -> Tensor:
    """``vector`` [d], zero if it holds anything but finite numbers: nothing is known then."""
    return vector if bool(torch.isfinite(vector).all()) else torch.zeros_like(vector)
