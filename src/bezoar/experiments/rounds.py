"""One round of a federation: cohort -> updates -> attack -> aggregate -> step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.data.dataset import Indices, as_input
from bezoar.errors import DivergedError, HostileRowsError, SuspectsError
from bezoar.experiments.adversary import Mind, caught, measured, play_clients, remembered
from bezoar.experiments.setup import Setup, cross_entropy
from bezoar.experiments.work import Round, root_update
from bezoar.seeding import derive, generator
from bezoar.servers.traffic import dense, fetch_, move_, open_ledger

#: With more classes than this an evaluation does not record the accuracy of each: a vocabulary has 50,000.
MOST_CLASSES = 200


@dataclass(frozen=True)
class State:
    """What changes from round to round, beside the flat model in the setup. The mappings are never changed, except
    for ``traffic``, which moves in place as the model does.

    Attributes:
        round: rounds played.
        server: what the server remembers.
        rule: what the rule remembers.
        clients: ``momentum`` of all clients [n, d] and of the server's own update, ``root`` [d], where there is any.
        last: ``aggregate`` [d], the rule's answer in the last round that was not skipped.
        attack: what the attack remembers.
        past: ``weights`` [d] before the last step, ``sent`` [d], the sum of what the attackers sent then, and
            ``cohort``, for attacks that want to know.
        traffic: the ledger of what clients have fetched, where the server's steps are sparse.
    """

    round: int = 0
    server: Mapping[str, Tensor] = field(default_factory=dict)
    rule: Mapping[str, Tensor] = field(default_factory=dict)
    clients: Mapping[str, Tensor] = field(default_factory=dict)
    last: Mapping[str, Tensor] = field(default_factory=dict)
    attack: Mapping[str, Tensor] = field(default_factory=dict)
    past: Mapping[str, Tensor] = field(default_factory=dict)
    traffic: Mapping[str, Tensor] = field(default_factory=dict)


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
        SuspectsError: more clients look hostile than declared, and the defence stops then.
    """
    experiment, t = setup.experiment, state.round + 1
    clock = Clock(setup.device)
    # Layers that draw (dropout) use the global generator; seeding it each round makes rounds independent.
    torch.manual_seed(derive(experiment.seed, "round", t))
    lr = experiment.learning_rate.at(t, experiment.rounds)
    cohort = setup.draw(t)
    played = experiment.sampling.plays(len(cohort))
    present = np.intersect1d(cohort, setup.malicious, assume_unique=True)
    attackers = np.empty(0, dtype=np.int64)
    if experiment.attack is not None and experiment.adversary.active(t):
        attackers = np.concatenate([present, setup.sybils])
        cohort = np.concatenate([cohort, setup.sybils])
    rule = experiment.defence.rule(lr)
    ledger, up, down = _transfers(setup, state, cohort if played else cohort[:0])
    record: dict[str, Any] = {
        "kind": "round",
        "round": t,
        "lr": lr,
        "attackers": len(attackers) if len(attackers) else len(present),
        "attacking": len(attackers) > 0,
        "cohort": len(cohort),
        "bytes_up": up,
        "bytes_down": down,
        "clipped": None,
        "aggregate_norm": None,
        "update_norm": None,
        "excluded": 0,
        "skipped": None,
    }
    # What the state becomes if the server gives up on the round: clients do not know, their momentum goes on.
    after = replace(state, round=t, past={}, traffic=ledger)
    if not played:
        clock.stop("aggregation")
        _finish_model(setup, t)
        left = f"{len(cohort)} clients" if len(cohort) > 1 else "one client"
        record |= {"skipped": f"tail of an epoch: only {left} left", "attackers": 0, "attacking": False}
        return after, record, clock.seconds
    try:
        root: Tensor | None = None
        if rule.uses_root:
            root, memory = root_update(setup, after.clients, lr, t)
            after = replace(after, clients=memory)
        at = Round(setup, t, lr, cohort, attackers, rule, root, state.last.get("aggregate"))
        cast = play_clients(at, after.clients, Mind(state.attack, state.past, state.rule, state.server), clock.stop)
        after = replace(after, clients=cast.memory, attack=cast.attack)
        updates, context = cast.updates, at.server_context(cast.claims)
        answer = rule.aggregate(updates, state.rule, context, generator(experiment.seed, "defence", t))
    except HostileRowsError as error:
        rows = cohort[list(error.rows)]
        others = np.setdiff1d(cohort, attackers, assume_unique=True)
        # Rows are in the order of client ids, as the cohort is. Attackers alone can not end a run.
        if len(others) > 0 and np.isin(others, rows).all():
            raise DivergedError(f"no honest update is finite in round {t}") from None
        clock.stop("aggregation")
        if experiment.defence.more_than_f == "stop":
            raise SuspectsError(f"round {t}: {error}") from None
        record["skipped"] = str(error)
        record["excluded"] = len(error.rows)
        _finish_model(setup, t)
        return after, record, clock.seconds
    vector = answer.vector
    for i, part in enumerate(experiment.defence.post):
        vector = part(vector, generator(experiment.seed, "post", t, i))
    clock.stop("aggregation")
    record |= {
        "attack": dict(cast.report),
        **caught(answer, updates, attackers, cast.claims if rule.weighted else None),
    }
    if experiment.evaluation.measure:
        record |= measured(answer.vector, updates, attackers)
    why = experiment.defence.refusal(answer)
    if why is not None:
        if experiment.defence.more_than_f == "stop":
            raise SuspectsError(f"round {t}: {why}")
        record |= {"skipped": why, "excluded": len(answer.excluded)}
        _finish_model(setup, t)
        return after, record, clock.seconds
    if experiment.attack is not None and experiment.attack.remembers:
        after = replace(after, past=remembered(setup.weights, updates, attackers))
    try:
        step = experiment.defence.server.step(vector, experiment.clients.server_lr(lr), state.server)
    except DivergedError as error:
        raise DivergedError(f"round {t}: {error}") from None
    step.apply_(setup.weights)
    _finish_model(setup, t)
    if ledger:
        # Of a step of zero, at a rate of zero for instance, nobody has to hear.
        move_(ledger, None if step.index is None else step.index[step.values != 0], t)
    clock.stop("server")
    record["aggregate_norm"] = vector.norm()
    record["update_norm"] = step.values.norm()
    record["excluded"] = len(answer.excluded)
    record["clipped"] = answer.clipped
    after = replace(after, server=step.state, rule=answer.state, last={"aggregate": answer.vector})
    return after, record, clock.seconds


