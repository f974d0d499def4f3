"""Cells on the machines of a Ray cluster: each is one task with resources of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bezoar.data._files import root
from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments.cells import Cell, CellProgress, Job, Outcome, Watch
from bezoar.experiments.engines import _remote
from bezoar.experiments.engines._news import NEWS_SECONDS, RETRIES, times
from bezoar.experiments.engines.node import Answer, Order, code
from bezoar.experiments.engines.parcel import Packer, Parcel, unpack
from bezoar.experiments.records import alone, read_summary
from bezoar.experiments.run import Interrupted

#: Seconds that a machine has to start a process and answer; that running cells have to write a checkpoint; that an
#: address has to accept a connection.
_CHECK_SECONDS, _STOP_SECONDS, _CONNECT_SECONDS = 120.0, 20.0, 10.0


@dataclass(frozen=True)
class Ray:
    """One task a cell, on whatever machine of the cluster has room.

    A machine that sees the directory of the cells (a shared file system) records them there; on others a cell runs in
    a temporary directory, whose files come here while it runs and when it ends. A worker or machine that dies costs
    only its cells, which go on elsewhere from the last checkpoint that is known here, ``retries`` times.

    Attributes:
        address: ``"HOST:PORT"`` of a cluster, or ``"auto"``; by default that in RAY_ADDRESS, else a cluster on this
            machine that lasts as long as the comparison.
        cpus: processors that each cell holds; it computes with as many threads, at least one.
        gpus: GPUs that each cell holds.
        allocator: ``"tuned"`` or ``"default"`` in workers.
        retries: how often a cell is tried again after its worker has died.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    allocator: str = "default"
    retries: int = RETRIES

    def __post_init__(self) -> None:
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus), ("retries", self.retries)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} of a cell must be at least 0, got {value}")
        if self.cpus == self.gpus == 0:
            raise ConfigError("a cell that holds neither CPUs nor GPUs would never wait for another")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(f"gpus of a cell must be a whole number or a part of one GPU, got {self.gpus}")

    def run(self, cells: Sequence[Cell], job: Job, progress: CellProgress | None) -> Iterator[Outcome]:
        """See :class:`bezoar.experiments.engines.Engine`."""
        self._check_device(job.device)
        if not cells:
            return
        ray = _library()
        mine = not ray.is_initialized()
        if mine:
            _connect(ray, self.address)
        store = job.store.absolute()
        token = store / f".here-{secrets.token_hex(8)}"
        try:
            self._check_nodes(ray)
            _mark(token)
            yield from _Play(ray, self, replace(job, store=store), token.name, progress).run(cells)
        except KeyboardInterrupt:
            raise Interrupted("stopped; run the same command to go on from the last checkpoints") from None
        finally:
            token.unlink(missing_ok=True)
            if mine:
                ray.shutdown()

    def _check_device(self, device: str) -> None:
        if self.gpus and device == "cpu":
            raise ConfigError("a cell that holds GPUs and computes on the CPU wastes them: add --device cuda")
        if not self.gpus and device.startswith("cuda"):
            raise ConfigError(f"Ray hides GPUs from a cell that holds none: --device {device} needs --gpus-per-cell")
        if device.startswith("cuda:"):
            raise ConfigError(f"Ray chooses a cell's GPU: --device cuda, not {device}")

    def _check_nodes(self, ray: Any) -> None:
        """Every machine that may run a cell has our code, and there is one."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        fit = [
            node
            for node in alive
            if node["Resources"].get("CPU", 0) >= self.cpus and node["Resources"].get("GPU", 0) >= self.gpus
        ]
        if not fit:
            found = "; ".join(
                f"{node['NodeManagerHostname']}: {node['Resources'].get('CPU', 0):g} and "
                f"{node['Resources'].get('GPU', 0):g}"
                for node in alive
            )
            raise ConfigError(
                f"no node of the cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a cell; nodes have {found}"
            )
        check = ray.remote(num_cpus=0, max_retries=0)(_remote.check())
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        ours = code()
        asked = {}
        for node in fit:
            ref = check.options(scheduling_strategy=here(node["NodeID"], soft=False)).remote(ours, sys.path)
            asked[ref] = node["NodeManagerHostname"]
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_CHECK_SECONDS)
        if late:
            raise BezoarError(f"node {asked[late[0]]} did not answer within {_CHECK_SECONDS:.0f} s")
        for ref in done:
            try:
                wrong = ray.get(ref)
            except ray.exceptions.RayError as error:
                raise BezoarError(f"node {asked[ref]} can not run cells: {_first(error)}") from None
            if wrong is not None:
                raise ConfigError(wrong)


@dataclass(frozen=True)
class _Turn:
    """A cell's turn: whether it waits for another process, how many workers died of it, whether to send its files."""

    cell: Cell
    wait: bool = False
    deaths: int = 0
    send: bool = False


