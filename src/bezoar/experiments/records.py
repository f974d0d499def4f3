"""What a run leaves on disk: configuration, records, checkpoint, summary, weights.

Every file but the two append-only record files is written to a temporary name and renamed, so that a reader, or a
run that is killed, never meets half a file. A checkpoint remembers how long the record files were; resuming cuts
them back to that length, so that an interrupted run ends with the same bytes as an uninterrupted one. Seconds are
kept in a file of their own, since they never repeat.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bezoar.errors import BezoarError, BusyError, ConfigError

CONFIG, METRICS, TIMINGS = "experiment.toml", "metrics.jsonl", "timings.jsonl"
SUMMARY, WEIGHTS, CHECKPOINT = "summary.json", "weights.safetensors", "checkpoint.safetensors"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with guarded(path):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    plain = {name: value.detach().contiguous().cpu().clone() for name, value in tensors.items()}
    with guarded(path):
        try:
            save_file(plain, str(temporary), dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from None
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises BezoarError if it is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BezoarError(f"{path}: can not be read: {error}") from None


class guarded:
    """Turn the operating system's errors about ``path`` into one clear line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise BezoarError(f"{self._path}: can not be written: {error.strerror or error}") from None


@contextlib.contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Nobody else is inside for the same directory, which is made if need be; a process that dies leaves it free.

    Where the file system has no locks (some network drives) everybody is let in.

    Raises:
        BusyError: somebody is inside already, and we do not ``wait``.
        BezoarError: the directory can not be made.
    """
    handle, made = -1, set[Path]()
    while handle < 0:
        with guarded(folder):
            made |= {path for path in (folder, *folder.parents) if not path.exists()}
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise BusyError(f"{folder}: another process is running this") from None
        # Who was inside before may have removed the directory that we waited for.
        if not folder.exists() or os.fstat(handle).st_ino != folder.stat().st_ino:
            os.close(handle)
            handle = -1
    try:
        yield
    finally:
        # Where nothing was recorded, leave nothing behind; the first that is not empty ends it.
        with contextlib.suppress(OSError):
            for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
                path.rmdir()
        os.close(handle)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on: the round, tensors by name, the length of the record files."""

    round: int
    tensors: dict[str, Tensor]
    lengths: tuple[int, int]


class Records:
    """The record files of one run directory, and what is kept in memory of them.

    Without a directory everything stays in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rounds: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []

    def open(self, config: str, digest: str, resume: bool) -> Checkpoint | None:
        """Start, or go on from the checkpoint if ``resume``; returns that checkpoint.

        Raises:
            ConfigError: the directory holds another run, or one that should not be overwritten.
        """
        if self.folder is None:
            return None
        with guarded(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / CONFIG
        if known.exists() and not resume:
            raise ConfigError(f"{self.folder}: already holds a run; go on with --resume, or choose another --out")
        checkpoint = self._load_checkpoint(digest) if known.exists() else None
        if checkpoint is None:
            write_atomically(known, config)
        for name, length in zip((METRICS, TIMINGS), checkpoint.lengths if checkpoint else (0, 0), strict=True):
            path = self.folder / name
            if length and (not path.exists() or path.stat().st_size < length):
                raise BezoarError(f"{path}: damaged: shorter than the checkpoint says; start again in another --out")
            with guarded(path), path.open("ab") as file:
                file.truncate(length)
        if checkpoint is not None:
            self._reread()
        return checkpoint

    def _load_checkpoint(self, digest: str) -> Checkpoint | None:
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        tensors, metadata = load_tensors(path)
        if metadata.get("hash") != digest:
            raise ConfigError(f"{self.folder}: holds a run of another configuration; choose another --out")
        lengths = int(metadata["metrics"]), int(metadata["timings"])
        return Checkpoint(int(metadata["round"]), tensors, lengths)

    def _reread(self) -> None:
        assert self.folder is not None
        for line in (self.folder / METRICS).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            (self.rounds if record["kind"] == "round" else self.evaluations).append(record)
        for line in (self.folder / TIMINGS).read_text(encoding="utf-8").splitlines():
            self.timings.append(json.loads(line))

    def add(self, records: Iterable[Mapping[str, Any]], timings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Append rounds and evaluations, in order, and the seconds they took; returns all as they were written."""
        metrics = [plain(record) for record in records]
        seconds = [plain(record) for record in timings]
        for record in metrics:
            (self.rounds if record["kind"] == "round" else self.evaluations).append(record)
        self.timings.extend(seconds)
        if self.folder is not None:
            _append(self.folder / METRICS, metrics)
            _append(self.folder / TIMINGS, seconds)
        return [*metrics, *seconds]

    def save_checkpoint(self, round: int, tensors: Mapping[str, Tensor], digest: str) -> None:
        """Replace the checkpoint."""
        if self.folder is None:
            return
        lengths = []
        for path in (self.folder / METRICS, self.folder / TIMINGS):
            # On disk before a checkpoint counts on them.
            with guarded(path), path.open("rb+") as file:
                os.fsync(file.fileno())
            lengths.append(path.stat().st_size)
        metadata = {"round": str(round), "hash": digest, "metrics": str(lengths[0]), "timings": str(lengths[1])}
        save_tensors(self.folder / CHECKPOINT, tensors, metadata)

    def finish(
        self, summary: Mapping[str, Any], weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the final weights, then the summary, whose presence says that the run is complete."""
        if self.folder is None:
            return
        save_tensors(self.folder / WEIGHTS, weights, {"format": "pt", **(metadata or {})})
        write_summary(self.folder, summary)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json`` of a run directory."""
    write_atomically(folder / SUMMARY, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None if the run is not finished."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BezoarError(f"{path}: damaged: {error}") from None
    return found


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with tensors read and non-finite numbers as null, ready for JSON."""
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    with guarded(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
