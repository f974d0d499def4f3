"""bezoar's rules and servers as an aggregator of NVFlare."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from bezoar.aggregation import Rule
from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments.defence import Defence
from bezoar.experiments.records import plain
from bezoar.integrations.coordinator import Coordinator, Memory, Outcome, Reply, Status, Verdict, as_defence
from bezoar.integrations.gate import BUFFERS, Array, BufferPolicy, GateError, Template
from bezoar.integrations.nvflare.books import Books, settings, words
from bezoar.integrations.nvflare.models import (
    UNKNOWN,
    Sent,
    common_layout,
    model_of,
    name_of,
    natural,
    params_of,
    sent_by,
)
from bezoar.integrations.reported import medians
from bezoar.servers import SERVERS, Server

#: Where a result's ``meta`` holds what became of every client.
META = "bezoar"

#: NVFlare's aggregators do not call the constructor that would give them a logger.
_LOG = logging.getLogger(__name__)


class RobustAggregator(ModelAggregator):  # type: ignore[misc]
    """Any rule or pipeline, and any server, for NVFlare's FedAvg and for every workflow that takes an aggregator.

    Clients may send whole models or differences, as arrays of NumPy or tensors; the result is of the kind that most of
    them sent. Updates are aggregated, not weights, in the order of the clients' numbers, whichever answered first.
    What a client claims to weigh is used by rules that ask for it alone, and capped. A model with wrong names, shapes
    or types, or with numbers that are not finite, is left out and counts as one of the rule's f; it never raises. Where
    more are bad than f, the round keeps the old model.

    ``meta["bezoar"]`` of a result holds ``round``, ``skipped`` (why the old model was kept, or None) and ``verdicts``
    (client name to ``"kept"``, ``"flagged: ..."``, ``"excluded: ..."`` or ``"missing: ..."``).

    Arguments are plain values, or become such, so that recipes can write them into a job's configuration.

    Args:
        rule: a rule or pipeline, a :class:`Defence`, a preset's name, or a table such as
            ``{"preset": "sparsefed", "k": "5%"}``. Rules alone get the server of FedAvg, without momentum.
        server: what is done with the aggregate, an object or a table, instead of the one that comes with ``rule``.
        lr: the server's rate: 1 adds the aggregated update.
        weight_cap: claimed weights (``NUM_STEPS_CURRENT_ROUND``) are cut to this many times their median.
        buffers: patterns of the names of arrays that are no parameters; those of BatchNorm by default.
        buffer_policy: "median", "keep" or "rule", see :class:`bezoar.integrations.coordinator.Coordinator`.
        clients: names in the order of their numbers; others get the next numbers as they appear. Without it, names are
            numbered as they appear, those of one round in natural order (site-2 before site-10).
        out: a directory for records, which ``bezoar report`` reads; relative to the job's run directory at the server.
        label: of the run, in records.
        verdicts_in_meta: NVFlare sends a result's ``meta`` to all clients with the next model. False keeps the verdicts
            out of it, so that attackers do not learn them.
        seed: of everything that is drawn.

    Raises:
        ConfigError: settings that can not work.
    """

    def __init__(
        self,
        rule: Rule | Defence | str | Mapping[str, Any],
        server: Server | str | Mapping[str, Any] | None = None,
        lr: float = 1.0,
        weight_cap: float = 10.0,
        buffers: Sequence[str] | None = None,
        buffer_policy: BufferPolicy = "median",
        clients: Sequence[str] | None = None,
        out: str | None = None,
        label: str = "nvflare",
        verdicts_in_meta: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        built = server if server is None or isinstance(server, Server) else SERVERS.build(server)
        defence = as_defence(rule, built)
        # What NVFlare writes into a job's configuration, under the arguments' names.
        table = rule if isinstance(rule, str | Mapping) else defence.table()
        self.rule: Any = table if isinstance(table, str) else plain(table)
        self.server: Any = SERVERS.table(built) if table is rule and built is not None else None
        self.lr = lr
        self.weight_cap = weight_cap
        self.buffers = None if buffers is None else list(buffers)
        self.buffer_policy = buffer_policy
        self.clients = None if clients is None else list(clients)
        self.out = None if out is None else str(out)
        self.label = label
        self.verdicts_in_meta = verdicts_in_meta
        self.seed = seed
        patterns = BUFFERS if buffers is None else tuple(buffers)
        own = type(self).train_root is not RobustAggregator.train_root
        self._coordinator = Coordinator(
            defence, lr, weight_cap, patterns, buffer_policy, root=self.train_root if own else None, seed=seed
        )
        self._numbers = {name: i for i, name in enumerate(self.clients or ())}
        if self.clients is not None:
            if len(self._numbers) < len(self.clients):
                raise ConfigError(f"clients must be different names, got {self.clients}")
            self._coordinator.check(len(self.clients))
        self._lock = threading.Lock()
        self._received: dict[str, list[Sent]] = {}
        self._asked: set[str] = set()
        self._given: Any = None
        self._gate: Template | None = None
        self._last: Mapping[str, Any] | None = None
        self._layout: Sent | None = None
        self._memory = Memory()
        self._round = 0
        self._books = Books(self.out, plain(settings(self._coordinator, label, self.clients)))
        self._since: float | None = None
        self._template: Template | None = None
        #: The last round's verdicts, in the order of client numbers; why it was skipped, or None.
        self.verdicts: tuple[Verdict, ...] = ()
        self.skipped: str | None = None

    # For subclasses

    def train_root(self, number: int, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The server's own training on data that it trusts, for rules that compare with it (FLTrust).

        Subclasses define it: round and global model in, the trained model out.
        """
        raise NotImplementedError

    # NVFlare's interface

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Learn the model that a round starts from and who is asked; write the summary when the run ends."""
        super().handle_event(event_type, fl_ctx)
        if event_type == AppEventType.BEFORE_TRAIN_TASK:
            self._sending(fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE), _peer(fl_ctx))
        elif event_type == EventType.END_RUN:
            self.close()

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Take one client's result (ScatterAndGather); False if it belongs to another round."""
        self.fl_ctx = fl_ctx
        name = _peer(fl_ctx) or shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, None) or UNKNOWN
        sent, now = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND), fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if sent is not None and now is not None and sent != now:
            _LOG.warning("bezoar: the result of %s belongs to another round, and is ignored", name)
            return False
        try:
            model = FLModelUtils.from_shareable(shareable, fl_ctx)
        except Exception as error:  # Whatever it is: in this workflow it would end the job.
            self._take(name, Sent(flaw=f"can not be read: {type(error).__name__}"))
        else:
            self._take(name, sent_by(model))
        return True

    def accept_model(self, model: FLModel) -> None:
        """Take one client's model; nothing that it holds raises."""
        self._take(name_of(model), sent_by(model))

    def aggregate_model(self) -> FLModel:
        """The next model (or the step to it), and every client's verdict in its ``meta``.

        Raises:
            BezoarError: the workflow does not say which model clients started from (see :meth:`begin`), settings
                can not work with this model, or records can not be written.
        """
        with self._lock:
            received, asked, given = self._received, self._asked, self._given
            self._received, self._asked, self._given, self._gate = {}, set(), None, None
            since, self._since, aggregated = self._since, None, time.perf_counter()
        self._round = max(self._round, self._workflow_round()) + 1
        everyone = received.keys() | asked
        for name in sorted(everyone, key=natural):
            self._numbers.setdefault(name, len(self._numbers))
        names = {self._numbers[name]: name for name in everyone}
        read = {self._numbers[name]: _once(found) for name, found in received.items()}
        model = self._model(given)
        start, likes = self._start(model, [read[number] for number in sorted(read)])
        outcome = self._play(start, read, sorted(self._numbers[name] for name in asked - received.keys()))
        self._memory, self.verdicts, self.skipped = outcome.memory, outcome.verdicts, outcome.skipped
        usable = [v.client for v in outcome.verdicts if v.status in (Status.KEPT, Status.FLAGGED)]
        metrics = medians([read[client].metrics for client in usable])
        self._log(names)
        if start is not None:
            self._template = start if isinstance(start, Template) else self._coordinator.own_template(start)
        seconds = {"clients": aggregated - (since or aggregated), "aggregation": time.perf_counter() - aggregated}
        self._books.add(self._round, outcome, names, metrics, {**seconds, "evaluation": 0.0}, self.fl_ctx)
        kind, changes = ParamsType.DIFF, outcome.changes
        if model is not None:
            self._last = params_of(outcome.arrays, likes)
            if 2 * sum(one.difference for one in read.values()) <= len(read):
                kind = ParamsType.FULL
        if outcome.skipped is not None and self._template is not None:
            changes = {f.name: np.zeros(f.shape, f.dtype) for f in self._template.fields}
        params = dict(self._last or {}) if kind == ParamsType.FULL else params_of(changes, likes)
        return FLModel(params_type=kind, params=params, metrics=metrics or None, meta=self._meta(names))

    def reset_stats(self) -> None:
        """Forget what came since the last aggregate; what is known of the model and of earlier rounds stays."""
        with self._lock:
            self._received = {}

    # For workflows of one's own

    def begin(self, params: Mapping[str, Any]) -> None:
        """Say which model clients start from, where no workflow of NVFlare does."""
        gate = self._coordinator.own_template(model_of(params))
        with self._lock:
            self._given, self._gate = params, gate

    def close(self) -> None:
        """Write the summary; NVFlare's end of a run does that too."""
        if self._template is not None:
            self._books.close({} if self._last is None else model_of(self._last), self._template.d)

    # What is ours

    def _sending(self, shareable: Any, client: str | None) -> None:
        if client is not None:
            with self._lock:
                self._asked.add(client)
                self._since = self._since or time.perf_counter()
        try:
            params = FLModelUtils.from_shareable(shareable).params
            if params and params is not self._given:
                self.begin(params)
        except Exception as error:
            _LOG.warning("bezoar: the model that is sent can not be read: %s", error)

    def _take(self, name: str, sent: Sent) -> None:
        with self._lock:
            gate = self._gate
        try:
            # What is flawed would only take memory until the others have answered.
            if not sent.flaw and gate is not None:
                gate.check(sent.arrays)
        except GateError as error:
            sent = Sent(flaw=str(error), difference=sent.difference)
        with self._lock:
            self._received.setdefault(name, []).append(sent)

    def _workflow_round(self) -> int:
        """The rounds that the workflow says are behind."""
        number = None if self.fl_ctx is None else self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        return number if isinstance(number, int) else 0

    def _model(self, given: Any) -> Mapping[str, Any] | None:
        """The parameters that clients started from, as the workflow has them; None where it does not say."""
        if given is not None:
            return dict(given)
        known = None if self.fl_ctx is None else self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        weights = known.get(ModelLearnableKey.WEIGHTS) if isinstance(known, Mapping) else None
        return dict(weights) if isinstance(weights, Mapping) and weights else self._last

    def _start(
        self, model: Mapping[str, Any] | None, sent: Sequence[Sent]
    ) -> tuple[Mapping[str, Array] | Template | None, Mapping[str, Any]]:
        """What clients started from, or what it looks like; and parameters of the kind that the result is to be."""
        if model is not None:
            return model_of(model), model
        readable = [one for one in sent if not one.flaw]
        if readable and not any(one.difference for one in readable):
            raise BezoarError(
                "clients send whole models, and the workflow does not say which one they started from: "
                "give it to begin() before every round"
            )
        self._layout = self._layout or common_layout(sent)
        if self._layout is not None:
            try:
                return self._coordinator.own_template(self._layout.arrays), self._layout.likes
            except ConfigError as error:  # What the clients agree on is no model.
                _LOG.warning("bezoar: %s", error)
                self._layout = None
        return None, {}

    def _play(
        self, start: Mapping[str, Array] | Template | None, read: Mapping[int, Sent], missing: Sequence[int]
    ) -> Outcome:
        replies = [Reply(i, one.arrays, one.weight, one.flaw, one.difference) for i, one in read.items()]
        if start is not None:
            return self._coordinator.play(self._round, start, replies, self._memory, missing=missing)
        why = "no model that more than half of the clients agree on" if replies else "no replies"
        found = [Verdict(reply.client, Status.EXCLUDED, reply.flaw or why) for reply in replies]
        found += [Verdict(client, Status.MISSING, "no answer") for client in missing]
        ordered = tuple(sorted(found, key=lambda verdict: verdict.client))
        return Outcome({}, self._memory, ordered, why, {"excluded": len(replies)})

    def _log(self, names: Mapping[int, str]) -> None:
        if self.skipped is not None:
            _LOG.warning("bezoar: round %s skipped, the old model is kept: %s", self._round, self.skipped)
        for v in self.verdicts:
            if v.status is Status.EXCLUDED:
                _LOG.info("bezoar: %s excluded: %s", names[v.client], v.reason)

    def _meta(self, names: Mapping[int, str]) -> dict[str, Any]:
        if not self.verdicts_in_meta:
            return {}
        said = {names[v.client]: words(v) for v in self.verdicts}
        return {META: {"round": self._round, "skipped": self.skipped, "verdicts": said}}


def _peer(fl_ctx: FLContext) -> str | None:
    """The client at the other end, as NVFlare has authenticated it."""
    peer = fl_ctx.get_peer_context()
    name = None if peer is None else peer.get_identity_name(None)
    return name if isinstance(name, str) and name else None


def _once(found: Sequence[Sent]) -> Sent:
    """A client's only model; several are one flaw."""
    return found[0] if len(found) == 1 else Sent(flaw=f"{len(found)} models in one round")
