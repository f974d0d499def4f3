"""TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bezoar.tracking.base import Started, needs
from bezoar.tracking.telling import values

#: The run's folder in which the files of events lie.
FOLDER = "tensorboard"

_PATTERN = "*tfevents*"

#: Seconds after which a dashboard that is watching sees what is new.
_FLUSH_SECONDS = 5


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir runs``.

    Rounds are steps; the configuration is a text. When a run goes on, events after its checkpoint are removed.

    Reference: https://www.tensorflow.org/tensorboard
    """

    def __post_init__(self) -> None:
        needs("tensorboard", "tensorboard")

    def start(self, run: Started) -> Events:
        """See :class:`bezoar.tracking.Tracker`."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / FOLDER
        old = sorted(folder.glob(_PATTERN)) if folder.is_dir() else []
        kept, logged = _kept(old, run.round)
        writer = EventFileWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        for event in kept:
            writer.add_event(event)
        series = Events(writer, logged)
        if not logged:
            series.text("parameters", _table(run.parameters))
        writer.flush()
        # Only now is nothing lost if this process dies.
        for path in old:
            path.unlink(missing_ok=True)
        return series


@dataclass
class Events:
    """A file of events."""

    _writer: Any
    logged: int
    _last: int = field(default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._last = step
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=shown)))

    def text(self, name: str, content: str) -> None:
        """A text of the run as a whole, in Markdown."""
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard.summary import text

        made = text(name, content)  # type: ignore[no-untyped-call]
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=made))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self.log(self._last or self.logged, values({"kind": "summary", **summary}))
        self._writer.close()


def _kept(paths: list[Path], round: int) -> tuple[list[Any], int]:
    """Events to keep for a run that goes on after ``round``, and the last step that they hold.

    A round is one event, which is there whole or not at all.
    """
    found = [event for event in _events(paths) if event.step <= round] if round else []
    # A process that died while it wrote kept events anew has left two of each.
    unlike = {(event.step, tuple(value.tag for value in event.summary.value)): event for event in found}
    return list(unlike.values()), max((event.step for event in found), default=0)


def _events(paths: list[Path]) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("summary"):
                yield event


def _table(parameters: Mapping[str, Any]) -> str:
    lines = [f"| {name} | `{value}` |" for name, value in parameters.items()]
    return "\n".join(["| parameter | value |", "|---|---|", *lines])
