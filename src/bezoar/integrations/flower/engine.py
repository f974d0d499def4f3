"""Flower apps in one process, without Ray: unmodified, in a fixed order, with seeded draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from bezoar.errors import ConfigError
from bezoar.seeding import derive

try:
    from flwr.supercore.run import Run
except ImportError:  # older versions
    from flwr.common.typing import Run  # type: ignore[attr-defined, no-redef]

#: Flower's code for an exception inside a ClientApp, and the reason that comes with it.
_RAISED = 2

_RUN = 1

#: What the process calls itself while server or clients run.
_SERVER_NODE = 1

Value = bool | int | float | str


@dataclass
class _Node:
    """A client: its id, what it knows, and how often it was called."""

    number: int
    context: Context
    calls: int = 0


class InProcessGrid(Grid):
    """A ``Grid`` whose nodes are calls of a ClientApp, one after the other in the order of partition ids.

    Every call gets random streams of its own (``random``, NumPy, torch), derived from the seed, the partition and the
    round (``server-round`` in a config record; else the number of calls): the same apps give the same bits, whoever is
    called before. Clients get copies of messages, as over a network; their contexts keep their state between rounds. An
    exception in the ClientApp becomes an error reply, as in Flower.

    Args:
        client_app: the app, or a function from partition id to the app (for a federation with malicious clients).
        num_partitions: number of clients.
        run_config: what apps find in ``context.run_config``.
        seed: of the clients' random streams.
        node_config: more for every client's ``context.node_config``.
    """

    def __init__(
        self,
        client_app: ClientApp | Callable[[int], ClientApp],
        num_partitions: int,
        run_config: Mapping[str, Value] | None = None,
        seed: int = 0,
        node_config: Mapping[str, Value] | None = None,
    ) -> None:
        if num_partitions < 1:
            raise ConfigError(f"num_partitions must be at least 1, got {num_partitions}")
        self._app = client_app
        self._seed = seed
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self.nodes: dict[int, _Node] = {}
        for partition in range(num_partitions):
            node = derive(seed, "flower node", partition)
            own = {**(node_config or {}), "partition-id": partition, "num-partitions": num_partitions}
            context = Context(
                run_id=_RUN, node_id=node, node_config=own, state=RecordDict(), run_config=dict(run_config or {})
            )
            self.nodes[node] = _Node(partition, context)
        self._run = _empty_run()
        _name_process(_SERVER_NODE)

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, *arguments: Any, **named: Any) -> None:
        """The run never changes; Flower's own grids are told theirs here."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = list(messages)
        ids = []
        for message in pushed:
            if message.metadata.dst_node_id not in self.nodes:
                raise ConfigError(f"no node {message.metadata.dst_node_id}: nodes are those of get_node_ids()")
            self._sent += 1
            ids.append(f"message-{self._sent}")
        order = sorted(range(len(pushed)), key=lambda i: self.nodes[pushed[i].metadata.dst_node_id].number)
        for i in order:
            self._replies[ids[i]] = self._answer(pushed[i], ids[i])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(known) for known in message_ids if known in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message, known: str) -> Message:
        node = self.nodes[message.metadata.dst_node_id]
        received = _received(message, known)
        app = self._app if isinstance(self._app, ClientApp) else self._app(node.number)
        _name_process(message.metadata.dst_node_id)
        try:
            with Draws(derive(self._seed, "flower client", node.number, _round(message, node))):
                reply = app(received, node.context)
        except Exception as error:
            reply = Message(Error(code=_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=received)
        finally:
            _name_process(_SERVER_NODE)
            node.calls += 1
        return reply


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp | Callable[[int], ClientApp],
    num_supernodes: int,
    run_config: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> Context:
    """Run a Flower app to its end, here and without Ray; returns the server's context.

    Args:
        server_app: the app's server.
        client_app: the app's clients, or a function from partition id to the app.
        num_supernodes: number of clients.
        run_config: the app's configuration, ``[tool.flwr.app.config]`` with what is to be different.
        seed: of all random streams that apps draw from without seeding them.
    """
    grid = InProcessGrid(client_app, num_supernodes, run_config, seed)
    context = Context(
        run_id=_RUN, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(run_config or {})
    )
    with Draws(derive(seed, "flower server")):
        server_app(grid, context)
    return context


def _round(message: Message, node: _Node) -> int:
    for config in message.content.config_records.values():
        number = config.get("server-round")
        if isinstance(number, int):
            return 2 * number + (message.metadata.message_type != "train")
    return -1 - node.calls


def _received(message: Message, known: str) -> Message:
    """The message as it arrives: what the client does to its records changes nobody else's."""
    content = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
            content[name] = ArrayRecord(arrays)
        elif isinstance(record, MetricRecord):
            content[name] = MetricRecord(dict(record))
        elif isinstance(record, ConfigRecord):
            content[name] = ConfigRecord(dict(record))
    m = message.metadata
    copy = Message(content, m.dst_node_id, m.message_type, ttl=m.ttl, group_id=m.group_id)
    # Private in Flower: a grid over a network gives messages their ids on the way.
    copy.metadata.__dict__["_message_id"] = known
    return copy


@dataclass
class Draws:
    """Global random streams that start at ``seed`` inside, and go on outside as if nothing had happened."""

    seed: int
    _before: tuple[Any, Any, Any] = field(default=(None, None, None))

    def __enter__(self) -> None:
        self._before = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)  # noqa: NPY002
        # Not torch.manual_seed: where there is no accelerator, that keeps a stack trace for each kind of them.
        torch.default_generator.manual_seed(self.seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(self.seed)

    def __exit__(self, *error: object) -> None:
        random.setstate(self._before[0])
        np.random.set_state(self._before[1])  # noqa: NPY002
        torch.set_rng_state(self._before[2])


def _name_process(node: int) -> None:
    """Recent versions of Flower ask the process who it is when a message is made."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.task_id = TaskIdentity.run_id = _RUN
    TaskIdentity.node_id = node


def _empty_run() -> Run:
    return Run.create_empty(_RUN)
