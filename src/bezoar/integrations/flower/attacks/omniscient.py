"""Attackers who know what honest clients send: between any Flower strategy and its clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from bezoar.attacks import Knowledge, UpdateAttack
from bezoar.errors import ConfigError
from bezoar.integrations.coordinator import Reply
from bezoar.integrations.flower.attacks.memory import History
from bezoar.integrations.flower.attacks.mind import Insight, Seen, known_defence, plotted
from bezoar.integrations.flower.attacks.task import LocalTask
from bezoar.integrations.flower.attacks.turn import is_training, model_in, round_of
from bezoar.integrations.flower.messages import arrays_of, record_of, reply_of
from bezoar.integrations.flower.roster import UNKNOWN, Roster
from bezoar.integrations.gate import BUFFERS, Array, GateError, Template
from bezoar.integrations.malicious import Malicious, as_malicious

try:
    from flwr.supercore.run import Run
except ImportError:  # older versions
    from flwr.common.typing import Run  # type: ignore[attr-defined, no-redef]


class OmniscientGrid(Grid):
    """A ``Grid`` whose malicious clients answer after they have seen what all others send.

    Put it between any strategy, ours or Flower's own, and any grid: ``strategy.start(OmniscientGrid(grid, ALIE(),
    who=Malicious(share=0.2)), ...)``. All clients train honestly; then the models of malicious ones are replaced by
    what an attack on updates makes of the honest ones, metrics and types stay. It is a simulation of colluding
    attackers in the server's process: no real client could see other clients' updates there.

    Clients are told apart by partition ids, so apps must answer the roll call
    (:func:`bezoar.integrations.flower.answer_roll_call`); clients that do not are honest. Replies come back in the
    order of partition ids: with an app that repeats, so does the attack, and Flower's own strategies add up in one
    order. Messages are attacked in :meth:`send_and_receive`, which all strategies use; training messages that are
    pushed are refused. One global model goes to all clients of a round.

    What an attack remembers from round to round is kept here, and in ``folder`` after every round: give the same folder
    to the grid of a resumed run, and it goes on as if nothing had happened, as long as the run's last checkpoint is
    less than ``keep`` rounds old.

    Args:
        grid: connects to the clients.
        attack: an attack on updates, of :data:`bezoar.attacks.ATTACKS` or your own.
        who: partition ids, or :class:`~bezoar.integrations.malicious.Malicious`.
        defence: what attackers who adapt to the defence are up against: the
            :class:`~bezoar.integrations.flower.RobustStrategy` itself, with what it remembers; or a rule, a pipeline, a
            preset (Flower's Krum is about ``Krum(f, variant="blanchard")``). None: they know none.
        task: the app's training, for attacks that train; its data are not asked for.
        knowledge: what attackers know at most.
        seed: of all that attackers draw.
        arrayrecord_key: name of the record with the model, in messages that hold several.
        weighted_by_key: where clients put what they claim to weigh.
        buffers: name patterns of arrays that are no parameters; a strategy given as ``defence`` knows its own.
        roll_call: ask clients for their partition ids.
        folder: where to keep the attack's memory.
        keep: rounds to keep there.

    Attributes:
        reports: round -> who attacked (``clients``) and the attack's own figures.

    Raises:
        ConfigError: the attack can not be made here, or not against this defence.

    >>> from bezoar.attacks import ALIE
    >>> from bezoar.integrations.flower import InProcessGrid, answer_roll_call
    >>> from flwr.clientapp import ClientApp
    >>> grid = InProcessGrid(answer_roll_call(ClientApp()), 10)
    >>> attacked = OmniscientGrid(grid, ALIE(), who=Malicious(count=2, seed=1))
    """

    def __init__(
        self,
        grid: Grid,
        attack: UpdateAttack,
        who: Malicious | Iterable[int],
        *,
        defence: Any = None,
        task: LocalTask | None = None,
        knowledge: Knowledge = Knowledge.DEFENCE,
        seed: int = 0,
        arrayrecord_key: str = "arrays",
        weighted_by_key: str = "num-examples",
        buffers: Sequence[str] = BUFFERS,
        roll_call: bool = True,
        folder: str | Path | None = None,
        keep: int = 20,
    ) -> None:
        self._grid = grid
        self._who = as_malicious(who)
        self._insight = Insight(attack, known_defence(defence), task, knowledge, seed)
        self._model, self._weight = arrayrecord_key, weighted_by_key
        self._buffers = tuple(buffers)
        self._roster = Roster(roll_call)
        self._history = History(None if folder is None else Path(folder), keep)
        self._rounds = 0
        self._clients: int | None = None
        self.reports: dict[int, Mapping[str, Any]] = {}

    @property
    def run(self) -> Run:
        return self._grid.run

    def set_run(self, *arguments: Any, **named: Any) -> None:
        """As of the grid inside."""
        self._grid.set_run(*arguments, **named)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        if any(is_training(message) for message in pushed):
            raise ConfigError(
                "OmniscientGrid: attackers answer when all others have; train by send_and_receive, not by push_messages"
            )
        return self._grid.push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        training = [message for message in sent if is_training(message)]
        if not training:
            return replies
        self._rounds += 1
        number = round_of(training[0].content) or self._rounds
        self._roster.meet(self._grid, self._grid.get_node_ids(), timeout)
        bad = self._malicious()
        replies.sort(key=self.number_of)
        memory = self._history.before(number)
        if self._who.active(number):
            memory = self._attack(number, training[0], replies, bad, memory)
        self._history.after(number, memory)
        return replies

    def number_of(self, reply: Message) -> int:
        """The number of the client that sent ``reply``: its partition id, if it said one."""
        return self._roster.numbers.get(reply.metadata.src_node_id, 2 * UNKNOWN)

    def _malicious(self) -> tuple[int, ...]:
        known = [number for number in self._roster.numbers.values() if number < UNKNOWN]
        if not known:
            raise ConfigError(
                "OmniscientGrid: no client says which partition it holds: wrap the ClientApp in answer_roll_call(app)"
            )
        if self._clients is None:
            self._clients = max(len(self._roster.numbers), max(known) + 1)
        # Who is malicious does not change with clients that come late.
        listed = max(self._who.clients or (-1,)) + 1
        return self._who.of(max(self._clients, listed))

    def _attack(
        self, number: int, message: Message, replies: Sequence[Message], bad: Sequence[int], memory: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Replace what the clients ``bad`` sent, in place; what the attack remembers now."""
        start = arrays_of(model_in(message.content, self._model)[1])
        template = self._insight.template(start, self._buffers)
        answered = {self.number_of(reply): reply for reply in replies if not reply.has_error()}
        read = {client: self._read(client, reply, template) for client, reply in answered.items()}
        attackers = sorted(set(bad) & answered.keys())
        honest = {client: found for client, found in read.items() if client not in attackers and found[1] is not None}
        if not attackers:
            return memory
        if not honest:
            log(
                WARNING,
                "bezoar: round %s: no honest client sent a model that attackers could see",
                number,
            )
            return memory
        seen = Seen(
            number,
            start,
            template,
            {client: arrays for client, (_, arrays) in honest.items() if arrays is not None},
            {client: read[client][1] for client in attackers},
            [read[client][0] for client in sorted([*honest, *attackers])],
        )
        sent, memory, report = plotted(self._insight, seen, memory)
        for client, arrays in sent.items():
            content = answered[client].content
            name = next(iter(content.array_records), self._model)
            for other in list(content.array_records):
                del content[other]
            content[name] = record_of(arrays)
        self.reports[number] = {"clients": tuple(attackers), **report}
        log(INFO, "bezoar: round %s: clients %s attack, %s", number, attackers, dict(report))
        return memory

    def _read(self, client: int, message: Message, template: Template) -> tuple[Reply, dict[str, Array] | None]:
        """A reply, and its arrays, None where it is malformed."""
        try:
            reply = reply_of(client, message, self._weight, template.most_bytes)
            return reply, None if reply.flaw else template.check(reply.arrays)
        except GateError:
            return reply, None
        except Exception:
            return Reply(client, {}, math.nan, "can not be read"), None
