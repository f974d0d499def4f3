"""The adversary's part of a round: what is poisoned, what is sent, and whether the defence noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation import Aggregate, Mean
from bezoar.attacks import AttackContext, Batch, DataAttack, Knowledge, UpdateAttack
from bezoar.attacks.base import honest_mean, masked
from bezoar.certify import aggregation_floor
from bezoar.data.dataset import Indices
from bezoar.errors import HostileRowsError
from bezoar.experiments.setup import cross_entropy
from bezoar.experiments.work import Memory, Round, holdings, samples, updates_of
from bezoar.updates import DenseUpdates, Stacked, Updates

State = Mapping[str, Tensor]

#: A row whose weight is below this share of an equal one counts as flagged.
FLAGGED = 0.01


@dataclass(frozen=True)
class Cast:
    """What all clients of a round send.

    Attributes:
        updates: rows in the order of client ids.
        claims: number of samples that every row's client says it has [n] float64.
        memory: what the clients remember.
        attack: what the attack remembers.
        report: the attack's figures for the record.
    """

    updates: Updates
    claims: Tensor
    memory: Memory
    attack: State = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mind:
    """What the adversary and the server carry from round to round, as attacks may know it."""

    attack: State
    past: State
    rule: State
    server: State


def play_clients(at: Round, memory: Memory, mind: Mind, done: Callable[[str], None]) -> Cast:
    """Train the cohort, poisoned where the attack poisons, and replace the attackers' rows where it does that.

    ``done`` is told after the phases "clients" and "attack".

    Raises:
        HostileRowsError: nobody in the cohort is honest, and the attack is made from honest updates.
    """
    attack, device = at.setup.experiment.attack, at.setup.device
    honest, own = samples(at)
    claims = torch.from_numpy(at.setup.federation.counts()).to(torch.float64)
    if attack is None or not len(at.attackers):
        updates, memory = updates_of(at, honest, memory)
        done("clients")
        return Cast(updates, claims[updates.clients.cpu()].to(device), memory, mind.attack)
    claims = torch.cat([claims, _copied(at, claims)])
    if isinstance(attack, DataAttack):
        context = _context(at, mind, own, claims)
        done("clients")
        # Whatever attackers do not know, they hold what they train on.
        known = masked(context, at.setup.experiment.adversary.knowledge)
        poisoned = attack.poison(own, replace(known, held=context.held))
        done("attack")
        _check(type(attack).__name__, poisoned.batch, at.attackers)
        claims = (claims + _added(own, poisoned.batch, len(claims))).clamp(min=1)
        updates, memory = updates_of(at, _together(honest, poisoned.batch), memory)
        done("clients")
        return Cast(updates, claims[updates.clients.cpu()].to(device), memory, poisoned.state, poisoned.report)
    assert isinstance(attack, UpdateAttack)
    if len(at.attackers) == len(at.cohort):
        raise HostileRowsError(f"round {at.number}: all {len(at.cohort)} clients of the cohort are malicious", ())
    knowledge = at.setup.experiment.adversary.knowledge
    blind = knowledge < Knowledge.HONEST_UPDATES
    train_own = len(own) > 0 and (attack.uses_own or (blind and knowledge > Knowledge.NONE))
    trained, memory = updates_of(at, _together(honest, own) if train_own else honest, memory)
    done("clients")
    context = _context(at, mind, own, claims)
    if train_own:
        is_own = torch.from_numpy(np.isin(trained.clients.cpu().numpy(), at.attackers))
        context = replace(context, own_rows=trained.select(is_own.nonzero().flatten()))
        trained = trained.select((~is_own).nonzero().flatten())
    view = trained if not blind else context.own_rows
    if view is None or knowledge == Knowledge.NONE:
        view = DenseUpdates(torch.zeros(1, trained.shape[1], dtype=trained.dtype, device=device))
    defence = at.rule if knowledge >= Knowledge.DEFENCE else _UNKNOWN
    at.setup.scratch.module.train()
    sent = attack.send(view, defence, masked(context, knowledge))
    rows = sent.rows
    if blind:
        rows = Stacked.by_client(trained, rows.coefficients, rows.basis, context.clients)
    done("attack")
    return Cast(rows, claims[rows.clients.cpu()].to(device), memory, sent.state, sent.report)


_UNKNOWN = Mean()


def _together(honest: Batch, own: Batch) -> Batch:
    """All samples in the order of their owners' ids."""
    device = own.inputs.device
    moved = Batch(honest.inputs.to(device), honest.targets.to(device), honest.owners.to(device), honest.rows)
    return Batch.join(moved, own)


def _copied(at: Round, claims: Tensor) -> Tensor:
    """What sybils claim: as many samples as the malicious client they copy, or as an average client."""
    setup = at.setup
    if not len(setup.malicious):
        return torch.full((len(setup.sybils),), float(claims.mean().round()), dtype=torch.float64)
    return claims[torch.from_numpy(setup.malicious[np.arange(len(setup.sybils)) % len(setup.malicious)])]


def _added(own: Batch, poisoned: Batch, n: int) -> Tensor:
    """By how many samples each client's work grew or shrank [n]."""
    before, after = (torch.bincount(batch.owners.cpu(), minlength=n).double() for batch in (own, poisoned))
    return after - before


