"""Any rule and any server of bezoar behind Flower's ``Strategy``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from bezoar.errors import ConfigError
from bezoar.experiments.records import plain
from bezoar.integrations.coordinator import Coordinator, Memory, Reply, RootFn, Status, Verdict, as_defence
from bezoar.integrations.flower.messages import arrays_of, median_metrics, record_of, reply_of
from bezoar.integrations.flower.roster import UNKNOWN, Roster, wait_for
from bezoar.integrations.flower.sketches import CONFIG, sketch_config
from bezoar.integrations.gate import BUFFERS, Array, BufferPolicy
from bezoar.integrations.journal import Journal, caught, evaluation_record, round_record
from bezoar.integrations.malicious import Malicious, as_malicious
from bezoar.seeding import numpy_generator
from bezoar.servers import FetchSGD, Server

#: Evaluates the model at the server: (round, model) -> metrics.
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

#: Makes one record of the metrics that clients report: (their contents, key of the claimed weight).
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


class RobustStrategy(Strategy):
    """Federated training behind a robust rule, in three lines of a ServerApp.

    >>> from bezoar.aggregation import NNM, TrimmedMean
    >>> strategy = RobustStrategy(NNM(f=2) >> TrimmedMean(f=2), fraction_train=0.5, seed=1)

    What differs from Flower's own strategies:

    - The rule aggregates *updates* (global minus local), never weights: distances keep their digits, and clipping
      means what it says. The server may have momentum, be SparseFed, or FetchSGD on sketches that clients send.
    - Every reply passes a gate first: names, decoded shapes and types, sizes, finite numbers. A bad reply counts as one
      of the rule's f; it never raises and never ends the run. More bad replies than f end the *round*: the old model is
      kept and the record says why. Every client gets a verdict (``verdicts``, the records, and the train metrics as
      ``bezoar-clients`` and ``bezoar-verdicts``, numbers of :class:`bezoar.integrations.flower.Status`).
    - What a client claims to weigh is ignored, unless the rule is told to use weights; then it is capped.
    - Cohorts come from ``seed`` and partition ids (see :func:`answer_roll_call`), rows are in the order of partition
      ids whoever answers first: the same app gives the same model twice.
    - Metrics that clients report are medians over clients, unless you give a function.
    - :meth:`start` can keep records that ``bezoar report`` reads, and go on after a crash.

    Args:
        rule: a rule or a pipeline, a :class:`bezoar.experiments.defence.Defence`, or a preset's name or table.
        server: what to do with the aggregate; without it that of the defence, for a rule plain averaging.
        lr: the server's rate.
        fraction_train: share of the connected clients that train in a round, at least ``min_train_nodes`` of them.
        fraction_evaluate: the same for evaluation by clients; 0 turns it off.
        min_train_nodes: see ``fraction_train``.
        min_evaluate_nodes: see ``fraction_evaluate``.
        min_available_nodes: rounds wait until so many clients are connected.
        weighted_by_key: where clients put what they claim to weigh.
        arrayrecord_key: name of the record with the model, in messages to clients.
        configrecord_key: name of the record with the configuration.
        train_metrics_aggr_fn: makes one record of the metrics that kept clients report.
        evaluate_metrics_aggr_fn: the same for evaluation.
        weight_cap: claimed weights count up to this many times their median.
        buffers: name patterns of arrays that are measured, not trained (BatchNorm's statistics).
        buffer_policy: ``"median"`` of the kept clients (default), ``"keep"`` the server's, ``"rule"`` as parameters.
        sketched: clients send sketches (:func:`sketch_mod`); needs ``server=FetchSGD(...)``.
        root: the server's own training on data it trusts, for FLTrust: (round, model arrays) -> trained arrays.
        roll_call: ask clients for their partition ids.
        seed: of cohorts and of everything that rules draw.
        known_malicious: who is malicious, in an experiment. For the records alone, which then say how many attacked and
            what share of them, and of the others, was flagged (``detected``, ``false_alarms``); nothing else sees it.

    Attributes:
        verdicts: of the last round, one a client that was asked.
        skipped: why the last round kept the old model, None if it did not.

    Raises:
        ConfigError: the parts do not fit together.
    """

    def __init__(
        self,
        rule: Any,
        *,
        server: Server | None = None,
        lr: float = 1.0,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        weight_cap: float = 10.0,
        buffers: Sequence[str] = BUFFERS,
        buffer_policy: BufferPolicy = "median",
        sketched: bool = False,
        root: RootFn | None = None,
        roll_call: bool = True,
        seed: int = 0,
        known_malicious: Malicious | Collection[int] = (),
    ) -> None:
        self.coordinator = Coordinator(
            as_defence(rule, server), lr, weight_cap, tuple(buffers), buffer_policy, sketched, root, seed
        )
        for name, share in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {share}")
        self.fractions = {"train": fraction_train, "evaluate": fraction_evaluate}
        self.least = {"train": min_train_nodes, "evaluate": min_evaluate_nodes}
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self._train_metrics = train_metrics_aggr_fn or self._medians
        self._evaluate_metrics = evaluate_metrics_aggr_fn or self._medians
        self.seed = seed
        self.verdicts: tuple[Verdict, ...] = ()
        self.skipped: str | None = None
        self.record: dict[str, Any] = {}
        self.known_malicious = as_malicious(known_malicious)
        self.roster = Roster(roll_call)
        self._memory = Memory()
        self._arrays: dict[str, Array] = {}
        self._asked: dict[str, list[int]] = {"train": [], "evaluate": []}
        self._checked = False
        self._timeout: float | None = None

    def _medians(self, contents: list[RecordDict], key: str) -> MetricRecord:
        return median_metrics(contents, (key,))

    def summary(self) -> None:
        """Log the settings."""
        defence = self.coordinator.defence
        log(INFO, "\t├──> Rule: %s", defence.pipeline)
        log(INFO, "\t├──> Server: %s, rate %g", defence.server, self.coordinator.lr)
        log(INFO, "\t├──> Shares of clients: train %(train)g, evaluate %(evaluate)g", self.fractions)
        log(INFO, "\t└──> Arrays that are no parameters: %s", self.coordinator.buffer_policy)

    # Flower's interface

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the cohort of a round; remembers the model that it starts from."""
        self._arrays = arrays_of(arrays)
        if not self._checked:
            template = self.coordinator.template(self._arrays)
            log(INFO, "bezoar: %s parameters in %s arrays", template.d, len(template.parameters))
        clients = self._sample("train", server_round, grid)
        if clients and not self._checked:
            # Settings that can never work end the run before it starts; later, too few replies only skip a round.
            self.coordinator.check(len(clients))
            self._checked = True
        extra = {}
        server = self.coordinator.defence.server
        if self.coordinator.sketched and isinstance(server, FetchSGD):
            sketch = server.sketch(self.coordinator.own_template(self._arrays).d)
            buffers = () if self.coordinator.buffer_policy == "rule" else self.coordinator.buffers
            extra[CONFIG] = sketch_config(sketch, buffers, server.seed)
        return self._messages("train", server_round, arrays, config, clients, extra)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model (None where the round was skipped) and metrics with every client's verdict."""
        if not self._asked["train"]:
            self.verdicts, self.skipped, self.record = (), "no clients were asked", {}
            return None, None
        messages, failed, missing = self._sorted("train", replies)
        most = self.coordinator.template(self._arrays).most_bytes
        read = [_once(client, found, self.weighted_by_key, most) for client, found in messages.items()]
        outcome = self.coordinator.play(server_round, self._arrays, read, self._memory, failed, missing)
        self._memory, self.verdicts, self.skipped = outcome.memory, outcome.verdicts, outcome.skipped
        truth = caught(self.verdicts, self._bad(), self.known_malicious.active(server_round), outcome.tells)
        self.record = {**outcome.record, **truth}
        self._log(server_round)
        good = [v.client for v in self.verdicts if v.status in (Status.KEPT, Status.FLAGGED) and v.client in messages]
        metrics = self._reported(self._train_metrics, [messages[client][0].content for client in good])
        metrics["bezoar-clients"] = [verdict.client for verdict in self.verdicts]
        metrics["bezoar-verdicts"] = [int(verdict.status) for verdict in self.verdicts]
        metrics["bezoar-skipped"] = int(outcome.skipped is not None)
        return (None if outcome.skipped is not None else record_of(outcome.arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the clients that evaluate."""
        clients = self._sample("evaluate", server_round, grid)
        return self._messages("evaluate", server_round, arrays, config, clients, {})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """One record of what the clients report."""
        messages, _, _ = self._sorted("evaluate", replies)
        contents = [found[0].content for found in messages.values() if len(found) == 1]
        return self._reported(self._evaluate_metrics, contents) if contents else None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        checkpoint_every: int = 1,
        name: str = "flower",
    ) -> Result:
        """Train for ``num_rounds`` rounds; the first arguments are Flower's.

        Args:
            grid: connects to the clients.
            initial_arrays: the model to start from.
            num_rounds: rounds in all, those before a resumed start included.
            timeout: seconds to wait for replies in a round.
            train_config: sent to clients that train.
            evaluate_config: sent to clients that evaluate.
            evaluate_fn: evaluates the model at the server after every round, and before the first.
            out: directory for records, checkpoint, final model and summary; ``bezoar report OUT`` reads them.
            resume: go on from the checkpoint in ``out``, if there is one; the model of a finished run is returned.
            checkpoint_every: rounds between checkpoints.
            name: of the run, in records.

        Raises:
            ConfigError: settings that can not work, or ``out`` holds another run.
        """
        if resume and out is None:
            raise ConfigError("resume=True needs out=, the directory of the run to go on with")
        self._timeout, self._checked, self._memory = timeout, False, Memory()
        journal = Journal(None if out is None else Path(out), self.settings(name))
        result, arrays, first = Result(), initial_arrays, 1
        done = journal.finished() if resume else None
        if done is not None:
            played, model = done
            if played < num_rounds:
                raise ConfigError(f"{out}: is finished after {played} rounds; for {num_rounds} choose another out")
            if model.keys() != initial_arrays.keys():
                raise ConfigError(f"{out}: its model has other arrays than initial_arrays; choose another out")
            log(INFO, "bezoar: %s is finished: its model is returned", out)
            result.arrays = record_of({name: model[name] for name in initial_arrays})
            return result
        saved = journal.open(resume)
        if saved is not None:
            number, model, self._memory = saved
            first, arrays = number + 1, record_of(model)
            log(INFO, "bezoar: going on after round %s", number)
        log(INFO, "Starting %s:", type(self).__name__)
        self.summary()
        result.arrays = arrays
        if evaluate_fn is not None and first == 1:
            self._evaluated(0, evaluate_fn(0, arrays), result, journal, None)
        for number in range(first, num_rounds + 1):
            start = time.perf_counter()
            replies = list(
                grid.send_and_receive(
                    self.configure_train(number, arrays, train_config or ConfigRecord(), grid), timeout=timeout
                )
            )
            trained = time.perf_counter()
            new, metrics = self.aggregate_train(number, replies)
            aggregated = time.perf_counter()
            if new is not None:
                arrays = result.arrays = new
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
            cohort = len(self._asked["train"])
            journal.add(round_record(number, self.coordinator.lr, cohort, self.verdicts, self.record, self.skipped))
            reported = self.aggregate_evaluate(
                number,
                grid.send_and_receive(
                    self.configure_evaluate(number, arrays, evaluate_config or ConfigRecord(), grid), timeout=timeout
                ),
            )
            if reported is not None:
                result.evaluate_metrics_clientapp[number] = reported
            own = None if evaluate_fn is None else evaluate_fn(number, arrays)
            self._evaluated(number, own, result, journal, reported)
            ended = time.perf_counter()
            spent = {"clients": trained - start, "aggregation": aggregated - trained, "evaluation": ended - aggregated}
            journal.add(seconds={"round": number, **spent})
            if number % checkpoint_every == 0 and number < num_rounds:
                journal.save(number, arrays_of(arrays), self._memory)
        model = arrays_of(arrays)
        journal.finish(model, self.coordinator.own_template(model).d)
        return result

    # What is ours

    @property
    def memory(self) -> Memory:
        """What the server remembers after the last round."""
        return self._memory

    def _bad(self) -> tuple[int, ...]:
        """Who is malicious, as far as it is known."""
        who, known = self.known_malicious, [c for c in self.roster.numbers.values() if c < UNKNOWN]
        return who.of(max([len(self.roster.numbers), *(c + 1 for c in (*known, *(who.clients or ())))]))

    def settings(self, name: str = "flower") -> dict[str, Any]:
        """The settings as a table, as they stand in the records."""
        made = self.coordinator
        table: dict[str, Any] = {
            "kind": "flower",
            "name": name,
            "seed": self.seed,
            "lr": made.lr,
            "defence": made.defence.table(),
            "flower": {
                "fraction_train": self.fractions["train"],
                "fraction_evaluate": self.fractions["evaluate"],
                "min_train_nodes": self.least["train"],
                "weight_cap": made.weight_cap,
                "buffers": list(made.buffers),
                "buffer_policy": made.buffer_policy,
                "sketched": made.sketched,
            },
        }
        if self.known_malicious.clients != ():
            who = self.known_malicious
            given = {key: getattr(who, key) for key in ("clients", "count", "share", "seed", "start", "stop", "every")}
            table["flower"]["known_malicious"] = {key: value for key, value in given.items() if value is not None}
        return plain(table)

    def _sample(self, purpose: str, number: int, grid: Grid) -> list[int]:
        """Client numbers of a cohort, ascending."""
        self._asked[purpose] = []
        share, least = self.fractions[purpose], self.least[purpose]
        if share == 0:
            return []
        nodes = wait_for(grid, max(self.min_available_nodes, least, 1))
        self.roster.meet(grid, nodes, self._timeout)
        present = sorted(self.roster.numbers[node] for node in nodes)
        size = min(len(present), max(int(len(present) * share), least))
        draw = numpy_generator(self.seed, f"flower {purpose}", number)
        clients = sorted(int(c) for c in draw.choice(present, size, replace=False))
        self._asked[purpose] = clients
        return clients

    def _messages(
        self,
        purpose: str,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        clients: Sequence[int],
        extra: Mapping[str, ConfigRecord],
    ) -> list[Message]:
        config["server-round"] = number
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config, **extra})
        kind = MessageType.TRAIN if purpose == "train" else MessageType.EVALUATE
        nodes = self.roster.nodes(clients)
        return [Message(content=record, message_type=kind, dst_node_id=node) for node in nodes]

    def _sorted(
        self, purpose: str, replies: Iterable[Message]
    ) -> tuple[dict[int, list[Message]], dict[int, str], list[int]]:
        """Replies by client in the order of client numbers, who failed with what it said, and who did not answer."""
        asked = set(self._asked[purpose])
        found: dict[int, list[Message]] = {}
        failed: dict[int, str] = {}
        for message in replies:
            client = self.roster.numbers.get(message.metadata.src_node_id)
            if client not in asked:
                log(WARNING, "bezoar: node %s was not asked, and is ignored", message.metadata.src_node_id)
            elif message.has_error():
                failed[client] = str(message.error.reason)[:200] or "error"
            else:
                found.setdefault(client, []).append(message)
        failed = {client: why for client, why in failed.items() if client not in found}
        missing = sorted(asked - found.keys() - failed.keys())
        return {client: found[client] for client in sorted(found)}, failed, missing

    def _reported(self, function: MetricsFn, contents: list[RecordDict]) -> MetricRecord:
        """What ``function`` makes of the clients' metrics; a client's nonsense must not end the run in it."""
        try:
            return function(contents, self.weighted_by_key)
        except Exception as error:
            log(WARNING, "bezoar: the clients' metrics could not be aggregated: %s", error)
            return MetricRecord()

    def _evaluated(
        self, number: int, own: MetricRecord | None, result: Result, journal: Journal, reported: MetricRecord | None
    ) -> None:
        if own is not None:
            result.evaluate_metrics_serverapp[number] = own
        metrics = own if own is not None else reported
        if metrics is not None and number > 0:
            journal.add(evaluation_record(number, metrics, "clients" if own is None else "server"))
            log(INFO, "bezoar: round %s: %s", number, dict(metrics))

    def _log(self, number: int) -> None:
        if self.skipped is not None:
            log(WARNING, "bezoar: round %s skipped, the old model is kept: %s", number, self.skipped)
        for verdict in self.verdicts:
            if verdict.status in (Status.EXCLUDED, Status.FAILED):
                log(INFO, "bezoar: client %s %s: %s", verdict.client, verdict.status.name.lower(), verdict.reason)


def _once(client: int, messages: Sequence[Message], weight_key: str, most_bytes: int) -> Reply:
    """A client's only message; several are one flaw."""
    if len(messages) > 1:
        return Reply(client, {}, flaw=f"{len(messages)} replies to one message")
    try:
        return reply_of(client, messages[0], weight_key, most_bytes)
    except Exception as error:
        return Reply(client, {}, flaw=f"can not be read: {type(error).__name__}")
