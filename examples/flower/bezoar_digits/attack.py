"""What malicious clients do: a Mod around honest training."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

ATTACKS = ("none", "sign-flip")


def is_malicious(context: Context) -> bool:
    """Whether this client is one of the malicious: those with the first partitions are."""
    n = int(context.node_config["num-partitions"])
    return int(context.node_config["partition-id"]) < round(float(context.run_config["malicious"]) * n)


def attack(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Malicious clients send the opposite of what they learned, four times as far."""
    kind = context.run_config["attack"]
    if kind not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {kind!r}")
    before = {name: array.numpy() for name, array in _only(message).items()}
    reply = call_next(message, context)
    if kind == "none" or not is_malicious(context) or reply.has_error():
        return reply
    after = _only(reply)
    for name, start in before.items():
        after[name] = Array(start - 4 * (after[name].numpy() - start))
    return reply


def _only(message: Message) -> ArrayRecord:
    (record,) = message.content.array_records.values()
    return record
