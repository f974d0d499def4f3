"""The JSON files of LEAF: ``users``, ``num_samples``, and ``user_data`` with ``x`` and ``y`` of every user."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bezoar.errors import DataError


def read_users(paths: Sequence[Path], counted: bool = True) -> Iterator[tuple[str, list[Any], list[Any], str]]:
    """(user, x, y, where) of every user in ``paths``, in the files' order; one file is in memory at a time.

    ``counted``: whether num_samples must be right; LEAF's Reddit files keep the counts of before their split.
    Raises DataError for a file of another layout, and for a user who stands in two files.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        table = _table(path)
        counts = table["num_samples"]
        if len(counts) != len(table["users"]):
            raise DataError(f"{path}: num_samples has {len(counts)} entries for {len(table['users'])} users")
        for place, user in enumerate(table["users"]):
            if not isinstance(user, str):
                raise DataError(f"{path}: users[{place}] must be a name, got {user!r:.80}")
            where = f"{path}: user {user!r}"
            if user in seen:
                raise DataError(f"{where} stands in {seen[user].name} already")
            seen[user] = path
            data = table["user_data"].get(user)
            if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("x", "y")):
                raise DataError(f"{where}: user_data needs an object with the lists x and y")
            x, y = data["x"], data["y"]
            if len(x) != len(y):
                raise DataError(f"{where}: {len(x)} entries in x, {len(y)} in y")
            if counted and counts[place] != len(y):
                raise DataError(f"{where}: num_samples says {counts[place]}, there are {len(y)}")
            yield user, x, y, where


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    kinds = {"users": list, "num_samples": list, "user_data": dict}
    for key, kind in kinds.items():
        if not isinstance(table, dict) or not isinstance(table.get(key), kind):
            raise DataError(f"{path}: not a file of LEAF's: needs an object with users, num_samples and user_data")
    return dict(table)
