"""What tests of attacks share: the digits app, its training told once more, and what clients answer in one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from bezoar.attacks import AttackContext, Batch, Goal
from bezoar.clients import LocalSGD, Scratch, Work
from bezoar.experiments.setup import cross_entropy
from bezoar.integrations.flower import InProcessGrid, LocalTask
from bezoar.seeding import derive
from tests.integrations.flower.apps import INPUTS, TARGETS, TRAIN, client, net

N = 10
BAD = (1, 4, 8)
LR = 0.2


def samples(partition: int, n: int = N) -> tuple[Tensor, Tensor]:
    part = slice(partition, TRAIN, n)
    return INPUTS[part], TARGETS[part]


def data(context: Context) -> tuple[Tensor, Tensor]:
    return samples(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


def picture_data(context: Context) -> tuple[Tensor, Tensor]:
    inputs, targets = data(context)
    return inputs.view(-1, 1, 8, 8), targets


def picture_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), *net())


def task(pictures: bool = False, **options: Any) -> LocalTask:
    """The training of the app's clients, on rows of 64 numbers or on pictures."""
    model, own = (picture_net, picture_data) if pictures else (net, data)
    return LocalTask(**{"model": model, "data": own, "classes": 10, "lr": LR, "batch_size": 16, **options})


def goal(pictures: bool = False) -> Goal:
    inputs = INPUTS[TRAIN : TRAIN + 40]
    return Goal(inputs.view(-1, 1, 8, 8) if pictures else inputs, (TARGETS[TRAIN : TRAIN + 40] + 1) % 10)


def weights() -> Tensor:
    """The initial model [d]."""
    return Scratch(net()).weights


def messages(grid: Grid, number: int = 1, arrays: ArrayRecord | None = None) -> list[Message]:
    record = ArrayRecord(net().state_dict()) if arrays is None else arrays
    content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": number})})
    return [Message(content, message_type="train", dst_node_id=node) for node in grid.get_node_ids()]


def answers(mods: Sequence[Any] = (), number: int = 1, seed: int = 0, norm: bool = False) -> dict[int, Message]:
    """What every client of the app with ``mods`` answers in one round from the initial model, by partition."""
    grid = InProcessGrid(client(mods=list(mods), norm=norm), N, seed=seed)
    sent = messages(grid, number, ArrayRecord(net(norm).state_dict()))
    return by_partition(grid, grid.send_and_receive(sent))


def by_partition(grid: InProcessGrid, replies: Any) -> dict[int, Message]:
    return {grid.nodes[reply.metadata.src_node_id].number: reply for reply in replies}


def arrays_in(reply: Message) -> ArrayRecord:
    record = reply.content["arrays"]
    assert isinstance(record, ArrayRecord)
    return record


def update(reply: Message) -> Tensor:
    """What a client sent, as an update in descent sign [d]."""
    return weights() - torch.cat([torch.from_numpy(array.numpy()).reshape(-1) for array in arrays_in(reply).values()])


def updates(replies: Mapping[int, Message]) -> Tensor:
    """Updates [n, d] in the order of partitions."""
    return torch.stack([update(replies[client]) for client in sorted(replies)])


def metrics(reply: Message) -> dict[str, Any]:
    return {name: dict(record) for name, record in reply.content.metric_records.items()}


def joint_batch(bad: Sequence[int] = BAD, pictures: bool = False) -> Batch:
    """The samples of all attackers, as the simulator hands them to an attack."""
    parts = [samples(c) for c in bad]
    inputs, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    owners = torch.cat([torch.full((len(part[1]),), c) for part, c in zip(parts, bad, strict=True)])
    return Batch(inputs.view(-1, 1, 8, 8) if pictures else inputs, targets, owners)


def simulator_context(bad: Sequence[int] = BAD, pictures: bool = False, seed: int = 0, **more: Any) -> AttackContext:
    """What the simulator would tell attackers in the first round."""
    model = picture_net() if pictures else net()
    low, high = (torch.full((1, 1, 1), v) if pictures else None for v in (0.0, 1.0))
    known: dict[str, Any] = {
        "round": 1,
        "seed": seed,
        "clients": torch.tensor(bad),
        "weights": weights(),
        "scratch": Scratch(model),
        "loss_fn": cross_entropy,
        "radius": float("inf"),
        "goal": None,
        "cohort": N,
        "classes": 10,
        "lr": LR,
        "update_lr": LR,
        "low": low,
        "high": high,
        "mean": torch.zeros(1, 1, 1) if pictures else torch.zeros(1),
        "std": torch.ones(1, 1, 1) if pictures else torch.ones(1),
    }
    return AttackContext(**{**known, **more})


def simulated_training(batch: Batch, pictures: bool = False, seed: int = 0, **options: Any) -> Tensor:
    """The simulator's own local training on ``batch``: updates [owners, d]."""
    model = picture_net() if pictures else net()
    scratch = Scratch(model)
    work = Work(
        scratch.module,
        scratch.weights.clone(),
        scratch,
        cross_entropy,
        batch.inputs,
        batch.targets,
        batch.owners,
        LR,
        1,
        derive(seed, "poisoned training"),
    )
    return LocalSGD(**{"batch_size": 16, **options}).updates(work).materialise()
