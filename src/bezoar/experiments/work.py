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
from bezoar.errors import DivergedError, UnsupportedError
from bezoar.experiments.setup import Setup, cross_entropy
from bezoar.ranks import longest_first
from bezoar.seeding import generator
from bezoar.updates import Sharded, Updates
from bezoar.updates.gradients import layout_of

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

    Of several ranks, each has the attackers' samples and those of the clients that it computes.
    Sybils hold copies of the malicious clients' samples, one after the other.
    """
    setup = at.setup
    federation = setup.federation
    present = at.cohort[at.cohort < federation.n]
    # Augmented before attackers leave, so that honest samples look the same with and without an attack.
    everyone = _batch(setup, *federation.samples_of(present), at.number, "augment", _needed(at))
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


def _batch(setup: Setup, rows: Indices, owners: Indices, t: int, purpose: str, needed: Indices | None = None) -> Batch:
    """The samples that clients use in round t; those of the clients ``needed`` only, if given."""
    experiment, dataset = setup.experiment, setup.federation.dataset
    rows, owners = experiment.clients.chosen(rows, owners, experiment.seed, t)
    augment = generator(experiment.seed, purpose, t) if experiment.data.augment else None
    only = None if needed is None else np.flatnonzero(np.isin(owners, needed))
    inputs = dataset.batch(dataset.train, rows, augment, None if only is None else torch.from_numpy(only))
    if only is not None:
        rows, owners = rows[only], owners[only]
    at = torch.from_numpy(rows)
    return Batch(inputs, dataset.train.targets[at], torch.from_numpy(owners), at)


def _needed(at: Round) -> Indices | None:
    """The clients of the cohort whose samples this rank needs; None for all of them."""
    ranks = at.setup.ranks
    if ranks.alone:
        return None
    honest = np.setdiff1d(at.cohort, at.attackers, assume_unique=True)
    return np.union1d(honest[rank_of(at, honest) == ranks.rank], at.attackers)


def rank_of(at: Round, clients: Indices) -> Indices:
    """The rank that computes each of ``clients`` [m] in this round.

    The cohort's largest clients are placed first. Clients that keep a momentum stay where they are: there, all clients
    are placed.
    """
    setup = at.setup
    placed = np.arange(setup.clients) if setup.experiment.clients.momentum else at.cohort
    return _placed(setup, placed)[np.searchsorted(placed, clients)]


def _placed(setup: Setup, clients: Indices) -> Indices:
    """The rank of each of ``clients`` [m] where these share all ranks: the largest are placed first."""
    counts, n = setup.federation.counts(), setup.federation.n
    held = counts[np.minimum(clients, n - 1)]
    if len(setup.malicious):
        copied = setup.malicious[(clients - n) % len(setup.malicious)]
        held = np.where(clients < n, held, counts[copied])
    return longest_first(setup.experiment.clients.load(held), setup.ranks.size)


def updates_of(at: Round, batch: Batch, memory: Memory) -> tuple[Updates, Memory]:
    """What the owners of ``batch`` send, rows in the order of client ids, and the clients' memory."""
    setup, clients = at.setup, at.setup.experiment.clients
    setup.model.train()
    if not setup.ranks.alone:
        return _sharded_updates(at, batch, memory)
    updates = clients.updates(_work(setup, batch, at.lr, at.number))
    if not clients.momentum:
        return updates, memory
    sent, momentum = accumulate(updates, memory.get("momentum"), clients.momentum, setup.clients)
    return sent, {**memory, "momentum": momentum}


def _sharded_updates(at: Round, batch: Batch, memory: Memory) -> tuple[Updates, Memory]:
    """The same on several ranks: ``batch`` holds samples of this rank's honest clients, and of attackers that train.

    The momentum in the memory is that of this rank's clients only (:func:`keepers`).
    """
    setup, clients, ranks = at.setup, at.setup.experiment.clients, at.setup.ranks
    honest = np.setdiff1d(at.cohort, at.attackers, assume_unique=True)
    own = np.intersect1d(torch.unique(batch.owners).cpu().numpy(), at.attackers)
    ids = np.union1d(honest, own)
    placed = rank_of(at, ids)
    mine = ids[placed == ranks.rank]
    local: Updates | None = None
    if len(mine):
        mask = torch.from_numpy(np.isin(batch.owners.cpu().numpy(), mine)).to(batch.owners.device)
        work = _work(setup, batch if bool(mask.all()) else batch.select(mask), at.lr, at.number)
        before = random_state(setup.device) if clients.shares_draws else None
        local = clients.updates(work)
        if before is not None and not torch.equal(before, random_state(setup.device)):
            raise UnsupportedError(
                f"model: {type(setup.model).__name__} draws random numbers for all clients at once, which many ranks "
                f"can not draw as one process does: run it in one process, or with clients that train for several steps"
            )
    if clients.momentum:
        known = torch.from_numpy(keepers(setup))
        last = memory.get("momentum")
        if local is not None:
            local, last = accumulate(local, last, clients.momentum, len(known), known)
        elif last is None:
            last = setup.weights.new_zeros(len(known), setup.weights.numel())
        memory = {**memory, "momentum": last}
    owners = torch.from_numpy(placed)
    layout = layout_of(setup.model)
    return Sharded(local, torch.from_numpy(ids), owners, ranks, setup.weights, layout), memory


def keepers(setup: Setup) -> Indices:
    """The clients whose momentum this rank keeps, ascending; all of them in one process."""
    everyone = np.arange(setup.clients)
    mine: Indices = everyone[_placed(setup, everyone) == setup.ranks.rank]
    return mine


def random_state(device: torch.device) -> Tensor:
    """The state of the global random numbers on ``device``."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


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
