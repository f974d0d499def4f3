"""A small federation whose clients can be told to lie: the stage on which a strategy is tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bezoar.errors import ConfigError
from bezoar.integrations.flower.engine import InProcessGrid
from bezoar.integrations.flower.messages import arrays_of
from bezoar.integrations.flower.roster import answer_roll_call
from bezoar.integrations.gate import Array as Numbers
from bezoar.seeding import numpy_generator

#: A strategy that asks so often which nodes there are, without sending anything, waits for more of them.
_PATIENCE = 5

#: The scale of an honest update beside weights of scale 1, and how much clients differ beside what they agree on.
STEP, SPREAD = 0.3, 0.3


@dataclass(frozen=True)
class Setting:
    """A federation: ``clients``, of whom ``f`` may lie, and a model of ``dimension`` parameters.

    Raises:
        ConfigError: no liar, no honest majority, or a model too small to have names and shapes.
    """

    clients: int = 13
    dimension: int = 1000
    f: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.f < 1:
            raise ConfigError(f"f must be at least 1 (a suite without liars proves nothing), got {self.f}")
        if self.clients < 2 * self.f + 3:
            raise ConfigError(f"{self.clients} clients with f={self.f}: at least 2 f + 3 = {2 * self.f + 3} are needed")
        if self.dimension < 10:
            raise ConfigError(f"dimension must be at least 10, got {self.dimension}")


@dataclass(frozen=True)
class Start:
    """The model a round starts from, the size of honest updates to it, and their unit (0: none)."""

    arrays: Mapping[str, Numbers]
    step: float = STEP
    unit: float = 0.0

    @property
    def parameters(self) -> list[str]:
        """Names of the arrays that clients train."""
        return [name for name in self.arrays if not name.startswith("norm.")]


@dataclass
class Said:
    """What a client is about to say; a lie changes it.

    ``arrays`` holds NumPy arrays, or Flower's where the bytes themselves lie.
    """

    arrays: dict[str, Any]
    metrics: dict[str, Any] | None
    start: Start
    key: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """Name of the model's first array."""
        return next(iter(self.start.arrays))

    def content(self) -> RecordDict:
        """The message's content."""
        arrays = {n: value if isinstance(value, Array) else Array(value) for n, value in self.arrays.items()}
        content = RecordDict({"arrays": ArrayRecord(arrays), **self.more})
        if self.metrics is not None:
            content["metrics"] = MetricRecord(self.metrics)
        return content


#: Changes what a client says, or makes it answer with an error.
Lie = Callable[[Said], Error | None]


def start(setting: Setting, dtype: Any = np.float32, buffers: bool = False) -> Start:
    """A model of three arrays of parameters, with ``buffers`` also the three of a BatchNorm."""
    rng = numpy_generator(setting.seed, "conformance model")
    bias, second = setting.dimension // 10, setting.dimension // 5
    first = setting.dimension - bias - second
    shapes = {"first.weight": (2, first // 2) if first % 2 == 0 else (1, first), "first.bias": (bias,)}
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    if buffers:
        arrays["norm.running_mean"] = np.zeros(4, dtype)
        arrays["norm.running_var"] = np.ones(4, dtype)
        arrays["norm.num_batches_tracked"] = np.array(100, np.int64)
    arrays["second.weight"] = rng.normal(size=second).astype(dtype)
    return Start(arrays)


def exact(setting: Setting, scale: float) -> Start:
    """A model of this scale, and small updates, the same for every scale: float32 holds all of it exactly."""
    unit = 2.0**-12
    arrays = {name: (np.round(scale * a / unit) * unit).astype(a.dtype) for name, a in start(setting).arrays.items()}
    return Start(arrays, 0.01, unit)


def agreed(setting: Setting, origin: Start) -> dict[str, Numbers]:
    """What honest updates have in common, for every array of parameters, in float64."""
    rng = numpy_generator(setting.seed, "conformance direction")
    return {name: origin.step * rng.normal(size=origin.arrays[name].shape) for name in origin.parameters}


def honest(setting: Setting, origin: Start, client: int, draw: int) -> dict[str, Numbers]:
    """The model that an honest client sends."""
    rng = numpy_generator(setting.seed, "conformance client", client, draw)
    common = agreed(setting, origin)
    sent: dict[str, Numbers] = {}
    for name, array in origin.arrays.items():
        noise = rng.normal(size=array.shape)
        if name in common:
            update = common[name] + SPREAD * origin.step * noise
            if origin.unit:
                update = np.round(update / origin.unit) * origin.unit
            sent[name] = (array + update).astype(array.dtype)
        elif array.dtype.kind == "i":
            sent[name] = np.asarray(array + 5 + client % 3, array.dtype)
        else:
            sent[name] = (array + 0.1 * np.tanh(noise)).astype(array.dtype)
    return sent


class Stage(InProcessGrid):
    """Nodes of a federation; those in ``liars`` tell ``lie``.

    Args:
        setting: the federation.
        origin: the model of the round.
        key: where clients put the number of their samples.
        names: seed of the nodes' ids.
        draw: seed of the clients' updates, beside that of the setting.
    """

    def __init__(self, setting: Setting, origin: Start, key: str, names: int = 0, draw: int = 0) -> None:
        super().__init__(answer_roll_call(self._app_of()), setting.clients, seed=names)
        self.setting, self.origin, self.key, self.draw = setting, origin, key, draw
        self.liars: tuple[int, ...] = ()
        self.lie: Lie | None = None
        self._asked_for_nodes = 0

    def get_node_ids(self) -> list[int]:
        self._asked_for_nodes += 1
        if self._asked_for_nodes > _PATIENCE:
            raise ConfigError(f"the strategy waits for more than {self.setting.clients} clients: set --clients")
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._asked_for_nodes = 0
        return super().push_messages(messages)

    def number(self, message: Message) -> int:
        """The number of the client that a message goes to or, if it is a reply, comes from."""
        m = message.metadata
        return self.nodes[m.dst_node_id if m.dst_node_id in self.nodes else m.src_node_id].number

    def _app_of(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            number = int(context.node_config["partition-id"])
            (record,) = message.content.array_records.values()
            origin = replace(self.origin, arrays=arrays_of(record))
            metrics = {self.key: 10, "train-loss": 1.0 + number / 100}
            said = Said(honest(self.setting, origin, number, self.draw), metrics, origin, self.key)
            return self._say(message, number, said)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            number = int(context.node_config["partition-id"])
            said = Said({}, {self.key: 10, "accuracy": 0.5 + number / 1000}, self.origin, self.key)
            return self._say(message, number, said)

        return app

    def _say(self, message: Message, number: int, said: Said) -> Message:
        error = self.lie(said) if self.lie is not None and number in self.liars else None
        if error is not None:
            return Message(error, reply_to=message)
        content = said.content()
        if not said.arrays:
            del content["arrays"]
        return Message(content, reply_to=message)


def distance(one: Mapping[str, Numbers], other: Mapping[str, Numbers], names: Iterable[str]) -> float:
    """Euclidean distance over the arrays in ``names``, in float64."""
    return math.sqrt(sum(float(((one[n].astype(np.float64) - other[n]) ** 2).sum()) for n in names))
