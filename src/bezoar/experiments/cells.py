"""The cells of a grid: what one is, how it is run, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bezoar.errors import BezoarError, BusyError
from bezoar.experiments.run import Interrupted, Progress


class Settled(Protocol):
    """An experiment of any kind, all of it resolved."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def rounds(self) -> int: ...

    def hash(self) -> str:
        """Tells it from all others."""


class Ended(Protocol):
    """What a finished run says of itself."""

    @property
    def summary(self) -> dict[str, Any]: ...


#: Reads an experiment from ``(table, source)``.
Reader = Callable[[Mapping[str, Any], str], Settled]

#: Runs one: ``(experiment, folder, *, data_dir, resume, device, progress, wait)``; workers are sent it by its name.
Runner = Callable[..., Ended]


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid, with its label on every axis."""

    labels: dict[str, Any]
    experiment: Settled

    @cached_property
    def key(self) -> str:
        """Its directory's name among those of other cells: the hash of its full configuration."""
        return self.experiment.hash()

    @property
    def folder(self) -> str:
        """Where it is recorded, below the comparison's directory, unless cells are kept elsewhere."""
        return f"cells/{self.key}"

    @property
    def title(self) -> str:
        """The labels in one line."""
        return ", ".join(str(v) if k not in ("seed",) else f"seed {v}" for k, v in self.labels.items())


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its summary, or what went wrong."""

    cell: Cell
    summary: dict[str, Any] | None
    error: str | None
    skipped: bool = False


#: Told when a cell starts; the answer is told every record of it, or now and then where it runs in another process.
CellProgress = Callable[[Cell], Progress | None]


@dataclass(frozen=True)
class Job:
    """What all cells of a comparison have in common.

    Attributes:
        runner: runs an experiment, as :func:`bezoar.experiments.run.run` does.
        store: the directory in which each cell has one of its own, named by its key.
        data_dir: where data sets lie.
        device: ``"cpu"``, ``"cuda"``, ...
        options: further arguments of the runner.
    """

    runner: Runner
    store: Path
    data_dir: str | Path | None = None
    device: str = "cpu"
    options: Mapping[str, Any] | None = None

    def run(self, cell: Cell, progress: Progress | None, wait: bool = False) -> Outcome | None:
        """Run a cell, or go on with it; None if another process is running it, and we do not ``wait``.

        Raises:
            Interrupted: by Ctrl-C. All other errors are the outcome's.
        """
        try:
            result = self.runner(
                cell.experiment,
                self.store / cell.key,
                data_dir=self.data_dir,
                resume=True,
                device=self.device,
                progress=progress,
                wait=wait,
                **(self.options or {}),
            )
        except Interrupted:
            raise
        except BusyError:
            return None
        except BezoarError as error:
            return Outcome(cell, None, str(error))
        except Exception as error:
            return Outcome(cell, None, f"{type(error).__name__}: {error}")
        return Outcome(cell, result.summary, None)


class Watch:
    """Says that a cell starts with its first record: before that, another process may be running it."""

    def __init__(self, progress: CellProgress, cell: Cell) -> None:
        self._start = progress
        self._cell = cell

    @cached_property
    def _watch(self) -> Progress | None:
        return self._start(self._cell)

    def __call__(self, record: Mapping[str, Any]) -> None:
        if self._watch is not None:
            self._watch(record)
