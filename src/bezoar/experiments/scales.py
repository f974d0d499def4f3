"""Scales: what a recipe changes where it shall cost less (or more) than as it is written.

A table ``[scale.small]`` maps dotted keys to values, and ``--set scale=small`` applies it. Keys of the base experiment
are set as ``--set`` sets them. Of the grid

- ``"grid.seed" = [0]`` replaces an axis,
- ``"grid.defence.only" = ["clipping", "SparseFed"]`` keeps these values of it, by their labels,
- ``"grid.defence.SparseFed.k" = "1%"`` sets a key of the value with that label,
- ``"grid.attack.*.aux" = 50`` sets a key in every value of the axis that has it.

A scale changes experiments, so their hashes; a recipe as it is written hashes as if it had no scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bezoar.errors import ConfigError, nearest
from bezoar.experiments.config import override

#: The name of a recipe as it is written.
FULL = "full"

_GRID = "grid."


def at_scale(
    table: Mapping[str, Any], settings: Mapping[str, Any] | None = None, source: str = "recipe"
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The table at the scale that ``settings`` ask for, the other settings, and the scale's name.

    The scale's name is ``"full"`` if none is asked for, and empty for a table without scales. A name that the scale
    does not set gets the scale's as an ending, so that records of two scales do not share a directory.

    >>> table = {"name": "a", "rounds": 100, "scale": {"small": {"rounds": 5}}}
    >>> at_scale(table, {"scale": "small", "seed": 1})
    ({'name': 'a-small', 'rounds': 5}, {'seed': 1}, 'small')

    Raises:
        ConfigError: there is no such scale, or it changes what is not there.
    """
    settings = dict(settings or {})
    wanted = settings.pop("scale", FULL)
    scales = table.get("scale", {})
    bare = {key: value for key, value in table.items() if key != "scale"}
    if not isinstance(scales, Mapping) or not all(isinstance(changes, Mapping) for changes in scales.values()):
        raise ConfigError(f"{source}: scale is a table of tables, e.g. [scale.small]")
    if FULL in scales:
        raise ConfigError(f"{source}: the scale {FULL!r} is what stands above; give [scale.{FULL}] another name")
    if wanted == FULL:
        return bare, settings, FULL if scales else ""
    if wanted not in scales:
        known = f"; {nearest(str(wanted), [FULL, *scales])}" if scales else ": it has none"
        raise ConfigError(f"{source}: no scale {wanted!r}{known}")
    changes = dict(scales[wanted])
    if isinstance(bare.get("name"), str):
        changes.setdefault("name", f"{bare['name']}-{wanted}")
    where = f"{source}: scale.{wanted}"
    for key in changes:
        if key in (_GRID.rstrip("."), "paper", "scale"):
            raise ConfigError(f'{where}: {key!r} can not be replaced as a whole; name the axis, e.g. "grid.seed" = [0]')
    out = override(bare, {key: value for key, value in changes.items() if not key.startswith(_GRID)})
    axes = {key.removeprefix(_GRID): value for key, value in changes.items() if key.startswith(_GRID)}
    if axes:
        out["grid"] = _grid(bare.get("grid"), axes, where)
    return out, settings, str(wanted)


def _grid(grid: object, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(grid, Mapping):
        raise ConfigError(f"{where}: there is no [grid] to change")
    axes: dict[str, Any] = dict(grid)
    for dotted, value in changes.items():
        axis = _longest(dotted, axes)
        if axis is None:
            raise ConfigError(f"{where}: grid.{dotted}: no such axis; {nearest(dotted, axes)}")
        rest = dotted[len(axis) + 1 :]
        if not rest:
            axes[axis] = value
        elif not isinstance(axes[axis], list):
            raise ConfigError(f"{where}: grid.{axis} is not a list of values")
        else:
            axes[axis] = _values(axes[axis], rest, value, f"{where}: grid.{axis}")
    return axes


def _values(values: Sequence[Any], rest: str, new: Any, where: str) -> list[Any]:
    labels = [str(label(value)) for value in values]
    if rest == "only":
        if not isinstance(new, list):
            raise ConfigError(f"{where}.only must be a list of labels, got {new!r}")
        for name in new:
            if str(name) not in labels:
                raise ConfigError(f"{where}: no value {name!r}; {nearest(str(name), labels)}")
        kept = set(map(str, new))
        return [value for value, name in zip(values, labels, strict=True) if name in kept]
    name = "*" if rest.startswith("*.") else _longest(rest, labels)
    key = rest[len(name or "") + 1 :]
    if name is None or not key:
        raise ConfigError(f"{where}: {rest!r} names no value and a key of it; {nearest(rest, [*labels, '*', 'only'])}")
    changed = 0
    out = []
    for value, known in zip(values, labels, strict=True):
        hit = isinstance(value, Mapping) and (known == name or (name == "*" and holds(value, key)))
        out.append(override(value, {key: new}) if hit else value)
        changed += hit
    if not changed:
        what = f"none of its tables has the key {key!r}" if name == "*" else f"{name!r} is no table"
        raise ConfigError(f"{where}.{rest}: {what}")
    return out


def _longest(dotted: str, names: Iterable[str]) -> str | None:
    """The longest of ``names`` that ``dotted`` starts with, up to a dot: names may hold dots themselves."""
    fits = [name for name in names if dotted == name or dotted.startswith(f"{name}.")]
    return max(fits, key=len, default=None)


#: Keys that name a value on an axis where it has no label.
_NAMING = ("label", "preset", "kind", "name", "dataset")


def label(value: Any) -> Any:
    """What a value on an axis is called: itself, or a table's ``label``, else its preset, kind or name.

    A label that is a table itself is called by its values: see :func:`labels`.
    """
    if isinstance(value, Mapping):
        for key in _NAMING:
            if key in value:
                named = value[key]
                return ", ".join(map(str, named.values())) if isinstance(named, Mapping) else named
        raise ConfigError(f"a table on a grid axis needs a label: {dict(value)!r}")
    return value


def labels(axis: str, value: Any) -> dict[str, Any]:
    """Under which names a value is reported: one for its axis, or several where its ``label`` is a table.

    >>> labels("task", {"label": {"task": "digits", "skew": "0.1"}, "kind": "softmax"})
    {'task': 'digits', 'skew': '0.1'}
    """
    named = value.get("label") if isinstance(value, Mapping) else None
    return dict(named) if isinstance(named, Mapping) and named else {axis: label(value)}


def holds(table: Mapping[str, Any], dotted: str) -> bool:
    """Whether ``table`` has the key."""
    here: Any = table
    for step in dotted.split("."):
        if not isinstance(here, Mapping) or step not in here:
            return False
        here = here[step]
    return True
