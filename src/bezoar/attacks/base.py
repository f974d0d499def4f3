"""What an attack is: poisoned rows, or poisoned data."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from bezoar.aggregation.base import Context, Rule
from bezoar.aggregation.mean import Mean
from bezoar.clients.scratch import Scratch
from bezoar.data.dataset import Dataset, Indices, as_input
from bezoar.data.text import Vocabulary
from bezoar.errors import ConfigError
from bezoar.servers import SGD, Server
from bezoar.updates.base import Needs, Updates
from bezoar.updates.convert import as_updates
from bezoar.updates.stacked import Stacked

Loss = Callable[[Tensor, Tensor], Tensor]
State = Mapping[str, Tensor]


class Knowledge(IntEnum):
    """What attackers know; each level includes those before it."""

    NONE = 0
    OWN_DATA = 1
    MODEL = 2
    HONEST_UPDATES = 3
    DEFENCE = 4

    @property
    def label(self) -> str:
        """The name in a config."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Goal:
    """What targeted attackers want: ``inputs`` [s, ...] (as the model takes them) classified as ``labels`` [s].

    ``rows`` are the rows of the test set that are left out of the clean test accuracy (None: none). ``held`` [m, ...]
    are further test samples that the attackers were handed to train on; whether they are misclassified is not counted.
    ``augment`` gives rows [b] of inputs with the data set's random training augmentation, for attackers who train with
    it (None: they do not).
    """

    inputs: Tensor
    labels: Tensor
    rows: Indices | None = None
    held: Tensor | None = None
    augment: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None

    def batch(self, rows: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The points ``rows`` [b] to train on, with their wanted labels."""
        at = rows.to(self.inputs.device)
        inputs = self.inputs[at] if self.augment is None else self.augment(self.inputs, rows, draws)
        return inputs, self.labels[at.to(self.labels.device)]


@dataclass(frozen=True)
class Batch:
    """Samples of several clients.

    Attributes:
        inputs: [N, ...] as the model takes them.
        targets: labels [N].
        owners: the client of every sample [N].
        rows: where each sample stands in the training set [N] int64 on the CPU; None if that is not known, -1 for
            samples that do not stand there.
    """

    inputs: Tensor
    targets: Tensor
    owners: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.owners)

    def select(self, chosen: Tensor) -> Batch:
        """The samples at ``chosen`` (indices or mask)."""
        rows = None if self.rows is None else self.rows[chosen.cpu()]
        return Batch(self.inputs[chosen], self.targets[chosen], self.owners[chosen], rows)

    @staticmethod
    def join(*batches: Batch) -> Batch:
        """All samples, in the order of their owners' ids (stable)."""
        owners = torch.cat([batch.owners for batch in batches])
        order = torch.argsort(owners, stable=True)
        inputs = torch.cat([batch.inputs for batch in batches])[order]
        rows = None
        if any(batch.rows is not None for batch in batches):
            unknown = [torch.full((len(batch),), -1) if batch.rows is None else batch.rows for batch in batches]
            rows = torch.cat(unknown)[order.cpu()]
        return Batch(inputs, torch.cat([batch.targets for batch in batches])[order], owners[order], rows)


@dataclass(frozen=True)
class Holdings:
    """All samples of one client, of which a round may see a few: ``rows`` of the training set [m], ``targets`` [m]."""

    rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Tests:
    """The test set, from which targeted attackers draw what they want misclassified."""

    __test__: ClassVar[bool] = False  # not a class of pytest's

    dataset: Dataset
    device: torch.device

    def inputs(self, rows: Tensor | Indices) -> Tensor:
        """Test samples ``rows`` as the model takes them."""
        return as_input(self.dataset.batch(self.dataset.test, rows), self.device)

    @property
    def targets(self) -> Tensor:
        """True labels of the test set."""
        return self.dataset.test.targets

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.classes)


