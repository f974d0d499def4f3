"""Sybils without data of their own train on virtual samples that pull the model to one of the attackers' choice."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks._samples import uniforms
from bezoar.attacks._target_model import honest_shift, mean_loss, noted, train
from bezoar.attacks.base import AttackContext, Batch, DataAttack, Goal, Knowledge, Poisoned, State, Tests
from bezoar.attacks.gradient_to_data import GradientMatching, Match, Points
from bezoar.attacks.label_flip import LabelFlip
from bezoar.errors import ConfigError
from bezoar.seeding import derive, generator

#: State of the attack that says what is aimed at, within this one's.
_INNER = "aim."


@dataclass(frozen=True)
class VirtualData(DataAttack):
    r"""Attackers and their sybils train honestly on few virtual samples whose gradient leads to a target model.

    .. math:: \min_{\|\Delta\|_\infty \le \epsilon} 1 - \cos\Big(\nabla_w \sum_{i \le P} \ell(f_w(x_i + \Delta_i), y_i),
        \; w^t - w^{tar}\Big),\quad w^{tar} \approx \arg\min_w J_{adv}(w)

    J_adv is the loss of the attackers' samples as ``aim``, another attack on data, poisons them; the samples that it
    leaves clean keep the target model inconspicuous. ``acquisition`` says where training for w^tar starts and when:

    - ``"offline"``: once, in the attack's first round, from the model of that round, ``offline_epochs`` epochs;
    - ``"online-local"``: every round, from the global model w^t, ``epochs`` epochs;
    - ``"online-global"``: every round, from w^t plus the move of the honest clients in the round before, which follows
      from the last two models and what the attackers sent (on average over clients):
      [n (w^t - w^{t-1}) - sum of the attackers' moves] / (n - m).

    All by SGD of rate ``lr`` in batches of ``batch_size``. Every attacker gets the same ``points`` samples, found by
    :class:`~bezoar.attacks.gradient_to_data.GradientMatching` (``steps``, ``restarts``, ``step_size``, ``epsilon`` in
    units of the range of inputs, None for anywhere), plus N(0, ``noise``^2) in the same units, by which copies differ.
    They start from the attackers' samples with true labels (``base="data"``), from samples and labels as ``aim`` makes
    them (``"poisoned"``), or from uniform noise labelled 0, 1, ... in turn (``"noise"``).

    ``mode="exact"`` asks for the gradient that would bring the mean of n updates, m of them the attackers', from w^t
    to w^tar, if the honest ones move it as before, and for its length too; ``local_steps`` is the number of steps that
    a client takes. The record has ``cosine`` and ``norm_ratio`` of the gradient found to the one wanted, ``reach``,
    the share of the way to w^tar that the attackers cover in a mean of all, and J_adv at w^tar as ``target_loss``.

    Goal: that of ``aim``; for a label flip the flipped labels of up to ``aux`` test samples.
    Knows: its own samples and the models that every client is sent; "online-global" and "exact" the size of the cohort
        and the learning rates of clients and server.
    Cost: epochs over the attackers' samples, and restarts x steps x 3 passes over the points.
    Peers: none has it.
    Reference: after Zhu, Wu, Lyu, Xue: Sybil-based Virtual Data Poisoning Attacks in Federated Learning, 2025
        (arXiv:2505.09983); how target models are trained, all numbers and "exact" are ours.
    """

    targeted: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    numeric: ClassVar[bool] = True
    least: ClassVar[Knowledge] = Knowledge.MODEL

    aim: DataAttack = field(default_factory=LabelFlip)
    acquisition: Literal["offline", "online-local", "online-global"] = "online-global"
    mode: Literal["direction", "exact"] = "direction"
    base: Literal["data", "poisoned", "noise"] = "data"
    points: int = 32
    epsilon: float | None = 16 / 255
    noise: float = 0.0
    steps: int = 250
    restarts: int = 2
    step_size: float = 0.1
    epochs: int = 5
    offline_epochs: int = 50
    lr: float = 0.1
    batch_size: int = 64
    local_steps: int = 1
    aux: int = 500

    def __post_init__(self) -> None:
        choices = {
            "acquisition": ("offline", "online-local", "online-global"),
            "mode": ("direction", "exact"),
            "base": ("data", "poisoned", "noise"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"virtual-data: {key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        for key in ("points", "steps", "restarts", "epochs", "offline_epochs", "batch_size", "local_steps", "aux"):
            if getattr(self, key) < 1:
                raise ConfigError(f"virtual-data: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("lr", "step_size", "epsilon"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"virtual-data: {key} must be finite and positive, got {value}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"virtual-data: noise must be finite and 0 or more, got {self.noise}")
        flips = isinstance(self.aim, LabelFlip) and self.aim.mode != "furthest"
        if isinstance(self.aim, VirtualData) or not (flips or self.aim.targeted):
            raise ConfigError(
                "virtual-data: aim must be an attack on data with test points of its own, or label-flip in another "
                f"mode than 'furthest', got {self.aim}"
            )

    def goal(self, tests: Tests, seed: int) -> Goal:
        goal = self.aim.goal(tests, seed)
        if goal is not None:
            return goal
        assert isinstance(self.aim, LabelFlip)
        draws = generator(seed, "aux")
        labels = self.aim.labels(tests.targets, tests.classes, draws)
        rows = (labels != tests.targets).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=draws)[: self.aux]].sort().values
        if not len(rows):
            raise ConfigError("virtual-data: aim flips the label of no test sample")
        return Goal(tests.inputs(rows), labels[rows].to(tests.device))

    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        own = distinct(batch, context)
        inner = {key.removeprefix(_INNER): value for key, value in context.state.items() if key.startswith(_INNER)}
        bad = self.aim.poison(own, replace(context, clients=context.clients[:1], state=inner))
        others = honest_shift(context)
        target = self._target(bad.batch, others, context)
        made, reached, reach = self._virtual(own, bad.batch, target, others, context)
        state: State = {**noted(context), **{_INNER + key: value for key, value in bad.state.items()}}
        if self.acquisition == "offline":
            state = {**state, "target": target}
        report = {
            **bad.report,
            "cosine": reached.cosine,
            "norm_ratio": reached.norm_ratio,
            "reach": reach,
            "target_loss": mean_loss(context, target, bad.batch),
        }
        return Poisoned(self._handed(made, batch, context), state, report)

    def _target(self, bad: Batch, others: Tensor, context: AttackContext) -> Tensor:
        """w^tar [d]."""
        if self.acquisition == "offline":
            known = context.state.get("target")
            if known is not None:
                return known.to(context.weights)
            return train(context, context.weights, bad, self.offline_epochs, self.lr, self.batch_size)
        start = context.weights + others if self.acquisition == "online-global" else context.weights
        return train(context, start, bad, self.epochs, self.lr, self.batch_size)

    def _virtual(
        self, own: Batch, bad: Batch, target: Tensor, others: Tensor, context: AttackContext
    ) -> tuple[Points, Match, float]:
        """The virtual samples, how well they match what is wanted, and how far they get."""
        way = target - context.weights
        n, m = context.cohort, len(context.clients)
        # By how much the server moves along an honest client's gradient, if it takes that client's update alone.
        step = context.update_lr * context.server_lr * self.local_steps
        wanted = -way
        if self.mode == "exact":
            wanted = -(n * way - (n - m) * others) / (m * step)
        base = self._base(own, bad, context)
        if not bool(torch.isfinite(wanted).all()) or not bool(wanted.any()):
            return base, Match(0.0, 0.0), 0.0
        context.scratch.load(context.weights)
        method = GradientMatching(
            mode=self.mode,
            steps=self.steps,
            lr=self.step_size,
            restarts=self.restarts,
            epsilon=self.epsilon,
            reduction="mean",
            seed=derive(context.seed, "virtual data", context.round),
        )
        found = method.find(context.scratch.module, wanted, base, context.low, context.high, context.loss_fn)
        moved = m / n * step * found.match.norm_ratio * float(wanted.norm()) * found.match.cosine
        length = float(way.norm())
        return found.points, found.match, moved / length if length > 0 else 0.0

    def _base(self, own: Batch, bad: Batch, context: AttackContext) -> Points:
        """What the virtual samples start from."""
        draws = generator(context.seed, "virtual base", context.round)
        if self.base == "noise":
            unit = torch.rand(self.points, *own.inputs.shape[1:], generator=draws).to(own.inputs)
            if context.low is not None and context.high is not None:
                unit = context.low + (context.high - context.low) * unit
            return Points(unit, torch.arange(self.points, device=own.targets.device) % context.classes)
        source = own if self.base == "data" else bad
        rows = torch.cat([torch.randperm(len(source), generator=draws) for _ in range(-(-self.points // len(source)))])
        rows = rows[: self.points].to(source.targets.device)
        return Points(source.inputs[rows], source.targets[rows])

    def _handed(self, made: Points, batch: Batch, context: AttackContext) -> Batch:
        """The same samples for every attacker, each with noise of its own."""
        clients = context.clients.to(batch.owners.device)
        low, high = context.low, context.high
        unit = 1.0 if low is None or high is None else high - low
        copies = []
        for client in context.clients.tolist():
            inputs = made.inputs.to(batch.inputs)
            if self.noise:
                draws = generator(context.seed, "virtual noise", context.round, client)
                inputs = inputs + self.noise * unit * torch.randn(inputs.shape, generator=draws).to(inputs)
                inputs = inputs if low is None else torch.maximum(inputs, low)
                inputs = inputs if high is None else torch.minimum(inputs, high)
            copies.append(inputs)
        owners = clients.repeat_interleave(len(made))
        return Batch(torch.cat(copies), made.targets.to(batch.targets.device).repeat(len(clients)), owners)


def distinct(batch: Batch, context: AttackContext) -> Batch:
    """The different samples among ``batch``, of which sybils hold copies, all as the first attacker's."""
    marks = uniforms(batch.inputs, context.seed, "copies")
    rows = torch.from_numpy(np.sort(np.unique(marks, return_index=True)[1])).to(batch.targets.device)
    owners = context.clients[:1].to(batch.owners.device).repeat(len(rows))
    return Batch(batch.inputs[rows], batch.targets[rows], owners)
