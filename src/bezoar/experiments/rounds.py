"""One round of a federation: cohort -> updates -> attack -> aggregate -> step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation import Context, Rule
from bezoar.attacks import AttackContext, DataAttack, UpdateAttack
from bezoar.clients import Work, accumulate
from bezoar.data.dataset import Indices
from bezoar.errors import DivergedError, HostileRowsError
from bezoar.experiments.setup import Setup, as_input, cross_entropy
from bezoar.seeding import derive, generator
from bezoar.updates import Updates


@dataclass
class State:
    """What changes from round to round, beside the flat model in the setup.

    Attributes:
        round: rounds played.
        server: what the server remembers.
        rule: what the rule remembers.
        clients: ``momentum`` of all clients [n, d] and of the server's own update, ``root`` [d], where there is any.
        last: ``aggregate`` [d], the rule's answer in the last round that was not skipped.
    """

    round: int = 0
    server: Mapping[str, Tensor] = field(default_factory=dict)
    rule: Mapping[str, Tensor] = field(default_factory=dict)
    clients: Mapping[str, Tensor] = field(default_factory=dict)
    last: Mapping[str, Tensor] = field(default_factory=dict)


class Clock:
    """Seconds spent in the phases of a round."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()
        self.seconds: dict[str, float] = {}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def stop(self, phase: str) -> None:
        """Book the time since the last stop on ``phase``."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def play(setup: Setup, state: State) -> tuple[State, dict[str, Any], dict[str, float]]:
    """One round: the new state, the round's record and the seconds of its phases.

    The model in ``setup`` moves in place. Values in the record may be tensors of one element; they are read when
    the record is written, not in the round.

    Raises:
        DivergedError: the model is no longer finite.
    """
    experiment, t = setup.experiment, state.round + 1
    clock = Clock(setup.device)
    # Layers that draw (dropout) use the global generator; seeding it each round makes rounds independent.
    torch.manual_seed(derive(experiment.seed, "round", t))
    lr = experiment.learning_rate.at(t, experiment.rounds)
    cohort = experiment.sampling.draw(
        setup.federation.n, t - 1, experiment.seed, setup.malicious, experiment.adversary.per_round
    )
    attackers = np.intersect1d(cohort, setup.malicious, assume_unique=True)
    attacking = experiment.attack is not None and experiment.adversary.active(t) and len(attackers) > 0
    rule = experiment.defence.rule(lr)
    record: dict[str, Any] = {
        "kind": "round",
        "round": t,
        "lr": lr,
        "attackers": len(attackers),
        "attacking": attacking,
        "cohort": len(cohort),
        "clipped": None,
        "aggregate_norm": None,
        "update_norm": None,
        "excluded": 0,
        "skipped": None,
    }
    memory = state.clients
    try:
        updates, memory = _updates(setup, memory, cohort, attackers if attacking else attackers[:0], lr, t)
        clock.stop("clients")
        if attacking and isinstance(experiment.attack, UpdateAttack):
            updates = _attacked(setup, experiment.attack, rule, updates, attackers, lr, t)
            clock.stop("attack")
        root, memory = _root(setup, memory, lr, t) if rule.uses_root else (None, memory)
        context = Context(
            round=t,
            model=setup.weights,
            client_weights=_samples_held(setup, updates),
            root_gradient=root,
            last_aggregate=state.last.get("aggregate"),
        )
        draws = generator(experiment.seed, "defence", t)
        answer = rule.aggregate(updates, state.rule, context, draws)
    except HostileRowsError as error:
        honest = np.setdiff1d(cohort, attackers if attacking else attackers[:0], assume_unique=True)
        # Rows are in the order of client ids, as the cohort is. Attackers alone can not end a run.
        if len(honest) > 0 and np.isin(honest, cohort[list(error.rows)]).all():
            raise DivergedError(f"no honest update is finite in round {t}") from None
        clock.stop("aggregation")
        record["skipped"] = str(error)
        record["excluded"] = len(error.rows)
        # Clients do not know that the server gave up on the round: their momentum goes on.
        return State(t, state.server, state.rule, memory, state.last), record, clock.seconds
    vector = answer.vector
    for i, part in enumerate(experiment.defence.post):
        vector = part(vector, generator(experiment.seed, "post", t, i))
    clock.stop("aggregation")
    try:
        step = experiment.defence.server.step(vector, experiment.clients.server_lr(lr), state.server)
    except DivergedError as error:
        raise DivergedError(f"round {t}: {error}") from None
    step.apply_(setup.weights)
    clock.stop("server")
    record["aggregate_norm"] = vector.norm()
    record["update_norm"] = step.values.norm()
    record["excluded"] = len(answer.excluded)
    if answer.scales is not None:
        # Rows that were left out before the pipeline have scale 0.
        present = answer.scales > 0
        record["clipped"] = (present & (answer.scales < 1)).sum() / present.sum().clamp(min=1)
    return State(t, step.state, answer.state, memory, {"aggregate": answer.vector}), record, clock.seconds


def _samples_held(setup: Setup, updates: Updates) -> Tensor:
    """Number of samples of every row's client [n] float64; attackers have theirs as well."""
    counts = torch.from_numpy(setup.federation.counts())
    return counts[updates.clients.cpu()].to(setup.device, torch.float64)


