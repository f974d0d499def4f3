"""Experiments that come with the library, one TOML file for each table or figure.

Recipes of one paper lie in a folder of their own: ``sparsefed/table-2`` is ``sparsefed/table-2.toml``.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

from bezoar.errors import ConfigError, nearest


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe."""
    folder = Path(str(resources.files(__name__)))
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))
    # Recipes of no folder first.
    return {name: folder / f"{name}.toml" for name in sorted(found, key=lambda name: (name.count("/"), _key(name)))}


def _key(name: str) -> list[str]:
    """Sorts table-2 before table-11."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def find(source: str | Path) -> Path:
    """The file that ``source`` names: a path, or a recipe. Raises ConfigError if there is neither."""
    path = Path(source)
    if path.is_file():
        return path
    known = recipes()
    name = path.as_posix()
    if name in known:
        return known[name]
    other = _also().get(name)
    if other is not None:
        return known[other]
    folders = {known_name.partition("/")[0] for known_name in known if "/" in known_name}
    if path.suffix or (len(path.parts) > 1 and path.parts[0] not in folders):
        raise ConfigError(f"{source}: no such file")
    raise ConfigError(f"{str(source)!r} is neither a file nor a recipe; {nearest(name, [*known, *_also()])}")


def _also() -> dict[str, str]:
    """Other names of recipes, for tables and figures that share one: its key ``paper.also``."""
    found = {}
    for name, path in recipes().items():
        folder, _, _ = name.rpartition("/")
        for other in tomllib.loads(path.read_text(encoding="utf-8")).get("paper", {}).get("also", ()):
            found[f"{folder}/{other}"] = name
    return found
