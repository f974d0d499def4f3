"""Flower's own processes for tests: started here, bounded in time, and gone afterwards with all of their children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[3]

#: Every process that is started here, and all that come of it, carry this variable: some leave their process group.
_MARK = "BEZOAR_TEST_DAEMONS"


def free_ports(count: int) -> list[int]:
    """Different free ports of 127.0.0.1."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]
    finally:
        for found in sockets:
            found.close()


@dataclass
class Daemons:
    """Processes in an environment of their own, with their output in ``folder``."""

    folder: Path
    limit: float
    ray: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.limit
        home = self.folder / "flwr"
        home.mkdir(parents=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))},
            _MARK: self.mark,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(ROOT / "src"),
            "HOME": str(self.folder),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self.ray,
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    @property
    def left(self) -> float:
        """Seconds until the limit; TimeoutError, with what the processes said, after it."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not done after {self.limit:g} s\n{self.said()}")
        return left

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process that goes on."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self._running[name]

    def run(self, name: str, command: Sequence[str]) -> str:
        """Run a process to its end; what it said. RuntimeError, with everybody's output, if it fails."""
        process = self.start(name, command)
        try:
            code = process.wait(self.left)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} is not done after {self.limit:g} s\n{self.said()}") from None
        if code:
            raise RuntimeError(f"{name} ended with {code}\n{self.said()}")
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def listening(self, name: str, port: int) -> None:
        """Wait until the process called ``name`` accepts connections."""
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if self._running[name].poll() is not None:
                raise RuntimeError(f"{name} ended\n{self.said()}")
            time.sleep(min(0.1, self.left))

    def connect(self, port: int) -> None:
        """Let ``flwr run APP here`` find the SuperLink on ``port``."""
        text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (self.folder / "flwr" / "config.toml").write_text(text)

    def said(self) -> str:
        """The end of every process's output."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def alive(self) -> list[int]:
        """Processes that carry the mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                carried = f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            # A dead one whose parent has not looked yet has an empty environment, and does not count.
            if carried:
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End all, with whatever they started; kill until none is left."""
        for number in (signal.SIGTERM, *[signal.SIGKILL] * 20):
            for process in self.alive():
                try:
                    os.kill(process, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + (3.0 if number == signal.SIGTERM else 0.5)
            while self.alive() and time.monotonic() < deadline:
                for child in self._running.values():
                    child.poll()
                time.sleep(0.05)
            if not self.alive():
                break
        for child in self._running.values():
            child.wait(5)
        assert not self.alive(), f"processes survive: {self.alive()}"


@contextmanager
def daemons(folder: Path, limit: float) -> Iterator[Daemons]:
    """:class:`Daemons` that are all gone at the end, however it comes."""
    # Sockets' paths may have 107 characters, and Ray adds some 60: a test's own folder is too deep.
    with TemporaryDirectory(prefix="bz", ignore_cleanup_errors=True) as ray:
        made = Daemons(folder, limit, ray)
        try:
            yield made
        finally:
            made.stop()
