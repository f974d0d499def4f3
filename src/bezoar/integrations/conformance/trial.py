"""One strategy in one round of a federation, and what is demanded of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from bezoar.errors import ConfigError
from bezoar.integrations.conformance.stage import Lie, Setting, Stage, Start, distance, honest, start
from bezoar.integrations.flower.engine import Draws
from bezoar.integrations.flower.messages import arrays_of, record_of
from bezoar.integrations.gate import Array as Numbers

#: Changes which replies arrive, and in which order.
Deliver = Callable[[Stage, list[Message]], list[Message]]

#: The new model may be this many times the longest honest update away from the mean of the honest models.
FAR = 1.25


class Fault(Exception):
    """What a strategy did wrong: ``kind`` in a few words that are the same on every machine, and ``detail``."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Played:
    """What came out of a round.

    Attributes:
        origin: the model it started from.
        arrays: the new model, None where the strategy kept the old one.
        metrics: what the strategy made of the clients' metrics.
        replies: as they are after the strategy has seen them.
        sent: the bytes of every reply's arrays before.
        honest: the models that the clients asked have trained, whatever they sent.
        said: the log's text and the metrics.
        verdicts: those that the strategy has as an attribute, if it does.
        stage: the federation.
        liars: numbers of those who lied.
    """

    origin: Start
    arrays: dict[str, Numbers] | None
    metrics: MetricRecord | None
    replies: list[Message]
    sent: list[dict[str, bytes]]
    honest: list[dict[str, Numbers]]
    said: str
    verdicts: tuple[Any, ...]
    stage: Stage
    liars: tuple[int, ...]

    @property
    def mean(self) -> dict[str, Numbers]:
        """The mean of the honest models, in float64."""
        rows = {name: np.stack([m[name] for m in self.honest]) for name in self.origin.arrays}
        return {name: np.asarray(row.mean(0, dtype=np.float64)) for name, row in rows.items()}

    @property
    def longest(self) -> float:
        """Norm of the longest honest update."""
        return max(distance(model, self.origin.arrays, self.origin.parameters) for model in self.honest)


@dataclass(frozen=True)
class Trial:
    """A strategy to be tried: every round gets a fresh one of ``make``."""

    make: Callable[[], Strategy]
    setting: Setting
    _plain: list[Played] = field(default_factory=list, repr=False)

    def play(
        self,
        lie: Lie | None = None,
        *,
        liars: int | None = None,
        origin: Start | None = None,
        deliver: Deliver | None = None,
        names: int = 0,
        draw: int = 0,
        after: bool = True,
    ) -> Played:
        """A round in which the first ``liars`` clients (f; all if -1) tell ``lie``, and ``after`` it an honest one.

        Raises:
            Fault: an exception left the strategy.
            ConfigError: the strategy asks nobody, or waits for more clients than there are.
        """
        origin = origin or start(self.setting)
        with self._quiet() as log:
            strategy = self.make()
            stage = Stage(self.setting, origin, getattr(strategy, "weighted_by_key", "num-examples"), names, draw)
            arrays = record_of(origin.arrays)
            messages = _guarded("configure_train", lambda: strategy.configure_train(1, arrays, ConfigRecord(), stage))
            asked = sorted(stage.number(message) for message in messages)
            if len(asked) < 2 * self.setting.f + 3:
                raise ConfigError(
                    f"the strategy asks {len(asked)} of {self.setting.clients} clients; with f={self.setting.f} "
                    f"the suite needs {2 * self.setting.f + 3}: set --clients"
                )
            count = self.setting.f if liars is None else liars
            if lie is not None:
                stage.lie, stage.liars = lie, tuple(asked[:count] if count >= 0 else asked)
            replies = sorted(stage.send_and_receive(messages), key=stage.number)
            stage.lie = None
            if deliver is not None:
                replies = deliver(stage, replies)
            sent = [_bytes(message) for message in replies]
            new, metrics = _pair(_guarded("aggregate_train", lambda: strategy.aggregate_train(1, replies)))
            said = "\n".join([*log, repr(metrics)])
            verdicts = tuple(getattr(strategy, "verdicts", ()))
            kept = arrays if new is None else new
            if after:
                self._go_on(strategy, stage, kept)
        truth = [honest(self.setting, origin, number, draw) for number in asked]
        result = None if new is None else _guarded("reading the new model", lambda: arrays_of(new))
        return Played(origin, result, metrics, replies, sent, truth, said, verdicts, stage, stage.liars)

    def plain(self) -> Played:
        """A round of honest clients, the same one however often it is asked for."""
        if not self._plain:
            self._plain.append(self.play())
        return self._plain[0]

    def _go_on(self, strategy: Strategy, stage: Stage, arrays: ArrayRecord) -> None:
        """The round after: what was sent in the first must not spoil it."""
        what = "configure_train, in the round after"
        messages = _guarded(what, lambda: strategy.configure_train(2, arrays, ConfigRecord(), stage))
        replies = sorted(stage.send_and_receive(messages), key=stage.number)
        new, _ = _pair(_guarded("aggregate_train, in the round after", lambda: strategy.aggregate_train(2, replies)))
        if new is not None and not all(np.isfinite(array.numpy()).all() for array in new.values()):
            before = all(np.isfinite(array.numpy()).all() for array in arrays.values())
            if before:
                raise Fault("not finite", "the model of the round after holds NaN or infinity")

    def evaluate(self, lie: Lie) -> Mapping[str, Any]:
        """What the strategy reports of an evaluation by clients in which f clients tell ``lie``."""
        origin = start(self.setting)
        with self._quiet():
            strategy = self.make()
            stage = Stage(self.setting, origin, getattr(strategy, "weighted_by_key", "num-examples"))
            arrays = record_of(origin.arrays)
            messages = _guarded(
                "configure_evaluate", lambda: strategy.configure_evaluate(1, arrays, ConfigRecord(), stage)
            )
            asked = sorted(stage.number(message) for message in messages)
            stage.lie, stage.liars = lie, tuple(asked[: self.setting.f])
            replies = sorted(stage.send_and_receive(messages), key=stage.number)
            return _guarded("aggregate_evaluate", lambda: strategy.aggregate_evaluate(1, replies)) or {}

    @contextmanager
    def _quiet(self) -> Iterator[list[str]]:
        """Seeded global draws; warnings and Flower's log stay inside, the log's lines are collected."""
        logger, lines = logging.getLogger("flwr"), _Lines()
        before = logger.handlers[:], logger.level, logger.propagate
        logger.handlers, logger.propagate = [lines], False
        logger.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"), Draws(self.setting.seed):
                warnings.simplefilter("ignore")
                yield lines.lines
        finally:
            logger.handlers, logger.propagate = before[0], before[2]
            logger.setLevel(before[1])


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """The call's result, iterators read to their end; what it raises is a fault."""
    try:
        found = call()
        return found if found is None or isinstance(found, tuple | Mapping) else list(found)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        if isinstance(error, ConfigError) and what.startswith("configure"):
            raise
        raise Fault(f"raises {type(error).__name__}", f"in {what}: {text[:200]}") from error