def _check(who: str, batch: Batch, attackers: Indices) -> None:
    """Raise unless ``batch`` has samples of all attackers and of nobody else."""
    found = torch.unique(batch.owners).cpu().numpy()
    if not np.array_equal(found, attackers):
        raise ValueError(f"{who}.poison must return samples of clients {attackers.tolist()}, got {found.tolist()}")


def _context(at: Round, mind: Mind, own: Batch, claims: Tensor) -> AttackContext:
    setup, experiment = at.setup, at.setup.experiment
    dataset = setup.federation.dataset
    inner = (-1,) + (1,) * (len(dataset.shape) - 1)
    # Only of pictures it is known what the least and the greatest value are.
    picture, text = len(dataset.shape) == 3, dataset.vocabulary is not None
    mean, std = (torch.tensor(value, device=setup.device).view(inner) for value in (dataset.mean, dataset.std))
    weights = claims[torch.from_numpy(at.cohort)].to(setup.device)
    return AttackContext(
        round=at.number,
        seed=experiment.seed,
        clients=torch.from_numpy(at.attackers),
        weights=setup.weights,
        scratch=setup.scratch,
        loss_fn=cross_entropy,
        radius=experiment.defence.radius(at.lr),
        goal=setup.goal,
        cohort=len(at.cohort),
        classes=len(dataset.classes),
        lr=at.lr,
        update_lr=experiment.clients.update_lr(at.lr),
        server_lr=experiment.clients.server_lr(at.lr),
        own=own if len(own) else None,
        held=lambda client: holdings(setup, client),
        low=-mean / std if picture else None,
        high=(1 - mean) / std if picture else None,
        mean=None if text else mean,
        std=None if text else std,
        vocabulary=dataset.vocabulary,
        server_context=at.server_context(weights),
        rule_state=mind.rule,
        server=experiment.defence.server,
        server_state=mind.server,
        state=mind.attack,
        previous_weights=mind.past.get("weights"),
        previous_sent=mind.past.get("sent"),
        previous_cohort=int(mind.past.get("cohort", torch.tensor(0))),
    )


def remembered(weights: Tensor, updates: Updates, attackers: Indices) -> State:
    """Last round as the attackers saw it: the model before its step, the sum of what they sent, the cohort's size."""
    bad = _malicious(updates, attackers)
    sent = torch.zeros_like(weights)
    if bad.any():
        own = updates.select(bad.nonzero().flatten())
        sent = own.combine(torch.ones(len(own), dtype=torch.float64, device=own.device))
    return {"weights": weights.clone(), "sent": sent, "cohort": torch.tensor(len(updates))}


def _malicious(updates: Updates, attackers: Indices) -> Tensor:
    return torch.from_numpy(np.isin(updates.clients.cpu().numpy(), attackers)).to(updates.device)


def caught(answer: Aggregate, updates: Updates, attackers: Indices, claims: Tensor | None = None) -> dict[str, Any]:
    """Shares of the attackers (``detected``) and of the others (``false_alarms``) that the rule flagged.

    Flagged are rows that were left out, not selected, or weigh less than 1 % of an equal share. A rule that neither
    selects nor weighs rows flags only what it excludes; None where there is nothing to say. ``claims`` [n] are the
    weights that the rule was told to give, if it uses any.
    """
    flagged = flags(answer, len(updates), claims)
    if flagged is None:
        return {"detected": None, "false_alarms": None}
    bad = _malicious(updates, attackers).to(flagged.device)
    shares = [flagged[group].double().mean() if group.any() else None for group in (bad, ~bad)]
    return {"detected": shares[0], "false_alarms": shares[1]}


def flags(answer: Aggregate, n: int, claims: Tensor | None = None) -> Tensor | None:
    """Which of n rows the rule flagged (bool [n]); None for a rule that does not tell rows apart and excluded none.

    Clipping a row to a length that all may have is no flag, and neither is the weight that a client may ``claim`` [n].
    """
    flagged = torch.zeros(n, dtype=torch.bool)
    if answer.selected is not None:
        flagged |= ~answer.selected.cpu()
    elif answer.weights is not None:
        due = torch.ones(n, dtype=torch.float64)
        for factors in (answer.scales, claims):
            due = due if factors is None else due * factors.cpu().double()
        share = torch.where(due > 0, answer.weights.cpu().abs() / due, 0.0)
        flagged |= share * n < FLAGGED * share.sum()
    elif not answer.excluded:
        return None
    flagged[list(answer.excluded)] = True
    return flagged


def measured(vector: Tensor, updates: Updates, attackers: Indices) -> dict[str, Any]:
    """How far honest updates lie apart (``variance``), the squared distance of ``vector`` from their mean
    (``deviation``), and what no rule can promise for it (``floor``)."""
    good = ~_malicious(updates, attackers) & updates.finite()
    if not good.any():
        return {"variance": None, "deviation": None, "floor": None}
    # Weight zero would not be enough: zero times infinity is none.
    honest = updates if good.all() else updates.select(good.nonzero().flatten())
    mean = honest_mean(honest).double()
    # Not through the norms' mean alone: where rows nearly coincide, both terms are large and their difference is not.
    distances = honest.squared_norms() - 2 * honest.dot(mean) + mean.square().sum()
    variance = distances.clamp(min=0).mean()
    floor = variance * aggregation_floor(len(updates), len(attackers), 1.0)
    return {"variance": variance, "deviation": (vector.double() - mean).square().sum(), "floor": floor}
