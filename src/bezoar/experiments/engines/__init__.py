"""Where the cells of a comparison run: here, in local processes, or on the machines of a Ray cluster.

An engine is a frozen dataclass with one method; the choice changes no bit of what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from bezoar.experiments.cells import Cell, CellProgress, Job, Outcome
from bezoar.experiments.engines._news import RETRIES
from bezoar.experiments.engines.local import InTurn, Processes
from bezoar.experiments.engines.ray import Ray


class Engine(Protocol):
    """Runs cells."""

    def run(self, cells: Sequence[Cell], job: Job, progress: CellProgress | None) -> Iterator[Outcome]:
        """Run all ``cells``, in any order, and say how each ended as soon as it has.

        A cell that another process is running is left for last, and waited for. ``progress`` is told that a cell
        starts, and its answer is told of the cell's records.

        Raises:
            Interrupted: stopped by Ctrl-C; cells that were running go on from their checkpoints next time.
            BezoarError: the engine itself can not run, or not go on.
        """


def local(jobs: int = 1, allocator: str = "default") -> Engine:
    """The default: ``jobs`` cells at a time on this machine."""
    return InTurn() if jobs == 1 else Processes(jobs, allocator)


__all__ = ["RETRIES", "Engine", "InTurn", "Processes", "Ray", "local"]