@dataclass(frozen=True)
class AttackContext:
    """What the attackers of one round know beside the honest updates; what they must not know is left at its default.

    Attributes:
        round: the round, from 1.
        seed: the experiment's seed; draws come from streams of their own.
        clients: ids of this round's attackers [q], ascending; sybils have the highest ids.
        weights: the global model, flat [d]; not to be changed.
        scratch: a private copy of the model to train on.
        loss_fn: one loss a sample.
        radius: the defence's clipping radius this round, infinity without clipping or if it is not known.
        goal: what targeted attackers want, None for the others.
        cohort: clients in this round, attackers included.
        classes: number of classes.
        lr: the learning rate with which clients train this round.
        update_lr: what a gradient is multiplied by in an honest client's update: 1 for clients that send gradients, the
            learning rate for those that train.
        server_lr: the factor between the defence's answer and the server's step.
        own: the attackers' samples of this round with true labels.
        held: all samples of an attacker by its id, of which ``own`` may be a few; None outside of an experiment.
        own_rows: the updates that the attackers would send if they were honest (attacks that set ``uses_own``).
        low, high: the darkest and the brightest value of an input as the model takes it, each [C, 1, ...].
        mean, std: what inputs were normalised with, each [C, 1, ...]: the raw value is input * std + mean.
        vocabulary: what the tokens stand for, if the samples are text.
        server_context: what the rule will be handed beside the updates, rows in the order of client ids.
        rule_state: what the rule remembers; a rule that is probed gets it and its answer is thrown away.
        server: what turns the aggregate into a step.
        server_state: what the server remembers.
        state: what this attack returned as its state in the last round it was active, {} at first.
        previous_weights: the global model of the round before (attacks that set ``remembers``; None at first).
        previous_sent: the sum of all rows that the attackers sent in the round before [d], with ``previous_weights``.
        previous_cohort: how many clients took part in the round before.
    """

    round: int
    seed: int
    clients: Tensor
    weights: Tensor
    scratch: Scratch
    loss_fn: Loss
    radius: float
    goal: Goal | None
    cohort: int
    classes: int = 0
    lr: float = 1.0
    update_lr: float = 1.0
    server_lr: float = 1.0
    own: Batch | None = None
    held: Callable[[int], Holdings] | None = None
    own_rows: Updates | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    vocabulary: Vocabulary | None = None
    server_context: Context = field(default_factory=Context)
    rule_state: State = field(default_factory=dict)
    server: Server = field(default_factory=SGD)
    server_state: State = field(default_factory=dict)
    state: State = field(default_factory=dict)
    previous_weights: Tensor | None = None
    previous_sent: Tensor | None = None
    previous_cohort: int = 0


@dataclass(frozen=True)
class Attack:
    """A way to poison; which clients do it, what they know and when is the adversary's business."""

    #: Whether there are inputs that must get wrong labels; :meth:`goal` then says which.
    targeted: ClassVar[bool] = False

    #: The least that attackers must know. With less than ``HONEST_UPDATES`` they see their own honest updates instead.
    least: ClassVar[Knowledge] = Knowledge.NONE

    #: Whether the attack changes or makes inputs that must be numbers; tokens of a text are none.
    numeric: ClassVar[bool] = False

    #: Whether the simulator shall keep last round's model and what the attackers sent.
    remembers: ClassVar[bool] = False

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        """What shall be misclassified, drawn once per experiment; None for untargeted attacks."""
        return None


@dataclass(frozen=True)
class Sent:
    """The malicious rows among the honest ones, what the attack remembers, and figures for the round's record."""

    rows: Stacked
    state: State = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateAttack(Attack, ABC):
    """Attackers send rows of their choice instead of their honest updates.

    Called with honest updates it needs no experiment: ``attack(honest, n=25, q=5)``.
    """

    least: ClassVar[Knowledge] = Knowledge.OWN_DATA

    #: What the attack asks of the honest updates; norms and weighted sums can always be had.
    needs: ClassVar[Needs] = Needs.NONE

    #: Whether the attack wants the updates that the attackers would send honestly.
    uses_own: ClassVar[bool] = False

    #: Whether the attack trains on the attackers' samples, ``AttackContext.own``.
    trains: ClassVar[bool] = False

    def check(self, defence: Rule) -> None:
        """Raise ``ConfigError`` unless the attack can be made against ``defence``."""

    @abstractmethod
    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        """Stack the malicious rows on the honest updates ``view`` (read-only), in the order of client ids."""

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        """:meth:`rows` with memory and figures; attacks that have such override this."""
        return Sent(self.rows(view, defence, context), context.state)

    def __call__(
        self,
        honest: Any,
        *,
        n: int | None = None,
        q: int | None = None,
        defence: Rule | None = None,
        context: AttackContext | None = None,
        seed: int = 0,
    ) -> Any:
        """The malicious rows [q, d] against ``honest`` updates, in the kind of the input; without n and q one vector.

        Args:
            honest: [h, d] in any kind that :func:`bezoar.updates.convert.as_updates` reads.
            n: clients in the round, attackers included; defaults to h + q.
            q: attackers; defaults to n - h.
            defence: the rule that attacks which adapt to it are up against; defaults to the mean.
            context: what the attackers know beside; attacks that train need it (model, samples, goal).
            seed: of the attack's draws, if no context is given.

        Raises:
            ConfigError: q or n do not fit the honest rows, or the attack needs a context.
        """
        view, restore = as_updates(honest)
        h = len(view)
        single = n is None and q is None and context is None
        if context is None:
            q = (1 if n is None else n - h) if q is None else q
            n = h + q if n is None else n
            if q < 1 or n < h + q:
                raise ConfigError(
                    f"{type(self).__name__}: n={n} and q={q} do not fit {h} honest rows; q must be at least 1 and n at "
                    f"least {h} + q"
                )
            context = standalone(view, n, q, seed)
        defence = Mean() if defence is None else defence
        self.check(defence)
        sent = self.send(view, defence, context).rows
        malicious = sent.sent()
        return restore(malicious[0]) if single else restore(malicious)


