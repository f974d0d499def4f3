"""Cells on this machine: one after the other here, or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from bezoar.allocator import tune
from bezoar.experiments.cells import Cell, CellProgress, Job, Outcome, Watch
from bezoar.experiments.engines._news import RETRIES, thinned, times
from bezoar.experiments.run import Interrupted


@dataclass(frozen=True)
class InTurn:
    """One cell after the other, in this process. Ctrl-C writes a checkpoint of the running one first."""

    def run(self, cells: Sequence[Cell], job: Job, progress: CellProgress | None) -> Iterator[Outcome]:
        """See :class:`bezoar.experiments.engines.Engine`."""
        left = [(cell, False) for cell in cells]
        for cell, busy in left:
            watch = Watch(progress, cell) if progress else None
            try:
                outcome = job.run(cell, watch, busy)
            except Interrupted:
                raise Interrupted(f"stopped in [{cell.title}]; run the same command to go on from there") from None
            if outcome is None:
                left.append((cell, True))
            else:
                yield outcome


@dataclass(frozen=True)
class Processes:
    """Several cells at a time, in processes that share the processor's threads.

    A process that dies (killed, out of memory) costs only its cell, which another one goes on with from its
    checkpoint, ``retries`` times; after that the cell has failed.

    Attributes:
        jobs: cells at a time.
        allocator: ``"tuned"`` or ``"default"`` in those processes.
        retries: how often a cell is tried again.
    """

    jobs: int
    allocator: str = "default"
    retries: int = RETRIES

    def run(self, cells: Sequence[Cell], job: Job, progress: CellProgress | None) -> Iterator[Outcome]:
        """See :class:`bezoar.experiments.engines.Engine`."""
        left = deque(_Turn(cell) for cell in cells)
        watches = {cell.key: Watch(progress, cell) for cell in cells} if progress else {}
        workers: list[_Worker] = []
        try:
            while left or any(worker.turn for worker in workers):
                for worker in workers:
                    if left and worker.turn is None:
                        worker.begin(left.popleft(), job)
                while left and len(workers) < self.jobs:
                    workers.append(_Worker(self.jobs, self.allocator))
                    workers[-1].begin(left.popleft(), job)
                for ready in wait([worker.pipe for worker in workers]):
                    worker = next(worker for worker in workers if worker.pipe is ready)
                    try:
                        told = worker.pipe.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        turn, code = worker.turn, worker.end()
                        if turn is None:
                            continue
                        if turn.deaths < self.retries:
                            left.append(_Turn(turn.cell, turn.wait, turn.deaths + 1))
                            continue
                        yield Outcome(turn.cell, None, _died(turn.deaths + 1, code))
                        continue
                    assert worker.turn is not None
                    turn = worker.turn
                    if isinstance(told, Mapping):
                        if turn.cell.key in watches:
                            watches[turn.cell.key](told)
                        continue
                    worker.turn = None
                    if told is None:
                        # Behind everything else that there is to do.
                        left.append(_Turn(turn.cell, True, turn.deaths))
                    else:
                        yield told
        except KeyboardInterrupt:
            raise Interrupted("stopped; run the same command to go on from the last checkpoints") from None
        finally:
            for worker in workers:
                worker.end()


def _died(count: int, code: int | None) -> str:
    how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
    return (
        f"its worker process ended abruptly {times(count)}, at last {how} (out of memory?); run the same command to go "
        "on, perhaps with fewer --jobs"
    )


@dataclass(frozen=True)
class _Turn:
    """A cell's turn: whether it waits for another process, and how many workers died of it before."""

    cell: Cell
    wait: bool = False
    deaths: int = 0


class _Worker:
    """A process that runs one cell at a time."""

    def __init__(self, jobs: int, allocator: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.turn: _Turn | None = None
        threads = max(1, torch.get_num_threads() // jobs)
        self._process: SpawnProcess = spawn.Process(target=_serve, args=(theirs, threads, allocator))
        self._process.start()
        # Only the process holds its end now: reading from ours fails as soon as it dies.
        theirs.close()

    def begin(self, turn: _Turn, job: Job) -> None:
        self.turn = turn
        # If it has died already, reading from the pipe will tell.
        with contextlib.suppress(OSError):
            self.pipe.send((turn.cell, job, turn.wait))

    def end(self) -> int | None:
        """Stop it, at once if it is running a cell; its exit status."""
        if self.turn is not None and self._process.is_alive():
            self._process.terminate()
        self.pipe.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


#: Seconds that a worker has to end in.
_PATIENCE = 10.0


def _serve(pipe: Connection, threads: int, allocator: str) -> None:
    """The life of a worker process. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if allocator == "tuned":
        tune()
    torch.set_num_threads(threads)
    parent = os.getppid()

    def send(record: dict[str, Any]) -> None:
        try:
            pipe.send(record)
        except OSError:
            # Whoever asked for this cell is gone; its checkpoint stays.
            os._exit(1)

    def tell(record: Mapping[str, Any]) -> None:
        if os.getppid() != parent:
            os._exit(1)
        news(record)

    news = thinned(send)
    while True:
        try:
            cell, job, patient = pipe.recv()
        except EOFError:
            return
        outcome = job.run(cell, tell, patient)
        try:
            pipe.send(outcome)
        except OSError:
            return
