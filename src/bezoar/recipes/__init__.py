"""Experiments that come with the library, one TOML file for each table or figure.

Recipes of one paper lie in a folder of their own: ``sparsefed/table-2`` is ``sparsefed/table-2.toml``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bezoar.errors import ConfigError, nearest


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe."""
    folder = Path(str(resources.files(__name__)))
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.toml"))
    # Recipes of no folder first.
    return {name.as_posix(): folder / f"{name}.toml" for name in sorted(found, key=lambda n: (len(n.parts), _key(n)))}


def _key(name: Path) -> list[tuple[str, int]]:
    """Sorts table-2 before table-11."""
    return [
        (text.rstrip("0123456789"), int(text[len(text.rstrip("0123456789")) :] or 0))
        for text in name.as_posix().split("-")
    ]


def find(source: str | Path) -> Path:
    """The file that ``source`` names: a path, or a recipe. Raises ConfigError if there is neither."""
    path = Path(source)
    if path.is_file():
        return path
    known = recipes()
    name = path.as_posix()
    if name in known:
        return known[name]
    folders = {known_name.partition("/")[0] for known_name in known if "/" in known_name}
    if path.suffix or (len(path.parts) > 1 and path.parts[0] not in folders):
        raise ConfigError(f"{source}: no such file")
    raise ConfigError(f"{str(source)!r} is neither a file nor a recipe; {nearest(name, known)}")
