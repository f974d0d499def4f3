"""Attackers in a Flower client that train by themselves, on poisoned data or on what they want misclassified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from bezoar.aggregation import Mean
from bezoar.aggregation.base import Context as ServerContext
from bezoar.attacks import AttackContext, DataAttack, UpdateAttack
from bezoar.attacks.base import Attack, Batch
from bezoar.integrations.flower.attacks.memory import read_state, write_state
from bezoar.integrations.flower.attacks.task import LocalModel, LocalTask
from bezoar.integrations.flower.attacks.turn import CallNext, Mod, Turn, fitted, model_in, rewritten, turn_of
from bezoar.integrations.flower.messages import arrays_of, record_of
from bezoar.integrations.malicious import Malicious
from bezoar.seeding import derive
from bezoar.updates import DenseUpdates
from bezoar.updates.gradients import layout_of

#: Where an attacker keeps what is not the attack's own, in its state.
_PAST = "past."


def training_mod(attack: Attack, who: Malicious, task: LocalTask, seed: int, cohort: int | None, radius: float) -> Mod:
    """The Mod of :func:`attack_mod` for attacks that train."""
    if isinstance(attack, UpdateAttack) and getattr(attack, "collude", True) is False and attack.trains:
        # With its own samples alone an attacker that pools samples is one that does not.
        attack = replace(attack, collude=True)  # type: ignore[call-arg]
    name = f"bezoar.attack.{type(attack).__name__}"

    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        turn = turn_of(message, context, who)
        if turn is None:
            return call_next(message, context)
        key, record = model_in(message.content)
        start = arrays_of(record)
        local, memory = task.load(start), read_state(context, name)
        if not turn.active:
            write_state(context, name, {**_own(memory, True), **_noted(turn, local.start, None)})
            return call_next(message, context)
        batch = task.batch(context, turn.client, local.start.device)
        known = _known(turn, task, local, batch, memory, seed, cohort or turn.n, radius)
        honest = call_next(message, context) if task.metrics is None else None
        if honest is not None and honest.has_error():
            return honest
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "attack mod", turn.number, turn.client))
            sent, state, size = _played(attack, turn, task, local, known, batch, honest, seed)
        kept = {f"attack.{k}": value for k, value in state.items()}
        write_state(context, name, {**kept, **_noted(turn, local.start, sent * len(turn.accomplices))})
        # Who does not train on data has measured nothing on them either.
        arrays = local.arrays(sent, buffers=honest is None or isinstance(attack, DataAttack))
        if honest is not None:
            return rewritten(honest, arrays)
        assert task.metrics is not None
        model = record_of({k: fitted(arrays[k], value) for k, value in start.items()})
        report = MetricRecord(dict(task.metrics(size)))
        return Message(RecordDict({key: model, "metrics": report}), reply_to=message)

    return mod


def _played(
    attack: Attack,
    turn: Turn,
    task: LocalTask,
    local: LocalModel,
    known: AttackContext,
    batch: Batch,
    honest: Message | None,
    seed: int,
) -> tuple[Tensor, Mapping[str, Tensor], int]:
    """The update that is sent [d], what the attack remembers, and how many samples it was made of."""
    if isinstance(attack, DataAttack):
        poisoned = attack.poison(batch, known)
        mine = poisoned.batch.select(poisoned.batch.owners == turn.client)
        return task.train(local, mine, turn.client, turn.number, seed), poisoned.state, len(mine)
    assert isinstance(attack, UpdateAttack)
    row = torch.zeros_like(local.start)
    if honest is not None:
        row = local.update(arrays_of(model_in(honest.content)[1]))
    view = DenseUpdates(row[None], torch.tensor([turn.client]), layout_of(local.scratch.module))
    # Attackers see their own honest update where they see any.
    sent = attack.send(view, Mean(), known)
    return sent.rows.sent()[turn.accomplices.index(turn.client)].clone(), sent.state, len(batch)


def _known(
    turn: Turn,
    task: LocalTask,
    local: LocalModel,
    batch: Batch,
    memory: Mapping[str, Tensor],
    seed: int,
    cohort: int,
    radius: float,
) -> AttackContext:
    """What the attacker knows: model, samples, accomplices, and the round before if it was asked in that."""
    past = {k.removeprefix(_PAST): value for k, value in memory.items() if k.startswith(_PAST)}
    there = "round" in past and int(past["round"]) == turn.number - 1
    before = past["weights"].to(local.start) if there else None
    # The move of the model: what the rule answered, where the server just subtracts it.
    last = None if before is None else (before - local.start) / task.server_lr
    return AttackContext(
        round=turn.number,
        seed=seed,
        clients=torch.tensor(turn.accomplices),
        weights=local.start,
        scratch=local.scratch,
        loss_fn=task.loss,
        radius=radius,
        goal=task.goal,
        cohort=cohort,
        classes=task.classes,
        lr=task.lr,
        update_lr=task.lr,
        server_lr=task.server_lr,
        own=batch,
        **task.pixels(batch),
        server_context=ServerContext(round=turn.number, model=local.start, last_aggregate=last),
        state=_own(memory, False),
        previous_weights=before,
        previous_sent=past["sent"].to(local.start) if there else None,
        previous_cohort=cohort if there else 0,
    )


def _own(memory: Mapping[str, Tensor], prefixed: bool) -> dict[str, Tensor]:
    """The attack's own memory, without what is noted beside it."""
    found = {key: value for key, value in memory.items() if key.startswith("attack.")}
    return found if prefixed else {key.removeprefix("attack."): value for key, value in found.items()}


def _noted(turn: Turn, weights: Tensor, sent: Tensor | None) -> dict[str, Tensor]:
    """This round, for the next one."""
    return {
        f"{_PAST}round": torch.tensor(turn.number),
        f"{_PAST}weights": weights,
        f"{_PAST}sent": torch.zeros_like(weights) if sent is None else sent,
    }
