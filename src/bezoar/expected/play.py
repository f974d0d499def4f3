"""One training: everybody in every round, one rule, one attack."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.aggregation import Context, Rule
from bezoar.attacks import Attack, DataAttack, UpdateAttack
from bezoar.attacks.base import AttackContext
from bezoar.errors import DivergedError, HostileRowsError
from bezoar.expected.poison import context as attack_context
from bezoar.expected.tasks import Gradients, Problem
from bezoar.seeding import generator
from bezoar.updates import DenseUpdates

#: A model with a larger number has diverged: squares of its gradients would soon be no numbers.
LARGEST = 1e100

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """How a training goes: ``rounds`` steps of size ``lr``, clients with ``momentum``, all draws from ``seed``."""

    rounds: int
    lr: float
    momentum: float
    seed: int


@dataclass(frozen=True, eq=False)
class Trace:
    """What one honest set S saw of a training, one number a round: squared distance ``errors`` of the aggregate from
    the mean of what S sent, ``variances`` of that about the mean, and its squared norm ``gradients``."""

    errors: Floats
    variances: Floats
    gradients: Floats

    @property
    def worst_ratio(self) -> float | None:
        """The greatest error in units of the variance; None if all rounds had no variance."""
        seen = self.variances > 0
        return float((self.errors[seen] / self.variances[seen]).max()) if seen.any() else None


@dataclass(frozen=True, eq=False)
class Training:
    """The model that came out, the rounds without a step, and the trace for each honest set asked for."""

    theta: Tensor
    skipped: int
    diverged: bool
    traces: tuple[Trace, ...]


class Sender:
    """What all clients send: rows [n, d] by client id, round by round. ``bad`` are the ids of those who attack."""

    def __init__(self, problem: Problem, attack: Attack | None, bad: Sequence[int], steps: Steps) -> None:
        self.problem, self.steps, self.n = problem, steps, problem.n
        self.bad = torch.tensor(list(bad), dtype=torch.int64)
        self.attack = attack if isinstance(attack, UpdateAttack) and len(bad) else None
        everyone = range(problem.n)
        self._own = self.attack is not None and self.attack.uses_own
        if isinstance(attack, DataAttack) and len(bad):
            self._gradients: Gradients = problem.attacked(attack, bad, steps.seed)
        elif self.attack is not None and not self._own:
            self._gradients = problem.gradients([i for i in everyone if i not in set(bad)])
        else:
            self._gradients = problem.gradients(everyone)
        self._honest = torch.tensor([i for i in everyone if i not in set(bad)], dtype=torch.int64)
        self._momentum: Tensor | None = None
        self._state: State = {}
        self._past: dict[str, Any] = {}
        if self.attack is not None:
            self._context = replace(
                attack_context(problem.shards, self.bad, steps.seed), cohort=self.n, lr=steps.lr, server_lr=steps.lr
            )

    def rows(self, theta: Tensor, round: int, rule: Rule, memory: State, known: Context) -> tuple[Tensor, bool]:
        """The rows [n, d], and whether those of honest clients are finite."""
        rows = self._gradients.at(theta, round)
        beta = self.steps.momentum
        if beta:
            last = torch.zeros_like(rows) if self._momentum is None else self._momentum
            rows = self._momentum = beta * last + (1 - beta) * rows
        if self.attack is None:
            return rows, bool(torch.isfinite(rows.sum())) or bool(torch.isfinite(rows[self._honest]).all())
        honest = rows[self._honest] if self._own else rows
        if not (bool(torch.isfinite(honest.sum())) or bool(torch.isfinite(honest).all())):
            return rows, False
        view = DenseUpdates(honest, self._honest, self.problem.layout)
        situation: AttackContext = replace(
            self._context,
            round=round,
            weights=theta,
            own_rows=DenseUpdates(rows[self.bad], self.bad) if self._own else None,
            server_context=known,
            rule_state=memory,
            state=self._state,
            **self._past,
        )
        sent = self.attack.send(view, rule, situation)
        self._state = sent.state
        malicious = sent.rows.sent().to(rows.dtype)
        if self.attack.remembers:
            total = malicious.sum(0)
            self._past = {"previous_weights": theta.clone(), "previous_sent": total, "previous_cohort": self.n}
        found = torch.empty(self.n, honest.shape[1], dtype=rows.dtype)
        found[self._honest], found[self.bad] = honest, malicious
        return found, True


def play(
    problem: Problem, rule: Rule, attack: Attack | None, bad: Sequence[int], steps: Steps, honest: Masks
) -> Training:
    """Train from ``problem.start`` with the clients ``bad`` attacking; ``honest`` [K, n] says whom to trace.

    The attackers know everything: the honest rows of the round, the rule and its memory. A round in which the rule
    gives up (more hostile rows than it can leave out) is skipped, the model stays. A model that leaves all bounds
    (:data:`LARGEST`) ends the training.
    """
    sender = Sender(problem, attack, bad, steps)
    theta = problem.start.clone()
    ids = torch.arange(problem.n)
    claims = torch.bincount(problem.shards.train.owners, minlength=problem.n).double()
    memory: State = {}
    last: Tensor | None = None
    skipped, found = 0, np.full((3, len(honest), steps.rounds), np.nan)
    diverged = False
    groups = [np.flatnonzero(mask) for mask in honest]
    for t in range(1, steps.rounds + 1):
        known = Context(round=t, model=theta, client_weights=claims, last_aggregate=last)
        rows, finite = sender.rows(theta, t, rule, memory, known)
        if not finite:
            diverged = True
            break
        vector: Tensor | None = None
        try:
            answer = rule.aggregate(
                DenseUpdates(rows, ids, problem.layout), memory, known, generator(steps.seed, "defence", t)
            )
            vector, memory = answer.vector, answer.state
        except HostileRowsError:
            skipped += 1
        except DivergedError:
            diverged = True
            break
        _measure(rows, vector, groups, found[:, :, t - 1])
        if vector is None:
            continue
        last = vector
        theta = theta - steps.lr * vector
        if not float(theta.abs().max()) < LARGEST:
            diverged = True
            break
    played = found[:, :, ~np.isnan(found[1]).any(0)] if len(honest) else found
    return Training(theta, skipped, diverged, tuple(Trace(*played[:, k]) for k in range(len(honest))))


def play_once(rule: Rule, rows: Tensor, problem: Problem, seed: int) -> None:
    """Ask ``rule`` about honest rows [n, d] as in a first round. Raises ConfigError where it can not answer."""
    claims = torch.bincount(problem.shards.train.owners, minlength=problem.n).double()
    known = Context(round=1, model=problem.start, client_weights=claims)
    with contextlib.suppress(HostileRowsError, DivergedError):
        rule.aggregate(
            DenseUpdates(rows, torch.arange(problem.n), problem.layout), {}, known, generator(seed, "defence", 1)
        )


def _measure(rows: Tensor, vector: Tensor | None, groups: Sequence[NDArray[np.int64]], found: Floats) -> None:
    """Error, variance and squared norm of the mean for each of ``groups``, into ``found`` [3, K]."""
    sent = rows.numpy()
    answer = None if vector is None else vector.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        for k, group in enumerate(groups):
            own = sent if len(group) == len(sent) else sent[group]
            mean = own.mean(0, dtype=np.float64)
            centred = (own - mean).ravel()
            found[1, k] = np.dot(centred, centred) / len(group)
            found[2, k] = np.dot(mean, mean)
            if answer is not None:
                gap = answer - mean
                found[0, k] = np.dot(gap, gap)