def _finish_model(setup: Setup, t: int) -> None:
    """What the server does with the model itself at the end of a round, also of one that was skipped or not played: a
    certificate that counts on its noise counts on it in every round."""
    for i, part in enumerate(setup.experiment.defence.model_post):
        with torch.no_grad():
            setup.weights.copy_(part(setup.weights, t, generator(setup.experiment.seed, "model post", t, i)))


def _transfers(setup: Setup, state: State, cohort: Indices) -> tuple[Mapping[str, Tensor], int, int | Tensor | None]:
    """The ledger of downloads, and the bytes that the clients of the next round send and fetch.

    The latter are None where a run goes on from a checkpoint without a ledger: who has which model is not known then.
    """
    t, d = state.round + 1, setup.weights.numel()
    traffic = setup.experiment.defence.server.traffic(d)
    up = traffic.up * len(cohort)
    # What is done to the model itself moves all of it.
    down = dense(d) if setup.experiment.defence.model_post else traffic.down
    if down >= dense(d):
        return {}, up, down * len(cohort)
    ledger = state.traffic
    if t == 1:
        ledger = open_ledger(d, setup.clients, setup.experiment.rounds, setup.device)
    if not ledger:
        return {}, up, None
    return ledger, up, fetch_(ledger, torch.from_numpy(cohort).to(setup.device), t).sum()


def predicted_classes(setup: Setup, inputs: Tensor) -> Tensor:
    """The class that the model, in evaluation mode, gives every input [N] as the model takes it."""
    with torch.no_grad():
        parts = torch.split(inputs, setup.experiment.evaluation.batch_size)
        return torch.cat([setup.model(part).argmax(1).cpu() for part in parts])


def evaluate(setup: Setup, t: int) -> dict[str, Any]:
    """Test the global model: the record of one evaluation.

    ``test_accuracy`` counts the whole test set with its true labels, ``test_accuracy_clean`` leaves the attackers'
    aux points out, ``attack_accuracy`` is the share of aux points that get the attackers' label, and
    ``per_class_accuracy`` is empty with more than :data:`MOST_CLASSES` classes.
    """
    dataset, device = setup.federation.dataset, setup.device
    targets, ranks = dataset.test.targets, setup.ranks
    predicted = torch.zeros(len(targets), dtype=torch.int64)
    size = setup.experiment.evaluation.batch_size
    starts = range(0, len(targets), size)
    losses = torch.zeros(len(starts), dtype=torch.float64)
    setup.model.eval()
    with torch.no_grad():
        # Every rank takes some of the batches, which are those of one process.
        for i in range(ranks.rank, len(starts), ranks.size):
            part = slice(starts[i], starts[i] + size)
            outputs = setup.model(as_input(dataset.batch(dataset.test, part), device))
            losses[i] = cross_entropy(outputs, targets[part].to(device)).double().sum()
            predicted[part] = outputs.argmax(1).cpu()
    predicted = ranks.total(predicted)
    loss = sum(ranks.total(losses).tolist())
    right = predicted == targets
    clean = torch.ones(len(targets), dtype=torch.bool)
    attack_accuracy = None
    if setup.goal is not None:
        if setup.goal.rows is not None:
            clean[torch.from_numpy(setup.goal.rows)] = False
        wanted = setup.goal.labels.cpu()
        got = predicted_classes(setup, setup.goal.inputs)
        attack_accuracy = float((got == wanted).double().mean())
    classes = len(dataset.classes)
    per_class: list[float] = []
    if classes <= MOST_CLASSES:
        counts, hits = (torch.bincount(part, minlength=classes).double() for part in (targets, targets[right]))
        per_class = (hits / counts).tolist()
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