def _updates(
    setup: Setup, memory: Mapping[str, Tensor], cohort: Indices, attackers: Indices, lr: float, t: int
) -> tuple[Updates, Mapping[str, Tensor]]:
    """What the cohort sends, rows in the order of client ids, and the clients' memory.

    Attackers that replace their rows are left out; their momentum stands still meanwhile.
    """
    experiment, attack = setup.experiment, setup.experiment.attack
    sends_rows = isinstance(attack, UpdateAttack) and len(attackers) > 0
    honest = np.setdiff1d(cohort, attackers, assume_unique=True) if sends_rows else cohort
    if len(honest) == 0:
        raise HostileRowsError(f"round {t}: all {len(cohort)} clients of the cohort are malicious", ())
    dataset = setup.federation.dataset
    rows, owners = experiment.clients.chosen(*setup.federation.samples_of(cohort), experiment.seed, t)
    present = torch.from_numpy(np.isin(owners, honest))
    augment = generator(experiment.seed, "augment", t) if experiment.data.augment else None
    # Augmented before attackers leave, so that honest samples look the same with and without an attack.
    batch = dataset.batch(dataset.train, rows, augment)
    targets = dataset.train.targets[torch.from_numpy(rows)]
    if len(honest) < len(cohort):
        batch, targets, owners = batch[present], targets[present], owners[present.numpy()]
    inputs = as_input(batch, setup.device)
    if isinstance(attack, DataAttack) and len(attackers) > 0:
        poisoned = torch.from_numpy(np.isin(owners, attackers))
        draws = generator(experiment.seed, "attack", t)
        targets = targets.clone()
        targets[poisoned] = attack.labels(targets[poisoned], len(dataset.classes), draws)
    setup.model.train()
    updates = experiment.clients.updates(_work(setup, inputs, targets, owners, lr, t))
    if not experiment.clients.momentum:
        return updates, memory
    sent, momentum = accumulate(updates, memory.get("momentum"), experiment.clients.momentum, setup.federation.n)
    return sent, {**memory, "momentum": momentum}


def _work(setup: Setup, inputs: Tensor, targets: Tensor, owners: Indices, lr: float, t: int) -> Work:
    return Work(
        setup.model,
        setup.weights,
        setup.scratch,
        cross_entropy,
        inputs,
        targets.to(setup.device),
        torch.from_numpy(owners).to(setup.device),
        lr,
        t,
        setup.experiment.seed,
    )


def _attacked(
    setup: Setup, attack: UpdateAttack, rule: Rule, honest: Updates, attackers: Indices, lr: float, t: int
) -> Updates:
    """The honest updates with the attackers' among them."""
    setup.scratch.module.train()
    context = AttackContext(
        t,
        setup.experiment.seed,
        torch.from_numpy(attackers),
        setup.weights,
        setup.scratch,
        cross_entropy,
        setup.experiment.defence.radius(lr),
        setup.goal,
        len(honest) + len(attackers),
    )
    return attack.rows(honest, rule, context)


#: The server's id where it works like a client.
_SERVER = -1


def _root(setup: Setup, memory: Mapping[str, Tensor], lr: float, t: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The server's own update [d] from the samples that it trusts, made as any client's, and the memory.

    Raises:
        DivergedError: it is not finite.
    """
    experiment, dataset = setup.experiment, setup.federation.dataset
    owners = np.full(len(setup.root), _SERVER, dtype=np.int64)
    rows, owners = experiment.clients.chosen(setup.root, owners, experiment.seed, t)
    augment = generator(experiment.seed, "augment root", t) if experiment.data.augment else None
    inputs = as_input(dataset.batch(dataset.train, rows, augment), setup.device)
    targets = dataset.train.targets[torch.from_numpy(rows)]
    setup.model.train()
    one = experiment.clients.updates(_work(setup, inputs, targets, owners, lr, t))
    root = one.combine(torch.ones(1, dtype=torch.float64, device=setup.device))
    if not torch.isfinite(root).all():
        raise DivergedError(f"the server's own update is not finite in round {t}")
    beta = experiment.clients.momentum
    if beta:
        root = (1 - beta) * root + (beta * memory["root"] if "root" in memory else 0.0)
        memory = {**memory, "root": root}
    return root, memory


def evaluate(setup: Setup, t: int) -> dict[str, Any]:
    """Test the global model: the record of one evaluation.

    ``test_accuracy`` counts the whole test set with its true labels, ``test_accuracy_clean`` leaves the attackers'
    aux points out, ``attack_accuracy`` is the share of aux points that get the attackers' label.
    """
    dataset, device = setup.federation.dataset, setup.device
    targets = dataset.test.targets
    predicted = torch.empty(len(targets), dtype=torch.int64)
    loss = 0.0
    setup.model.eval()
    with torch.no_grad():
        for start in range(0, len(targets), setup.experiment.evaluation.batch_size):
            stop = start + setup.experiment.evaluation.batch_size
            outputs = setup.model(as_input(dataset.batch(dataset.test, slice(start, stop)), device))
            loss += float(cross_entropy(outputs, targets[start:stop].to(device)).double().sum())
            predicted[start:stop] = outputs.argmax(1).cpu()
    right = predicted == targets
    clean = torch.ones(len(targets), dtype=torch.bool)
    attack_accuracy = None
    if setup.goal is not None:
        rows = torch.from_numpy(setup.aux)
        clean[rows] = False
        attack_accuracy = float((predicted[rows] == setup.goal.labels.cpu()).double().mean())
    per_class = [float(right[targets == c].double().mean()) for c in range(len(dataset.classes))]
    mean_loss = loss / len(targets)
    return {
        "kind": "evaluation",
        "round": t,
        "test_accuracy": float(right.double().mean()),
        "test_accuracy_clean": float(right[clean].double().mean()),
        "test_loss": mean_loss if np.isfinite(mean_loss) else None,
        "attack_accuracy": attack_accuracy,
        "per_class_accuracy": per_class,
    }
