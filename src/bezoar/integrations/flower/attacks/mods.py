"""Malicious clients as Flower Mods: ``@app.train(mods=[attack_mod(...)])``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Context, Message
from torch import Tensor

from bezoar.aggregation import Mean
from bezoar.aggregation.base import Context as ServerContext
from bezoar.attacks import AttackContext, DataAttack, Knowledge, Mimic, UpdateAttack
from bezoar.attacks.base import Attack, standalone
from bezoar.errors import ConfigError
from bezoar.integrations.coordinator import flat, named
from bezoar.integrations.flower.attacks.memory import read_state, write_state
from bezoar.integrations.flower.attacks.task import LocalTask
from bezoar.integrations.flower.attacks.training import training_mod
from bezoar.integrations.flower.attacks.turn import CallNext, Mod, Turn, model_in, rewritten, turn_of
from bezoar.integrations.flower.messages import arrays_of
from bezoar.integrations.gate import BUFFERS, Array, GateError, Template
from bezoar.integrations.malicious import Malicious, as_malicious
from bezoar.updates import DenseUpdates
from bezoar.updates.base import Needs


def scaling_mod(factor: float, who: Malicious | Iterable[int], *, buffers: Sequence[str] = BUFFERS) -> Mod:
    r"""Malicious clients train honestly and send their update times ``factor``.

    .. math:: \theta_i \leftarrow \theta^t + \gamma\,(\theta_i - \theta^t)

    gamma = -1 flips the sign; gamma = n / q, n clients of whom q attack, replaces the global model by theirs where the
    server takes a mean and honest updates cancel. Arrays that are no parameters (``buffers``) go as they are.

    Reference: Bagdasaryan et al.: How To Backdoor Federated Learning, AISTATS 2020 (boosting); Li et al.: RSA, AAAI
        2019 (sign flip).

    Raises:
        ConfigError: ``factor`` is not finite.

    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[scaling_mod(-1.0, Malicious(share=0.2, seed=1))])
    """
    if not math.isfinite(factor):
        raise ConfigError(f"scaling_mod: factor must be finite, got {factor}; NaN is attack_mod(NonFinite(), ...)")
    return _after_honest_training(lambda turn, context, weights, update: factor * update, as_malicious(who), buffers)


def attack_mod(
    attack: Attack,
    who: Malicious | Iterable[int],
    task: LocalTask | None = None,
    *,
    seed: int = 0,
    cohort: int | None = None,
    radius: float = math.inf,
    buffers: Sequence[str] = BUFFERS,
) -> Mod:
    """Malicious clients play an ``attack`` that needs nothing but their own data and what every client is sent.

    - Attacks on updates (``SignFlip(variant="own")``, ``InnerProduct``, ``Gaussian``, ``NonFinite``, ...) change what
      the app's own, honest training made.
    - Attacks on data (``LabelFlip``, ``BadNets``, ``DBA``, ``VirtualData``, ...) and attacks that train (``PGD``,
      ``ModelReplacement``, ``Neurotoxin``, ...) train by themselves on the data of ``task``.

    Replies have the names, the types and the metrics of honest ones. Every attacker acts by itself: it knows who the
    others are, and shares the seed with them, but no data. So colluding attackers send what all would send; attacks
    that pool samples (``ModelReplacement``) have their own only; and of what the others sent in the round before an
    attacker believes that they sent what it sent. Attacks that compare honest updates, or know the defence, need
    :class:`OmniscientGrid`.

    What an attack remembers is kept in ``context.state``; attackers with a task keep the last global model there too.

    Args:
        attack: one of :data:`bezoar.attacks.ATTACKS`, or your own.
        who: partition ids, or :class:`~bezoar.integrations.malicious.Malicious`.
        task: the app's training, for attackers that train.
        seed: of all that attackers draw; the same in all clients.
        cohort: clients that take part in a round, as attackers believe; None: all there are.
        radius: the defence's clipping radius, if attackers know it (``PGD`` then stays inside).
        buffers: name patterns of arrays that are no parameters; with a task its model says it.

    Raises:
        ConfigError: the attack needs a task, or can not be made by a client alone.

    >>> from bezoar.attacks import InnerProduct
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[attack_mod(InnerProduct(), who=(1, 4))])
    """
    check(attack, task)
    malicious = as_malicious(who)
    if needs_task(attack):
        assert task is not None
        return training_mod(attack, malicious, task, seed, cohort, radius)
    assert isinstance(attack, UpdateAttack)
    made, name = attack, f"bezoar.attack.{type(attack).__name__}"

    def change(turn: Turn, context: Context, weights: Tensor, update: Tensor) -> Tensor:
        alone = made.uses_own
        clients = torch.tensor([turn.client] if alone else turn.accomplices)
        view = DenseUpdates(update[None], torch.tensor([turn.client]))
        known: AttackContext = replace(
            standalone(view, cohort or turn.n, len(clients), seed),
            round=turn.number,
            clients=clients,
            weights=weights,
            radius=radius,
            own_rows=view if alone else None,
            server_context=ServerContext(round=turn.number, model=weights),
            state=read_state(context, name),
        )
        sent = made.send(view, Mean(), known)
        write_state(context, name, sent.state)
        return sent.rows.sent()[clients.tolist().index(turn.client)]

    return _after_honest_training(change, malicious, buffers)


def needs_task(attack: Attack) -> bool:
    """Whether attackers train by themselves."""
    if isinstance(attack, DataAttack):
        return True
    return isinstance(attack, UpdateAttack) and (attack.trains or attack.targeted or attack.least >= Knowledge.MODEL)


def check(attack: Attack, task: LocalTask | None) -> None:
    """Raise ``ConfigError`` unless a client alone can play ``attack``."""
    name = type(attack).__name__
    if not isinstance(attack, DataAttack | UpdateAttack):
        raise ConfigError(f"attack_mod: an attack on data or on updates is wanted, got {attack!r}")
    if isinstance(attack, UpdateAttack) and (
        attack.least >= Knowledge.HONEST_UPDATES or attack.needs != Needs.NONE or isinstance(attack, Mimic)
    ):
        raise ConfigError(f"{name} is made from other clients' updates, which no client sees: use OmniscientGrid")
    if needs_task(attack) and task is None:
        raise ConfigError(f"{name} trains, and a Mod can not reach the app's data: give task=LocalTask(...)")


#: (turn, client's context, global model [d], honest update [d]) -> the update that is sent [d].
_Change = Callable[[Turn, Context, Tensor, Tensor], Tensor]


def _after_honest_training(change: _Change, who: Malicious, buffers: Sequence[str]) -> Mod:
    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        turn = turn_of(message, context, who)
        if turn is None or not turn.active:
            return call_next(message, context)
        start = arrays_of(model_in(message.content)[1])
        template = Template.of(start, buffers)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        own, weights = _sent(reply, template), flat(start, template)
        sent = change(turn, context, weights, weights - flat(own, template))
        with np.errstate(over="ignore"):
            return rewritten(reply, {**own, **named(template, weights - sent)})

    return mod


def _sent(reply: Message, template: Template) -> dict[str, Array]:
    try:
        return template.check(arrays_of(model_in(reply.content)[1]))
    except GateError as error:
        raise ConfigError(f"the app's own reply is no model like the one it was sent: {error}") from None
