"""Start processes that play one run, and end them whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import bezoar

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """Of this process, without what another torchrun may have told it; one thread a process."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "GROUP_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        known.pop(name, None)
    source = str(Path(bezoar.__file__).resolve().parents[1])
    return known | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{ROOT}"} | more


def start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=log.parent, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children, which torchrun starts in sessions of their own, if it still lives."""
    children = _children(process.pid)
    for pid in (process.pid, *children):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(30)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    found = [int(part) for part in text.split()]
    return found + [below for child in found for below in _children(child)]


def torchrun(size: int, arguments: Sequence[str], log: Path, limit: float = 300) -> tuple[int, str]:
    """Run ``torchrun --standalone`` with ``size`` processes: its status and what all of them printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *arguments]
    process = start(command, log, environment())
    try:
        status = process.wait(limit)
    finally:
        end(process)
    return status, log.read_text(errors="replace")


def by_hand(size: int, arguments: Sequence[str], logs: Path) -> list[subprocess.Popen[bytes]]:
    """The same without torchrun, which would end the others if one is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(size):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = environment(**{name: str(value) for name, value in told.items()})
        started.append(start([sys.executable, *arguments], logs / f"rank{rank}.log", env))
    return started
