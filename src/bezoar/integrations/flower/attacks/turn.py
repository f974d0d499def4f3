"""Whether it is an attacker's turn when a message comes to a client, and what it found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from bezoar.errors import ConfigError
from bezoar.integrations.flower.messages import arrays_of, record_of
from bezoar.integrations.flower.roster import PARTITION
from bezoar.integrations.gate import Array
from bezoar.integrations.malicious import Malicious

CallNext = Callable[[Message, Context], Message]

#: What Flower calls a Mod: (message, context, the app) -> reply.
Mod = Callable[[Message, Context, CallNext], Message]


@dataclass(frozen=True)
class Turn:
    """A malicious client in a training round.

    Attributes:
        client: its partition id.
        number: the round.
        accomplices: all malicious clients, itself included, ascending.
        n: clients in the federation.
        active: whether it attacks in this round.
    """

    client: int
    number: int
    accomplices: tuple[int, ...]
    n: int
    active: bool


def turn_of(message: Message, context: Context, who: Malicious) -> Turn | None:
    """The turn of the client with this ``context``; None if it is honest, or the message asks for no training.

    Raises:
        ConfigError: the client does not know who it is, or which round it is.
    """
    if not is_training(message):
        return None
    client = context.node_config.get(PARTITION)
    if not isinstance(client, int):
        raise ConfigError(f"attacks go by partition ids, and this client's node_config has no {PARTITION!r}")
    total = who.n or context.node_config.get("num-partitions")
    if who.clients is not None and total is None:
        total = max(client, *who.clients, 0) + 1
    if not isinstance(total, int):
        raise ConfigError("a count or share of malicious clients needs Malicious(n=...): node_config has no number")
    accomplices = who.of(total)
    if client not in accomplices:
        return None
    number = round_of(message.content)
    if number is None:
        raise ConfigError("the message names no round: attacks need 'server-round' in its config record")
    return Turn(client, number, accomplices, total, who.active(number))


def is_training(message: Message) -> bool:
    """Whether the message asks for training, under whatever action name."""
    return message.metadata.message_type.split(".")[0] == "train"


def round_of(content: RecordDict) -> int | None:
    """The round that a server's message names, None if it names none."""
    for config in content.config_records.values():
        number = config.get("server-round")
        if isinstance(number, int):
            return number
    return None


def model_in(content: RecordDict, key: str = "arrays") -> tuple[str, ArrayRecord]:
    """Name and record of the model in a message: the only array record, or the one called ``key``.

    Raises:
        ConfigError: there is none, or several and none is called so.
    """
    records = dict(content.array_records)
    if key in records:
        return key, records[key]
    if len(records) != 1:
        raise ConfigError(f"the message holds {len(records)} array records and none is called {key!r}")
    return next(iter(records.items()))


def rewritten(reply: Message, arrays: Mapping[str, Array]) -> Message:
    """``reply`` with ``arrays`` in place of its own of these names, in their order and types.

    What does not fit a type becomes infinite, without a warning.
    """
    name, record = model_in(reply.content)
    before = arrays_of(record)
    reply.content[name] = record_of({key: fitted(arrays.get(key, value), value) for key, value in before.items()})
    return reply


def fitted(value: Array, like: Array) -> Array:
    """``value`` in the type and shape of ``like``."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(value.astype(like.dtype)).reshape(like.shape)