def _pair(answer: Any) -> tuple[ArrayRecord | None, MetricRecord | None]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise Fault("returns no pair", "aggregate_train returns a pair: the new arrays or None, metrics or None")
    return answer


def _bytes(message: Message) -> dict[str, bytes]:
    if message.has_error():
        return {}
    return {
        f"{key}/{name}": array.data
        for key, record in message.content.array_records.items()
        for name, array in record.items()
    }


def survives(played: Played, may_keep: bool = False) -> None:
    """The demands on every round: not lost, names and types of the old model, finite, near the honest models.

    Raises:
        Fault: the first that is not met.
    """
    old, new = played.origin.arrays, played.arrays
    if new is None:
        if not may_keep:
            raise Fault("round lost", "the old model is kept: clients that lie like this can stop training for ever")
        return
    if new.keys() != old.keys():
        raise Fault("other names", f"the new model has {sorted(new)}, not {sorted(old)}")
    for name, array in new.items():
        if array.shape != old[name].shape:
            raise Fault("other shape", f"{name!r} becomes {list(array.shape)}")
        if array.dtype != old[name].dtype:
            raise Fault(f"becomes {array.dtype}", f"{name!r} was {old[name].dtype}")
    if not all(np.isfinite(array).all() for array in new.values()):
        raise Fault("not finite", "the new model holds NaN or infinity")
    away = distance(new, played.mean, played.origin.parameters) / played.longest
    if away > FAR:
        raise Fault("moved away", f"{away:.3g} times the longest honest update from the honest mean")


def same(one: Played, other: Played) -> bool:
    """Whether both rounds ended with the same bits."""
    if one.arrays is None or other.arrays is None:
        return one.arrays is other.arrays
    return one.arrays.keys() == other.arrays.keys() and all(
        array.dtype == other.arrays[name].dtype and array.tobytes() == other.arrays[name].tobytes()
        for name, array in one.arrays.items()
    )


def tells(played: Played) -> bool:
    """Whether the strategy says who lied, and of nobody else the same: node ids in log or metrics, or verdicts."""
    nodes = {node.number: str(key) for key, node in played.stage.nodes.items()}
    written = {number for number, node in nodes.items() if node in played.said}
    status = {getattr(v, "client", None): int(getattr(v, "status", 0)) for v in played.verdicts}
    bad = {status.get(number, 0) for number in played.liars}
    judged = 0 not in bad and not any(status.get(number) in bad for number in nodes if number not in played.liars)
    return written == set(played.liars) or judged
