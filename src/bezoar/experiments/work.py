"""What the clients of one round compute: samples in, updates out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation import Context, Rule
from bezoar.attacks import Batch
from bezoar.attacks.base import Holdings
from bezoar.clients import Work, accumulate
from bezoar.data.dataset import Indices, as_input
from bezoar.errors import DivergedError
from bezoar.experiments.setup import Setup, cross_entropy
from bezoar.seeding import generator
from bezoar.updates import Updates

#: What clients remember between rounds.
Memory = Mapping[str, Tensor]


@dataclass(frozen=True)
class Round:
    """One round before anything is computed.

    Attributes:
        number: the round, from 1.
        cohort: ids of its clients, attackers and sybils included, ascending.
        attackers: ids of those that attack in this round, ascending.
        rule: the defence's pipeline with this round's radii.
        root: the server's own update [d], None unless the rule uses it.
        last: the last aggregate [d], None at first.
    """

    setup: Setup
    number: int
    lr: float
    cohort: Indices
    attackers: Indices
    rule: Rule
    root: Tensor | None
    last: Tensor | None

    def server_context(self, client_weights: Tensor) -> Context:
        """What the rule is handed beside the updates."""
        return Context(
            round=self.number,
            model=self.setup.weights,
            client_weights=client_weights,
            root_gradient=self.root,
            last_aggregate=self.last,
        )


def samples(at: Round) -> tuple[Batch, Batch]:
    """This round's samples of the clients that do not attack, and the attackers' with true labels.

    Sybils hold copies of the malicious clients' samples, one after the other.
    """
    setup = at.setup
    federation = setup.federation
    present = at.cohort[at.cohort < federation.n]
    # Augmented before attackers leave, so that honest samples look the same with and without an attack.
    everyone = _batch(setup, *federation.samples_of(present), at.number, "augment")
    if not len(at.attackers):
        return everyone, everyone.select(torch.zeros(len(everyone), dtype=torch.bool))
    attacks = torch.from_numpy(np.isin(everyone.owners.numpy(), at.attackers))
    honest, own = everyone.select(~attacks), everyone.select(attacks)
    sybils = at.attackers[at.attackers >= federation.n]
    if len(sybils) and len(setup.malicious):
        parts = [federation.client(source(setup, sybil)) for sybil in sybils.tolist()]
        owners = np.repeat(sybils, [len(part) for part in parts])
        own = Batch.join(own, _batch(setup, np.concatenate(parts), owners, at.number, "augment sybils"))
    return honest, _on(setup.device, own)


def source(setup: Setup, client: int) -> int:
    """The client whose samples ``client`` holds: its own, or for a sybil those of a malicious one."""
    n = setup.federation.n
    return client if client < n else int(setup.malicious[(client - n) % len(setup.malicious)])


def holdings(setup: Setup, client: int) -> Holdings:
    """All samples of ``client``, which may be a sybil."""
    rows = torch.from_numpy(setup.federation.client(source(setup, client)))
    return Holdings(rows, setup.federation.dataset.train.targets[rows])


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(as_input(batch.inputs, device), batch.targets.to(device), batch.owners.to(device), batch.rows)


def _batch(setup: Setup, rows: Indices, owners: Indices, t: int, purpose: str) -> Batch:
    experiment, dataset = setup.experiment, setup.federation.dataset
    rows, owners = experiment.clients.chosen(rows, owners, experiment.seed, t)
    augment = generator(experiment.seed, purpose, t) if experiment.data.augment else None
    inputs = dataset.batch(dataset.train, rows, augment)
    at = torch.from_numpy(rows)
    return Batch(inputs, dataset.train.targets[at], torch.from_numpy(owners), at)


def updates_of(at: Round, batch: Batch, memory: Memory) -> tuple[Updates, Memory]:
    """What the owners of ``batch`` send, rows in the order of client ids, and the clients' memory."""
    setup, clients = at.setup, at.setup.experiment.clients
    setup.model.train()
    updates = clients.updates(_work(setup, batch, at.lr, at.number))
    if not clients.momentum:
        return updates, memory
    sent, momentum = accumulate(updates, memory.get("momentum"), clients.momentum, setup.clients)
    return sent, {**memory, "momentum": momentum}


#: The server's id where it works like a client.
_SERVER = -1


def root_update(setup: Setup, memory: Memory, lr: float, t: int) -> tuple[Tensor, Memory]:
    """The server's own update [d] from the samples that it trusts, made as any client's, and the memory.

    Raises:
        DivergedError: it is not finite.
    """
    experiment = setup.experiment
    owners = np.full(len(setup.root), _SERVER, dtype=np.int64)
    batch = _batch(setup, setup.root, owners, t, "augment root")
    setup.model.train()
    one = experiment.clients.updates(_work(setup, batch, lr, t))
    root = one.combine(torch.ones(1, dtype=torch.float64, device=setup.device))
    if not torch.isfinite(root).all():
        raise DivergedError(f"the server's own update is not finite in round {t}")
    beta = experiment.clients.momentum
    if beta:
        root = (1 - beta) * root + (beta * memory["root"] if "root" in memory else 0.0)
        memory = {**memory, "root": root}
    return root, memory


def _work(setup: Setup, batch: Batch, lr: float, t: int) -> Work:
    return Work(
        setup.model,
        setup.weights,
        setup.scratch,
        cross_entropy,
        as_input(batch.inputs, setup.device),
        batch.targets.to(setup.device),
        batch.owners.to(setup.device),
        lr,
        t,
        setup.experiment.seed,
        setup.experiment.sampling.cohort,
    )
