"""Experiments that come with the library, one TOML file for each table or figure."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bezoar.errors import ConfigError, nearest


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe."""
    folder = Path(str(resources.files(__name__)))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(source: str | Path) -> Path:
    """The file that ``source`` names: a path, or a recipe. Raises ConfigError if there is neither."""
    path = Path(source)
    if path.is_file():
        return path
    known = recipes()
    if str(source) in known:
        return known[str(source)]
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{source}: no such file")
    raise ConfigError(f"{source!r} is neither a file nor a recipe; {nearest(str(source), known)}")
