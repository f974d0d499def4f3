"""Where data files are looked for, and what is said when they are not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bezoar.errors import DataError

#: The environment variable that names the directory of all data sets.
VARIABLE = "BEZOAR_DATA"

#: Alternative names of one file, the usual one first.
Names = Sequence[str]


def root(data_dir: str | os.PathLike[str] | None) -> Path:
    """``data_dir``, else the environment variable, else ./data."""
    return Path(data_dir or os.environ.get(VARIABLE) or "data").expanduser()


def find(folder: Path, names: Names) -> Path | None:
    """The first of ``names`` that is a file in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def matching(folder: Path, patterns: Names) -> list[Path]:
    """All files in ``folder`` of the first of ``patterns`` that fits any, by name."""
    found = (sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in patterns)
    return next((paths for paths in found if paths), [])


def missing(name: str, folder: Path, wanted: Mapping[str, Names], hint: str) -> DataError:
    """The error that says which files were looked for, where, and what to do, the ``hint`` included."""
    files = ", ".join(" or ".join(names) for names in wanted.values())
    return DataError(
        f"data set {name!r} is not in {folder.resolve()}: looked for {files}. Give the directory that holds {name}/ as "
        f"data_dir or in the environment variable {VARIABLE}{hint}"
    )


def check_sha256(path: Path, expected: str | None, *content: bytes) -> None:
    """Raise DataError naming ``path`` if the content is not the published one."""
    if expected is None:
        return
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    found = digest.hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: content is not the published file (sha256 {found}, expected {expected}); fetch it again, or load "
            "with verify=False to use it all the same"
        )
