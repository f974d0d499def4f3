"""The files of a cell as bytes, for machines that share no folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bezoar.errors import BezoarError
from bezoar.experiments.records import CHECKPOINT, SUMMARY, guarded, write_bytes

#: What says that others are whole is written after them.
_LAST = (CHECKPOINT, SUMMARY)


@dataclass(frozen=True)
class Parcel:
    """Files below a folder, by their names from there.

    Attributes:
        files: contents of those that are new or have changed.
        names: all that there are.
    """

    files: Mapping[str, bytes]
    names: frozenset[str]


@dataclass
class Packer:
    """Packs a folder again and again: each parcel holds what has changed since the one before."""

    folder: Path
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pack(self) -> Parcel:
        """What has changed; files that are being written to (``*.part``) are left out."""
        files, names = {}, set()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix == ".part" or path.is_symlink() or not path.is_file():
                continue
            name = path.relative_to(self.folder).as_posix()
            # Another program's file may be gone by now.
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                stamp = found.st_mtime_ns, found.st_size
                if self._seen.get(name) != stamp:
                    files[name] = path.read_bytes()
                    self._seen[name] = stamp
                names.add(name)
        return Parcel(files, frozenset(names))


def unpack(parcel: Parcel, folder: Path) -> None:
    """Make ``folder`` hold what the packed one held.

    Raises:
        BezoarError: a name leads out of the folder, or a file can not be written.
    """
    root = folder.resolve()
    for name in parcel.names | parcel.files.keys():
        if not (root / name).resolve().is_relative_to(root) or Path(name).is_absolute():
            raise BezoarError(f"{folder}: a worker sent a file named {name!r}, which leads out of it")
    for name in sorted(parcel.files.keys() & parcel.names, key=lambda name: (_rank(name), name)):
        path = folder / name
        with guarded(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, parcel.files[name])
    for path in list(folder.rglob("*")):
        if path.is_file() and path.suffix != ".part" and path.relative_to(folder).as_posix() not in parcel.names:
            path.unlink(missing_ok=True)


def _rank(name: str) -> int:
    last = Path(name).name
    return _LAST.index(last) + 1 if last in _LAST else 0
