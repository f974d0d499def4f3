"""What malicious clients do: bezoar's Mods around honest training."""

from __future__ import annotations

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from bezoar.attacks import LabelFlip
from bezoar.integrations.flower.attacks import LocalTask, attack_mod, scaling_mod
from bezoar_digits import task

ATTACKS = ("none", "sign-flip", "label-flip")


def malicious(context: Context) -> range:
    """The malicious clients: those with the first partitions."""
    return range(round(float(context.run_config["malicious"]) * int(context.node_config["num-partitions"])))


def attack(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Malicious clients send the opposite of what they learned, four times as far, or learn wrong labels."""
    kind, who = context.run_config["attack"], malicious(context)
    if kind not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {kind!r}")
    if kind == "sign-flip":
        return scaling_mod(-4.0, who)(message, context, call_next)
    if kind == "label-flip":
        return attack_mod(LabelFlip(), who, training(context))(message, context, call_next)
    return call_next(message, context)


def training(context: Context) -> LocalTask:
    """The clients' training as attackers do it, on poisoned data."""
    run, seed = context.run_config, int(context.run_config["seed"])

    def held(of: Context) -> tuple[torch.Tensor, torch.Tensor]:
        clients, client = int(of.node_config["num-partitions"]), int(of.node_config["partition-id"])
        return task.samples(torch.from_numpy(task.federation(clients, float(run["alpha"]), seed).client(client)))

    return LocalTask(
        model=lambda: task.model(seed),
        data=held,
        classes=len(task.digits().classes),
        lr=float(run["lr"]),
        epochs=int(run["epochs"]),
        batch_size=int(run["batch-size"]),
    )
