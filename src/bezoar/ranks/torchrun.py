"""Ranks that ``torchrun`` (or anybody who sets its variables) has started: Gloo on a CPU, NCCL on GPUs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from bezoar.errors import BezoarError, ConfigError
from bezoar.ranks.base import VARIABLES, Ranks, Sum

T = TypeVar("T")

#: Seconds that ranks wait for each other unless told otherwise.
TIMEOUT = 600.0

#: Seconds to find out which ranks are gone, once one is.
PATIENCE = 10.0

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class RanksLostError(BezoarError):
    """Other ranks are gone or stuck: the run can not go on, but can be resumed."""


class _Distributed(Ranks):
    """All talk goes through the default process group; a failure names who is gone."""

    def __init__(self, rank: int, size: int, store: Store, timeout: float) -> None:
        super().__init__(rank, size)
        self._store, self._timeout = store, timeout

    def _all_reduce(self, values: Tensor, kind: Sum) -> Tensor:
        self._guarded(lambda: dist.all_reduce(values, _OPERATIONS[kind]))
        return values

    def _all_gather(self, values: Tensor) -> Tensor:
        found = values.new_empty(self.size, *values.shape)
        self._guarded(lambda: dist.all_gather(list(found.unbind(0)), values))
        return found

    def _all_to_all(self, values: Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Tensor:
        found = values.new_empty(sum(receiving))
        self._guarded(lambda: dist.all_to_all_single(found, values, list(receiving), list(sending)))
        return found

    def _broadcast(self, values: Tensor) -> Tensor:
        self._guarded(lambda: dist.broadcast(values, 0))
        return values

    def _guarded(self, talk: Callable[[], object]) -> None:
        try:
            talk()
        except RuntimeError as error:
            raise RanksLostError(f"{self._lost()}; go on with --resume ({_first_line(error)})") from None

    def _lost(self) -> str:
        """Who does not answer any more: the others also find out, and say so in the store."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        silent, asked = list(others), False
        try:
            self._store.set_timeout(timedelta(seconds=PATIENCE))
            self._store.set(f"alive/{self.rank}", "1")
            until = time.monotonic() + PATIENCE
            while silent and time.monotonic() < until:
                silent = [rank for rank in silent if not self._store.check([f"alive/{rank}"])]
                asked = True
                time.sleep(0.05)
        except RuntimeError:
            # Where rank 0 keeps the store, it leaves with it as soon as it knows.
            if not asked:
                return f"rank {self.rank} has lost the others: rank 0, where they meet, is gone"
        if not silent:
            return f"rank {self.rank} waited in vain for {self._timeout:g} s, but all ranks answer"
        names = ", ".join(map(str, silent))
        return f"rank {self.rank} has lost rank{'s' if len(silent) > 1 else ''} {names}, killed or stuck"


def _first_line(error: Exception) -> str:
    # Gloo begins with the place in its source.
    return str(error).splitlines()[0].rpartition("] ")[2][:200]


def _number(name: str, least: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"environment: {name} must be a whole number >= {least} as torchrun sets it, got {text!r}")
    return int(text)


def device_of(device: str) -> str:
    """``"cuda"`` as the GPU of this process's LOCAL_RANK; everything else as it is.

    Raises:
        ConfigError: there is no such GPU, or one is named for all processes.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return device
    if index:
        raise ConfigError(f"--device {device}: every rank takes the GPU of its LOCAL_RANK; say --device cuda")
    local, here = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= here:
        raise ConfigError(
            f"LOCAL_RANK is {local}, but there are {here} GPUs here: start at most {here} ranks a machine"
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def joined(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other ranks, and leave them at the end.

    Args:
        device: the kind of device that updates are on, ``"cpu"`` or ``"cuda"``.
        timeout: seconds to wait for each other, now and whenever they talk; then the run ends with an error.

    Raises:
        ConfigError: torchrun's variables are missing or make no sense.
        BezoarError: the others did not come in time.
    """
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(f"environment: {', '.join(missing)} missing: start many ranks with torchrun")
    size, wait = _number("WORLD_SIZE", 1), timedelta(seconds=timeout)
    rank = _number("RANK", 0)
    if rank >= size:
        raise ConfigError(f"environment: RANK is {rank}, but WORLD_SIZE is {size}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        store.set_timeout(wait)
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        meeting = PrefixStore("bezoar", store)
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, ValueError) as error:
        raise BezoarError(
            f"rank {rank} could not meet the {size - 1} others at {where} within {timeout:g} s: {_first_line(error)}"
        ) from None
    try:
        yield _Distributed(rank, size, PrefixStore("alive", store), timeout)
    finally:
        dist.destroy_process_group()
