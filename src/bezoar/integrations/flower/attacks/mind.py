"""What omniscient attackers make of what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation import Mean, Rule
from bezoar.aggregation.base import Context as ServerContext
from bezoar.attacks import AttackContext, Knowledge, UpdateAttack
from bezoar.attacks.base import masked, standalone
from bezoar.errors import ConfigError
from bezoar.integrations.coordinator import Coordinator, Memory, Reply, as_defence, capped, flat, named
from bezoar.integrations.flower.attacks.task import LocalTask
from bezoar.integrations.flower.strategy import RobustStrategy
from bezoar.integrations.gate import Array, Template
from bezoar.seeding import derive
from bezoar.updates import DenseUpdates
from bezoar.updates.base import Segment
from bezoar.updates.gradients import layout_of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """The defence that attackers know; ``strategy`` has its memory."""

    coordinator: Coordinator
    strategy: RobustStrategy | None = None

    @property
    def memory(self) -> Memory:
        """What the server remembers."""
        return Memory() if self.strategy is None else self.strategy.memory


def known_defence(defence: Any) -> Target | None:
    """From a strategy, or from whatever makes a defence.

    Raises:
        ConfigError: none of these; or one that attackers can not look into.
    """
    if defence is None:
        return None
    strategy = defence if isinstance(defence, RobustStrategy) else None
    rule = as_defence(defence) if strategy is None else strategy.coordinator.defence
    if strategy is None and rule.pipeline.uses_root:
        raise ConfigError(f"{rule.pipeline.name} compares with the server's own update: give the RobustStrategy itself")
    if strategy is not None and strategy.coordinator.sketched:
        raise ConfigError("OmniscientGrid: clients that send sketches show no updates to attackers")
    return Target(Coordinator(rule) if strategy is None else strategy.coordinator, strategy)


@dataclass(frozen=True)
class Insight:
    """An attack and what it may know, whatever the round.

    Raises:
        ConfigError: the attack can not be made with that.
    """

    attack: UpdateAttack
    target: Target | None
    task: LocalTask | None
    knowledge: Knowledge
    seed: int

    def __post_init__(self) -> None:
        attack, name = self.attack, type(self.attack).__name__
        if not isinstance(attack, UpdateAttack):
            raise ConfigError(f"OmniscientGrid: an attack on updates is wanted, got {attack!r}; use attack_mod")
        if attack.trains:
            raise ConfigError(f"{name} trains on the attackers' samples, which are not here: use attack_mod")
        if attack.targeted and (self.task is None or self.task.goal is None):
            raise ConfigError(f"{name} trains on what it wants misclassified: give task=LocalTask(..., goal=...)")
        if attack.least > self.knows:
            raise ConfigError(
                f"{name} needs to know {attack.least.label!r}: "
                + ("give defence=" if self.target is None else f"knowledge is {self.knowledge.label!r}")
            )
        if self.knows >= Knowledge.DEFENCE:
            attack.check(self.rule)

    @property
    def knows(self) -> Knowledge:
        """What attackers know."""
        return min(self.knowledge, Knowledge.HONEST_UPDATES) if self.target is None else self.knowledge

    def template(self, start: Mapping[str, Array], buffers: Sequence[str]) -> Template:
        """What models look like; which arrays are parameters says the strategy, if it is known."""
        if self.target is None or self.target.strategy is None:
            return Template.of(start, buffers)
        return self.target.coordinator.own_template(start)

    @property
    def rule(self) -> Rule:
        """The rule that attackers believe to be up against."""
        if self.target is None or self.knows < Knowledge.DEFENCE:
            return Mean()
        return self.target.coordinator.defence.rule(self.target.coordinator.lr)


@dataclass(frozen=True)
class Seen:
    """What attackers see in a round.

    Attributes:
        number: the round.
        start: the global model.
        template: its shape.
        honest: arrays of the clients that are honest and sent a model, by client.
        own: arrays of the attackers, as honest training made them; None where they sent no model.
        replies: of all of these, in the order of client numbers.
    """

    number: int
    start: Mapping[str, Array]
    template: Template
    honest: Mapping[int, Mapping[str, Array]]
    own: Mapping[int, Mapping[str, Array] | None]
    replies: Sequence[Reply]


def plotted(
    insight: Insight, seen: Seen, memory: State
) -> tuple[dict[int, dict[str, Array]], State, Mapping[str, Any]]:
    """The models that attackers send, by client; what they remember; and figures.

    Rows are in the order of client numbers, draws depend on the seed, the round and the client.
    """
    weights = flat(seen.start, seen.template)
    clients = torch.tensor(sorted(seen.own))
    known = _context(insight, seen, weights, clients, memory)
    own = [seen.own[client] for client in clients.tolist()]
    trained = None if any(arrays is None for arrays in own) else _rows(seen, weights, seen.own)
    view = _rows(seen, weights, seen.honest)
    if insight.knows < Knowledge.HONEST_UPDATES:
        # They see their own honest updates instead.
        view = trained if trained is not None and insight.knows > Knowledge.NONE else _nothing(weights)
    known = replace(known, own_rows=trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(insight.seed, "omniscient", seen.number))
        sent = insight.attack.send(view, insight.rule, masked(known, insight.knows))
    rows = sent.rows.sent()
    found = {}
    for row, client in zip(rows, clients.tolist(), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            found[client] = {**(seen.own[client] or seen.start), **named(seen.template, weights - row)}
    state = {f"attack.{name}": value for name, value in sent.state.items()}
    if insight.attack.remembers:
        cohort = torch.tensor(known.cohort)
        state |= {"past.weights": weights, "past.sent": rows.sum(0), "past.cohort": cohort}
        state["past.round"] = torch.tensor(seen.number)
    return found, state, sent.report


def _rows(seen: Seen, weights: Tensor, sent: Mapping[int, Mapping[str, Array] | None]) -> DenseUpdates:
    """Updates [n, d], in the order of clients."""
    clients = sorted(sent)
    rows = [weights - flat(arrays, seen.template) for arrays in (sent[c] for c in clients) if arrays is not None]
    layout = tuple(Segment(f.name, f.start, f.stop, f.shape) for f in seen.template.parameters)
    return DenseUpdates(torch.stack(rows), torch.tensor(clients), layout)


def _nothing(weights: Tensor) -> DenseUpdates:
    return DenseUpdates(torch.zeros_like(weights)[None])


def _context(insight: Insight, seen: Seen, weights: Tensor, clients: Tensor, memory: State) -> AttackContext:
    cohort, target, task = len(seen.honest) + len(clients), insight.target, insight.task
    known = replace(
        standalone(_nothing(weights), cohort, len(clients), insight.seed),
        round=seen.number,
        clients=clients,
        weights=weights,
        server_context=ServerContext(round=seen.number, model=weights),
        state={name.removeprefix("attack."): value for name, value in memory.items() if name.startswith("attack.")},
    )
    if int(memory.get("past.round", torch.tensor(-1))) == seen.number - 1:
        known = replace(
            known,
            previous_weights=memory["past.weights"],
            previous_sent=memory["past.sent"],
            previous_cohort=int(memory["past.cohort"]),
        )
    if task is not None:
        local = task.load(seen.start)
        shapes = [part.shape for part in layout_of(local.scratch.module)]
        if shapes != [field.shape for field in seen.template.parameters]:
            raise ConfigError("LocalTask.model: its trainable parameters are not those of the messages, in their order")
        known = replace(
            known,
            scratch=local.scratch,
            loss_fn=task.loss,
            goal=task.goal,
            classes=task.classes,
            lr=task.lr,
            update_lr=task.lr,
            server_lr=task.server_lr,
        )
    if target is None:
        return known
    made, remembered = target.coordinator, target.memory
    rule = made.defence.rule(made.lr)
    return replace(
        known,
        radius=made.defence.radius(made.lr),
        server_lr=made.lr,
        server=made.defence.server,
        server_state=remembered.server,
        rule_state=remembered.rule,
        server_context=ServerContext(
            round=seen.number,
            model=weights,
            client_weights=capped(seen.replies, made.weight_cap) if rule.weighted else None,
            root_gradient=made.root_update(seen.number, seen.start, seen.template) if rule.uses_root else None,
            last_aggregate=remembered.last.get("aggregate"),
        ),
    )
