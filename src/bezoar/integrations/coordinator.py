"""A server's round between frameworks: checked messages in, the next model and a verdict for every client out.

The coordinator holds settings only. What a server remembers is a :class:`Memory`, which goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezoar.aggregation import Aggregate, Context, Rule
from bezoar.errors import BezoarError, ConfigError, DivergedError, HostileRowsError, SuspectsError
from bezoar.experiments.adversary import flags
from bezoar.experiments.defence import Defence, defence
from bezoar.integrations.gate import BUFFERS, Array, BufferPolicy, Field, GateError, Template
from bezoar.kernels.threads import in_threads
from bezoar.seeding import generator
from bezoar.servers import SGD, FetchSGD, Server, Step
from bezoar.updates import DenseUpdates, SketchUpdates, Updates
from bezoar.updates.base import Needs, Segment

#: Name of the array that holds a client's count sketch.
SKETCH = "bezoar.sketch"

#: Numbers that a thread takes at a time.
_PIECE = 2**18

State = Mapping[str, Tensor]


class Status(IntEnum):
    """What became of one client in a round."""

    KEPT = 0
    FLAGGED = 1
    EXCLUDED = 2
    FAILED = 3
    MISSING = 4


@dataclass(frozen=True)
class Verdict:
    """What became of one client in a round, and why.

    ``KEPT``: its update took part. ``FLAGGED``: it was read, but the rule gave it no weight. ``EXCLUDED``: malformed,
    not finite or left out as hostile; counts as one of the f. ``FAILED``: the client reported an error. ``MISSING``: it
    was asked and did not answer. The last two may happen to honest clients, and do not count.
    """

    client: int
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Reply:
    """What one client sent.

    Attributes:
        client: its number, the same in every round.
        arrays: names to arrays or ``.npy`` bytes, as they came.
        weight: what it claims to weigh (its number of samples), NaN if it claims nothing.
        flaw: what is wrong with the message as far as the framework could tell; "" if nothing.
        difference: whether the arrays are what the client adds to the global model, instead of its model.
    """

    client: int
    arrays: Mapping[str, Any]
    weight: float = float("nan")
    flaw: str = ""
    difference: bool = False


@dataclass(frozen=True)
class Memory:
    """What the server remembers between rounds: of the rule, of the server, and the last aggregate."""

    rule: State = field(default_factory=dict)
    server: State = field(default_factory=dict)
    last: State = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a checkpoint."""
        return {f"{part}.{name}": t for part in ("rule", "server", "last") for name, t in getattr(self, part).items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """The way back from :meth:`tensors`; other names are ignored."""
        parts: dict[str, dict[str, Tensor]] = {"rule": {}, "server": {}, "last": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts and rest:
                parts[part][rest] = tensor
        return cls(**parts)


@dataclass(frozen=True)
class Outcome:
    """A round's end.

    Attributes:
        arrays: the next model; the old one where the round was skipped, empty where the server knows none.
        memory: what the server remembers now.
        verdicts: one a client that was asked, in the order of client numbers.
        skipped: why the old model was kept, None where it was not.
        record: figures for the round's record (``aggregate_norm``, ``update_norm``, ``clipped``, ``excluded``).
        changes: what the round adds to the old model: the difference of the two, or, of parameters that nothing but
            the server's step moved, the step before it was rounded into the model. Empty where the round was skipped.
        tells: whether the rule tells clients apart, so that it could have flagged some; or some were excluded.
    """

    arrays: dict[str, Array]
    memory: Memory
    verdicts: tuple[Verdict, ...]
    skipped: str | None
    record: Mapping[str, Any]
    changes: dict[str, Array] = field(default_factory=dict)
    tells: bool = False


#: The server's own training on data it trusts, for rules that need it: round and model in, the trained model out.
RootFn = Callable[[int, Mapping[str, Array]], Mapping[str, Array]]


def as_defence(rule: Any, server: Server | None = None) -> Defence:
    """A defence from a rule or pipeline, a :class:`Defence`, or a preset's name or table.

    Rules alone get the server of FedAvg: the aggregate is subtracted from the model, without momentum.

    Raises:
        ConfigError: none of these, or a pipeline that does not end in a rule.
    """
    if isinstance(rule, Rule):
        return Defence(rule, server or SGD(momentum=0.0))
    if isinstance(rule, Defence | str | Mapping):
        found = defence(rule)
        return found if server is None else replace(found, server=server)
    if hasattr(rule, "aggregate"):
        rule.aggregate()  # A mixing, or several, says how to end it.
    raise ConfigError(f"a defence is a rule, a pipeline that ends in one, a preset's name or a table; got {rule!r}")


@dataclass(frozen=True)
class Coordinator:
    """The settings of a robust server.

    Attributes:
        defence: pipeline, server, noise.
        lr: the server's rate: 1 subtracts the aggregated update.
        weight_cap: clients' claimed weights are cut to this many times their median before a rule that uses weights
            sees them.
        buffers: patterns of the names of arrays that are no parameters, beside all that are not floating point.
        buffer_policy: "median": the coordinate-wise median of the clients that were kept, "keep": the server's own,
            "rule": floating point buffers are parameters like any other (integers are kept).
        sketched: whether clients send count sketches (needs the server :class:`FetchSGD`).
        root: the server's own training, where the rule asks for it (FLTrust).
        seed: of everything that is drawn.
    """

    defence: Defence
    lr: float = 1.0
    weight_cap: float = 10.0
    buffers: tuple[str, ...] = BUFFERS
    buffer_policy: BufferPolicy = "median"
    sketched: bool = False
    root: RootFn | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rule = self.defence.pipeline
        if not (self.lr > 0 and np.isfinite(self.lr)):
            raise ConfigError(f"lr must be a number above 0, got {self.lr}")
        if not self.weight_cap >= 1:
            raise ConfigError(f"weight_cap must be at least 1 (times the median weight), got {self.weight_cap}")
        if self.buffer_policy not in ("median", "keep", "rule"):
            raise ConfigError(f"buffer_policy must be 'median', 'keep' or 'rule', got {self.buffer_policy!r}")
        if rule.uses_root and self.root is None:
            raise ConfigError(f"{rule.name} compares with the server's own update: give root=, its training function")
        if self.sketched:
            if not isinstance(self.defence.server, FetchSGD):
                raise ConfigError("clients can send sketches to the server FetchSGD only: give server=FetchSGD(...)")
            if rule.needs & ~Needs.NORMS or rule.uses_root:
                raise ConfigError(f"{rule.name} can not work on sketches: means, with or without Clip, can")

    def own_template(self, arrays: Mapping[str, Array]) -> Template:
        """What the model looks like, whatever clients send."""
        return Template.of(arrays, self.buffers, self.buffer_policy)

    def template(self, arrays: Mapping[str, Array]) -> Template:
        """What messages must look like, for this model.

        Raises:
            ConfigError: the model, or the server for it, can not work.
        """
        own = self.own_template(arrays)
        self.defence.server.check(own.d)
        if not self.sketched:
            return own
        assert isinstance(self.defence.server, FetchSGD)
        sketch = self.defence.server.sketch(own.d)
        table = Field(SKETCH, (sketch.rows, sketch.columns), np.dtype(np.float32), False, 0, sketch.cells)
        return Template((table, *(replace(f, start=0, stop=0) for f in own.fields if f.buffer)))

    def play(
        self,
        number: int,
        arrays: Mapping[str, Array] | Template,
        replies: Sequence[Reply],
        memory: Memory,
        failed: Mapping[int, str] | None = None,
        missing: Sequence[int] = (),
    ) -> Outcome:
        """One round: nothing that a client sent raises, unless ``defence.more_than_f`` is "stop".

        Args:
            number: the round's number, from 1.
            arrays: the global model that clients started from; never changed. A server that knows no more of its model
                than what it looks like gives that (``own_template``): it can read differences alone, and says what
                they come to in ``changes``.
            replies: what came, one a client, in any order.
            memory: what the last call returned.
            failed: clients that reported an error, with what they said.
            missing: clients that were asked and did not answer.

        Raises:
            ConfigError: settings that can not work with this model, or not without knowing it.
            SuspectsError: more clients look hostile than declared, and the defence was told to stop then.
        """
        own, template, model = self._known(arrays)
        replies = sorted(replies, key=lambda reply: reply.client)
        verdicts = {client: Verdict(client, Status.FAILED, why) for client, why in (failed or {}).items()}
        verdicts |= {client: Verdict(client, Status.MISSING, "no answer") for client in missing}

        def ended(why: str) -> Outcome:
            ordered = tuple(verdicts[client] for client in sorted(verdicts))
            excluded = sum(verdict.status is Status.EXCLUDED for verdict in ordered)
            return Outcome(dict(model or {}), memory, ordered, why, {"excluded": excluded})

        def refused(why: str) -> Outcome:
            if self.defence.more_than_f == "stop":
                raise SuspectsError(f"round {number}: {why}")
            return ended(why)

        read, flaws = _read(replies, template, model is not None)
        for row, reply in enumerate(replies):
            flaw = flaws.get(row)
            verdicts[reply.client] = Verdict(reply.client, Status.EXCLUDED if flaw else Status.KEPT, flaw or "")
        if not any(row is not None for row in read):
            return refused(f"none of {len(replies)} replies is usable") if replies else ended("no replies")
        weights = None if model is None else flat(model, own)
        updates = self._updates(own, template, weights, replies, read, flaws)
        rule = self.defence.rule(self.lr)
        try:
            context = Context(
                round=number,
                model=None if self.sketched else weights,
                client_weights=capped(replies, self.weight_cap) if rule.weighted else None,
                root_gradient=self.root_update(number, model, own) if rule.uses_root else None,
                last_aggregate=memory.last.get("aggregate"),
            )
            answer = rule.aggregate(updates, memory.rule, context, generator(self.seed, "defence", number))
        except HostileRowsError as error:
            for row in error.rows:
                client = replies[row].client
                verdicts[client] = Verdict(client, Status.EXCLUDED, flaws.get(row, "not finite"))
            return refused(str(error))
        except ConfigError as error:
            # Too few replies for the declared f: the settings themselves were checked before the first round.
            return ended(str(error))
        flagged = flags(answer, len(replies), context.client_weights)
        verdicts |= {v.client: v for v in _judged(answer, replies, flaws, flagged)}
        why = self.defence.refusal(answer)
        if why is not None:
            return refused(why)
        vector = answer.vector
        for i, part in enumerate(self.defence.post):
            vector = part(vector, generator(self.seed, "post", number, i))
        try:
            step = self._step(own, vector, memory.server)
        except DivergedError as error:
            return ended(str(error))
        change = step.dense(own.d).neg()
        moved = change
        if weights is not None:
            moved = weights + change
            for i, post in enumerate(self.defence.model_post):
                moved = post(moved, number, generator(self.seed, "model post", number, i))
            if self.defence.model_post:
                change = moved - weights
        if not torch.isfinite(moved).all():
            return ended("the next model would not be finite")
        kept = [row for row, reply in enumerate(replies) if verdicts[reply.client].status is Status.KEPT]
        rows = [(found, replies[row].difference) for row in kept if (found := read[row]) is not None]
        buffers, moves = _buffers(model, own, rows, self.buffer_policy)
        ordered = tuple(verdicts[client] for client in sorted(verdicts))
        record = {
            "aggregate_norm": float(answer.vector.double().norm()),
            "update_norm": float(step.values.double().norm()),
            "excluded": sum(verdict.status is Status.EXCLUDED for verdict in ordered),
            "clipped": None if answer.clipped is None else float(answer.clipped),
        }
        result = {} if model is None else {**model, **named(own, moved), **buffers}
        now = Memory(answer.state, step.state, {"aggregate": answer.vector})
        changes = own.ordered({**named(own, change), **moves})
        return Outcome(result, now, ordered, None, record, changes, flagged is not None)

    def check(self, n: int) -> None:
        """Raise ``ConfigError`` unless the rule can work with n clients a round."""
        self.defence.rule(self.lr).check(n)

    def _updates(
        self,
        own: Template,
        template: Template,
        weights: Tensor | None,
        replies: Sequence[Reply],
        read: Sequence[Mapping[str, Array] | None],
        flaws: Mapping[int, str],
    ) -> Updates:
        ids = torch.tensor([reply.client for reply in replies], dtype=torch.int64)
        if self.sketched:
            assert isinstance(self.defence.server, FetchSGD)
            sketch = self.defence.server.sketch(own.d)
            tables = torch.full((len(read), sketch.cells), torch.nan)
            for row, arrays in enumerate(read):
                if arrays is not None:
                    tables[row] = torch.from_numpy(arrays[SKETCH].reshape(-1).astype(np.float32, copy=True))
            return SketchUpdates(tables, sketch, ids)
        model = None if weights is None else weights.numpy()
        values = np.empty((len(read), own.d), own.dtype)

        def fill(start: int, stop: int) -> None:
            for row in range(start, stop):
                arrays = read[row]
                if arrays is None:
                    values[row] = np.nan
                    continue
                with np.errstate(over="ignore", invalid="ignore"):
                    for part in template.parameters:
                        at = slice(part.start, part.stop)
                        sent = arrays[part.name].reshape(-1)
                        if model is None or replies[row].difference:
                            np.negative(sent, out=values[row, at], casting="same_kind")
                        else:
                            np.subtract(model[at], sent, out=values[row, at], casting="same_kind")

        in_threads(lambda: fill, len(read), max(1, _PIECE // own.d))
        layout = tuple(Segment(f.name, f.start, f.stop, f.shape) for f in own.parameters)
        return DenseUpdates(torch.from_numpy(values), ids, layout, flaws)

    def _step(self, own: Template, vector: Tensor, state: State) -> Step:
        server = self.defence.server
        if self.sketched:
            assert isinstance(server, FetchSGD)
            return server.step_sketched(vector.reshape(server.sketch(own.d).rows, -1), own.d, self.lr, state)
        return server.step(vector, self.lr, state)

    def _known(self, arrays: Mapping[str, Array] | Template) -> tuple[Template, Template, Mapping[str, Array] | None]:
        """What the model looks like, what messages must look like, and the model where the server knows it."""
        if not isinstance(arrays, Template):
            return self.own_template(arrays), self.template(arrays), arrays
        for found, what in (
            (self.sketched, "sketched=True reads sketches, not differences"),
            (self.defence.model_post, "model_post changes the model itself"),
            (self.defence.pipeline.uses_root, f"{self.defence.pipeline.name} needs the server's own update"),
        ):
            if found:
                raise ConfigError(f"{what}: that needs the global model, and not only what it looks like")
        self.defence.server.check(arrays.d)
        return arrays, arrays, None

    def root_update(self, number: int, arrays: Mapping[str, Array] | None, own: Template) -> Tensor:
        """The server's own update [d] from the model ``arrays`` of round ``number``.

        Raises:
            BezoarError: its training returned another model.
        """
        assert self.root is not None
        assert arrays is not None
        trained = self.root(number, arrays)
        try:
            checked = own.check({name: np.asarray(value) for name, value in trained.items()})
        except GateError as error:
            raise BezoarError(f"root: the server's own training returned another model: {error}") from None
        return flat(arrays, own) - flat(checked, own)


def _read(
    replies: Sequence[Reply], template: Template, known: bool
) -> tuple[list[dict[str, Array] | None], dict[int, str]]:
    """Every reply's arrays (None where it is malformed), and row -> what is wrong with it."""
    read: list[dict[str, Array] | None] = []
    flaws: dict[int, str] = {}
    for row, reply in enumerate(replies):
        try:
            if reply.flaw:
                raise GateError(reply.flaw)
            if not (known or reply.difference):
                raise GateError("a whole model: the server does not know its own, and reads differences alone")
            read.append(template.check(reply.arrays))
        except GateError as error:
            flaws[row] = str(error)
            read.append(None)
    return read, flaws


def capped(replies: Sequence[Reply], cap: float) -> Tensor:
    """Claimed weights [n], none above ``cap`` times the median of those that are weights at all."""
    claimed = torch.tensor([reply.weight for reply in replies], dtype=torch.float64)
    usable = (claimed > 0) & torch.isfinite(claimed)
    if not usable.any():
        return claimed
    return torch.where(usable, claimed.clamp(max=cap * float(claimed[usable].median())), claimed)


def _judged(
    answer: Aggregate, replies: Sequence[Reply], flaws: Mapping[int, str], flagged: Tensor | None
) -> list[Verdict]:
    found = []
    for row, reply in enumerate(replies):
        if row in answer.excluded:
            found.append(Verdict(reply.client, Status.EXCLUDED, flaws.get(row, answer.excluded[row])))
        elif flagged is not None and bool(flagged[row]):
            found.append(Verdict(reply.client, Status.FLAGGED, "the rule gave it no weight"))
        else:
            found.append(Verdict(reply.client, Status.KEPT))
    return found


def flat(arrays: Mapping[str, Array], template: Template) -> Tensor:
    """The parameters as one vector [d]."""
    vector = np.empty(template.d, template.dtype)
    for part in template.parameters:
        vector[part.start : part.stop] = arrays[part.name].reshape(-1)
    return torch.from_numpy(vector)


def named(template: Template, vector: Tensor) -> dict[str, Array]:
    """The vector [d] as arrays of the parameters' names, shapes and types."""
    flat = vector.numpy()
    return {f.name: flat[f.start : f.stop].reshape(f.shape).astype(f.dtype) for f in template.parameters}


def _buffers(
    arrays: Mapping[str, Array] | None,
    template: Template,
    kept: Sequence[tuple[Mapping[str, Array], bool]],
    policy: BufferPolicy,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays that are no parameters, and how they changed.

    A median of rows is one of them for odd numbers, the lower middle for even. ``kept`` are messages, and whether they
    are differences; without the server's model all of them are, and only changes are found.
    """
    found: dict[str, Array] = {}
    changes: dict[str, Array] = {}
    for part in template.fields:
        if not part.buffer:
            continue
        old = np.zeros(part.shape, part.dtype) if arrays is None else arrays[part.name]
        new = old
        if policy == "median" and kept:
            rows = np.stack([_plus(old, row[part.name]) if difference else row[part.name] for row, difference in kept])
            usable = np.isfinite(rows).reshape(len(rows), -1).all(1)
            if usable.any():
                rows = np.sort(rows[usable], axis=0)
                new = np.ascontiguousarray(rows[(len(rows) - 1) // 2]).reshape(part.shape)
        found[part.name] = new
        changes[part.name] = _minus(new, old)
    return found, changes


def _plus(old: Array, change: Array) -> Array:
    """``old`` and a difference; for truth values, which have none, what is true in one of them alone."""
    with np.errstate(all="ignore"):
        return np.asarray(np.logical_xor(old, change) if old.dtype == np.bool_ else old + change, old.dtype)


def _minus(new: Array, old: Array) -> Array:
    """The difference that :func:`_plus` adds."""
    with np.errstate(all="ignore"):
        return np.asarray(np.logical_xor(new, old) if old.dtype == np.bool_ else new - old, old.dtype)
