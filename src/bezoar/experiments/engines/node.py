"""What happens on a machine of a cluster: it is checked, and runs one cell."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bezoar._version import __version__
from bezoar.allocator import tune
from bezoar.experiments.cells import Cell, Job
from bezoar.experiments.engines._news import thinned
from bezoar.experiments.engines.parcel import Packer, Parcel, unpack
from bezoar.experiments.environment import source
from bezoar.experiments.run import Interrupted

#: Files of a cell are sent at least so many seconds apart, and so much apart that sending takes a twentieth of them.
_SEND_SECONDS, _SEND_SHARE = 5.0, 20


def code() -> dict[str, str]:
    """What has to be the same on all machines."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"version": __version__, "source": source(), "python": python, "torch": str(torch.__version__)}


def unlike(host: str, ours: Mapping[str, str]) -> str | None:
    """Why the code of this machine, ``host``, is not that of the one that sent ``ours``; None if it is."""
    here = code()
    for what, name in (("version", "bezoar"), ("python", "Python"), ("torch", "torch")):
        if here[what] != ours[what]:
            return f"node {host} has {name} {here[what]}, this machine {ours[what]}: install the same on all"
    if here["source"] != ours["source"]:
        version = f"bezoar {ours['version']}"
        return f"node {host} has another {version} than this machine (its source differs): install the same on all"
    return None


@dataclass(frozen=True)
class Order:
    """One cell to run, with all that a machine has to know.

    Attributes:
        cell: the cell.
        job: what it has in common with others; its store is a directory of the machine that asks.
        token: a file in that directory: who sees it shares the directory, and writes there.
        files: what is recorded of the cell so far, for machines that do not; None: they have to ask for it.
        threads: to compute with.
        allocator: ``"tuned"`` or ``"default"``.
        wait: for another process that is running the cell.
        data_dir: where data sets lie unless ``job`` says so or the machine's BEZOAR_DATA does.
    """

    cell: Cell
    job: Job
    token: str
    files: Parcel | None
    threads: int
    allocator: str
    wait: bool
    data_dir: str


class Reports(Protocol):
    """The way back to the machine that asked."""

    def tell(self, record: dict[str, Any]) -> None:
        """A record of the cell; nobody waits for it to arrive."""

    def deliver(self, parcel: Parcel) -> None:
        """Files of the cell; returns when they have arrived, or can not arrive."""


@dataclass(frozen=True)
class Answer:
    """How a cell ended: its summary or an error, and its files if they are not there yet.

    ``busy``: another process is running it. ``wants``: the machine has to be sent what is recorded so far.
    """

    summary: dict[str, Any] | None = None
    error: str | None = None
    parcel: Parcel | None = None
    busy: bool = False
    wants: bool = False


def fulfil(order: Order, host: str, reports: Reports) -> Answer:
    """Run the cell: in the shared directory, else in a temporary one whose files are sent now and then.

    Raises:
        Interrupted: somebody asked to stop; the checkpoint has been written, and sent.
    """
    if order.allocator == "tuned":
        tune()
    torch.set_num_threads(order.threads)
    job = replace(order.job, data_dir=order.job.data_dir or os.environ.get("BEZOAR_DATA") or order.data_dir)
    if (job.store / order.token).exists() and os.access(job.store, os.W_OK):
        return _answer(job, order, host, thinned(reports.tell))
    if order.files is None:
        return Answer(wants=True)
    with tempfile.TemporaryDirectory(prefix="bezoar-") as folder:
        here = replace(job, store=Path(folder))
        cell = here.store / order.cell.key
        unpack(order.files, cell)
        packer = Packer(cell)
        packer.pack()
        try:
            answer = _answer(here, order, host, _Sender(packer, reports))
        except Interrupted:
            reports.deliver(Packer(cell).pack())
            raise
        # All of it: what was sent before may not have arrived.
        return replace(answer, parcel=Packer(cell).pack())


def _answer(job: Job, order: Order, host: str, tell: Callable[[Mapping[str, Any]], None]) -> Answer:
    outcome = job.run(order.cell, tell, order.wait)
    if outcome is None:
        return Answer(busy=True)
    return Answer(outcome.summary, None if outcome.error is None else f"{outcome.error} (on node {host})")


class _Sender:
    """Tells of records, and sends files so rarely that it costs little."""

    def __init__(self, packer: Packer, reports: Reports) -> None:
        self._packer, self._reports = packer, reports
        self._tell = thinned(reports.tell)
        self._next = time.monotonic() + _SEND_SECONDS

    def __call__(self, record: Mapping[str, Any]) -> None:
        self._tell(record)
        begin = time.monotonic()
        if begin < self._next:
            return
        self._reports.deliver(self._packer.pack())
        took = time.monotonic() - begin
        self._next = begin + max(_SEND_SECONDS, _SEND_SHARE * took)