class _Play:
    """The cells of one comparison, on a cluster that has been checked."""

    def __init__(self, ray: Any, engine: Ray, job: Job, token: str, progress: CellProgress | None) -> None:
        self._ray, self._engine, self._job, self._token, self._progress = ray, engine, job, token, progress
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._news = ray.remote(num_cpus=0)(_remote.news()).options(scheduling_strategy=here).remote()
        self._task = ray.remote(num_cpus=engine.cpus, num_gpus=engine.gpus, max_retries=0)(_remote.task())
        self._code = code()
        self._turns: dict[Any, _Turn] = {}
        self._watches: dict[str, Watch] = {}
        self._nodes: dict[str, str] = {}
        self._data_dir = str(root(None).absolute())
        if job.data_dir is not None:
            self._job = replace(job, data_dir=str(Path(job.data_dir).expanduser().absolute()))

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        try:
            for cell in cells:
                if self._progress:
                    self._watches[cell.key] = Watch(self._progress, cell)
                self._submit(_Turn(cell))
            while self._turns:
                done, _ = self._ray.wait(list(self._turns), timeout=NEWS_SECONDS)
                self._hear()
                for ref in done:
                    outcome = self._ended(ref, self._turns.pop(ref))
                    if outcome is not None:
                        yield outcome
        finally:
            self._stop()

    def _submit(self, turn: _Turn) -> None:
        folder = self._job.store / turn.cell.key
        # Reading a checkpoint that the worker sees itself would be in vain: those that do not ask for it.
        files = Packer(folder).pack() if turn.send or not folder.is_dir() else None
        order = Order(
            turn.cell,
            self._job,
            self._token,
            files,
            max(1, int(self._engine.cpus)),
            self._engine.allocator,
            turn.wait,
            self._data_dir,
        )
        work = self._ray.cloudpickle.dumps(order)
        named = self._task.options(name=f"bezoar {turn.cell.title}")
        self._turns[named.remote(self._code, sys.path, turn.cell.key, work, self._news)] = turn

    def _hear(self) -> None:
        """What workers have told since the last time."""
        try:
            nodes, records, files = self._ray.get(self._news.take.remote())
        except self._ray.exceptions.RayError:
            # Progress is lost, nothing else.
            return
        self._nodes |= nodes
        for key, record in records:
            if key in self._watches:
                self._watches[key](record)
        for key, parcel in files.items():
            self._write(key, Parcel(*parcel))

    def _write(self, key: str, parcel: Parcel) -> None:
        folder = self._job.store / key
        with alone(folder, wait=True):
            # Another comparison that shares the cells may have finished this one.
            if read_summary(folder) is None:
                unpack(parcel, folder)

    def _ended(self, ref: Any, turn: _Turn) -> Outcome | None:
        """How a cell ended; None if it was submitted again."""
        errors = self._ray.exceptions
        try:
            wrong, answer = self._ray.get(ref)
        except errors.RayTaskError as error:
            return Outcome(turn.cell, None, f"{_first(error)} (on node {self._nodes.get(turn.cell.key, 'unknown')})")
        except errors.RayError as error:
            if turn.deaths < self._engine.retries:
                self._submit(replace(turn, deaths=turn.deaths + 1, send=False))
                return None
            return Outcome(turn.cell, None, self._died(turn, error))
        if wrong is not None:
            raise ConfigError(wrong)
        assert isinstance(answer, Answer)
        if answer.busy or answer.wants:
            self._submit(replace(turn, wait=turn.wait or answer.busy, send=answer.wants))
            return None
        if answer.parcel is not None:
            try:
                self._write(turn.cell.key, answer.parcel)
            except BezoarError as error:
                return Outcome(turn.cell, None, str(error))
        return Outcome(turn.cell, answer.summary, answer.error)

    def _died(self, turn: _Turn, error: Exception) -> str:
        node = self._nodes.get(turn.cell.key)
        where = f", at last on node {node}" if node else ""
        return f"its worker died {times(turn.deaths + 1)}{where}: {_first(error)}"

    def _stop(self) -> None:
        """End what is running: with a checkpoint, or after a while without."""
        if self._turns:
            left = list(self._turns)
            with contextlib.suppress(KeyboardInterrupt):
                for ref in left:
                    self._ray.cancel(ref, force=False)
                _, left = self._ray.wait(left, num_returns=len(left), timeout=_STOP_SECONDS)
                self._hear()
            for ref in left:
                self._ray.cancel(ref, force=True)
        self._ray.kill(self._news)


def _mark(token: Path) -> None:
    """Leave a file by which machines that share its folder know that they do."""
    token.touch()


def _library() -> Any:
    # Ray's own defaults, where the user has set none: nothing is reported, no hint about accelerators.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"--engine ray needs Ray: pip install 'bezoar[cluster]' ({error})") from None


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster, or start one on this machine."""
    # A file that a cluster of before left behind must not choose: "local" is said.
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in target:
        raise ConfigError(
            f"--ray-address {target}: give HOST:PORT of the cluster (port 6379 as a rule), on a machine that is part "
            "of it; from elsewhere send the command there with 'ray job submit'"
        )
    if ":" in target:
        _reach(target)
    options = {"include_dashboard": False} if target == "local" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=target, log_to_driver=False, logging_level="ERROR", configure_logging=False, **options)
    except (Exception, SystemExit) as error:
        raise BezoarError(
            f"the Ray cluster {target!r} can not be joined: {_first(error)} (this machine has to be part of it, and "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN the same on all)"
        ) from None


def _reach(target: str) -> None:
    """Raise unless somebody listens there: Ray itself would wait two minutes and leave the process."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BezoarError(f"no Ray cluster answers at {target}: {error}") from None


def _first(error: BaseException) -> str:
    """What the error says, in one line: of a remote one the last, which names it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) or str(error).startswith("\x1b") else lines[0]
