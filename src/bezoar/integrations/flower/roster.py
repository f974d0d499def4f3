"""Who is who: numbers for clients that stay the same, where Flower draws the ids of nodes anew for every run.

Clients that answer the roll call are known by their partition id. So cohorts are those of the seed, rows come in the
same order whichever answer arrived first, and what a rule remembers of a client stays that client's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO
from typing import Any

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid

from bezoar.errors import BezoarError

#: Action of the query that asks a client for its partition id.
ACTION = "bezoar_roll_call"

#: Key of the answer.
PARTITION = "partition-id"

#: Numbers of clients that did not say who they are, or said what another had said, start here.
UNKNOWN = 2**32


def answer_roll_call(app: ClientApp) -> ClientApp:
    """Let the clients of ``app`` say which partition they hold; returns ``app``.

    >>> app = answer_roll_call(ClientApp())
    """

    def answer(message: Message, context: Context) -> Message:
        partition = context.node_config.get(PARTITION)
        said = MetricRecord()
        if partition is not None:
            said[PARTITION] = int(partition)
        return Message(RecordDict({"metrics": said}), reply_to=message)

    app.query(ACTION)(answer)
    return app


@dataclass
class Roster:
    """Node id -> client number; grows when new nodes appear, and never renumbers one."""

    ask: bool = True
    numbers: dict[int, int] = field(default_factory=dict)
    _taken: dict[int, int] = field(default_factory=dict)

    def meet(self, grid: Grid, nodes: Iterable[int], timeout: float | None = None) -> None:
        """Give numbers to the ``nodes`` that have none yet; these are all that are connected.

        A client that comes back as another node gets its number again, as its old node is gone.
        """
        present = set(nodes)
        new = sorted(present - self.numbers.keys())
        if not new:
            return
        claims = partitions(grid, new, timeout) if self.ask else {}
        for node in new:
            number = claims.get(node)
            if number is not None and number in self._taken and self._taken[number] not in present:
                del self.numbers[self._taken[number]]
            elif number is None or number in self._taken:
                number = UNKNOWN + sum(known >= UNKNOWN for known in self._taken)
            self._taken[number] = node
            self.numbers[node] = number

    def nodes(self, clients: Iterable[int]) -> list[int]:
        """The node of every client number."""
        return [self._taken[client] for client in clients]


def partitions(grid: Grid, nodes: Iterable[int], timeout: float | None = None) -> Mapping[int, int]:
    """The partition ids that nodes claim; nodes that claim none, or no usable one, are left out."""
    asked = [Message(RecordDict(), message_type=f"{MessageType.QUERY}.{ACTION}", dst_node_id=node) for node in nodes]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(asked, timeout=timeout):
        if not reply.has_error():
            number = _claim(reply.content)
            if number is not None:
                found[reply.metadata.src_node_id] = number
    if len(found) < len(asked):
        log(
            INFO,
            "bezoar: %s of %s clients say no partition id (see answer_roll_call); they are ordered by node id",
            len(asked) - len(found),
            len(asked),
        )
    return found


def _claim(content: RecordDict) -> int | None:
    said: Any = next((record.get(PARTITION) for record in content.metric_records.values()), None)
    return said if isinstance(said, int) and 0 <= said < UNKNOWN else None


def wait_for(grid: Grid, least: int, limit: float | None = None, pause: float = 1.0) -> list[int]:
    """The ids of all nodes [>= least], once there are so many.

    Raises:
        BezoarError: there were too few for ``limit`` seconds.
    """
    start, told = time.monotonic(), -30.0
    while True:
        nodes = sorted(grid.get_node_ids())
        waited = time.monotonic() - start
        if len(nodes) >= least:
            return nodes
        if limit is not None and waited > limit:
            raise BezoarError(f"{len(nodes)} clients are connected after {limit:g} s, at least {least} are needed")
        if waited - told >= 30:
            log(INFO, "bezoar: waiting for clients: %s of %s are connected", len(nodes), least)
            told = waited
        time.sleep(pause)