def standalone(view: Updates, n: int, q: int, seed: int = 0) -> AttackContext:
    """A context without an experiment: ``q`` of ``n`` clients attack, and nothing is known but the updates ``view``."""
    first = int(view.clients.max()) + 1

    class Nothing(Scratch):
        def __init__(self) -> None: ...

        def __getattr__(self, name: str) -> Any:
            raise ConfigError(
                "this attack trains: it needs context=AttackContext(...) with the model, the loss and what it aims at"
            )

    def no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ConfigError("this attack trains: it needs context=AttackContext(...)")

    weights = torch.zeros(view.shape[1], dtype=view.dtype, device=view.device)
    clients = torch.arange(first, first + q)
    return AttackContext(1, seed, clients, weights, Nothing(), no_loss, float("inf"), None, n)


@dataclass(frozen=True)
class Poisoned:
    """What the attackers train on, what the attack remembers, and figures for the round's record."""

    batch: Batch
    state: State = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DataAttack(Attack, ABC):
    """Attackers train honestly on poisoned samples."""

    @abstractmethod
    def poison(self, batch: Batch, context: AttackContext) -> Poisoned:
        """What the attackers train on instead of their samples ``batch`` (not to be changed).

        ``batch`` holds the samples of all clients in ``context.clients`` (sybils hold copies of the malicious
        clients'); the answer may hold any number of samples for each of them, at least one, and no one else's.
        """


def stack(view: Updates, vectors: Tensor, clients: Tensor) -> Stacked:
    """Put malicious ``vectors`` on ``view``: [1, d] is sent by every attacker (collusion), [q, d] one each."""
    q = len(clients)
    shape = torch.ones(q, 1) if len(vectors) == 1 else torch.eye(q)
    return Stacked.by_client(view, shape, vectors, clients)


def usable(view: Updates) -> Updates:
    """The honest updates that hold finite numbers only; all of them if none does."""
    finite = view.finite()
    return view.select(finite.nonzero().flatten()) if finite.any() and not finite.all() else view


def honest_mean(rows: Updates) -> Tensor:
    """The mean [d] of ``rows``."""
    n = len(rows)
    return rows.combine(torch.full((n,), 1 / n, dtype=torch.float64, device=rows.device))


def masked(context: AttackContext, knowledge: Knowledge) -> AttackContext:
    """The same context without what attackers of this ``knowledge`` do not know."""
    hidden: dict[str, Any] = {}
    if knowledge < Knowledge.DEFENCE:
        known = Context(
            round=context.round, model=context.weights, last_aggregate=context.server_context.last_aggregate
        )
        hidden = {
            "radius": float("inf"),
            "server_context": known,
            "rule_state": {},
            "server": SGD(),
            "server_state": {},
        }
    if knowledge < Knowledge.MODEL:
        blank = torch.zeros_like(context.weights)
        hidden |= {"weights": blank, "previous_weights": None, "server_context": Context(round=context.round)}
    if knowledge < Knowledge.OWN_DATA:
        hidden |= {"own": None, "held": None, "own_rows": None}
    return dataclasses.replace(context, **hidden) if hidden else context
