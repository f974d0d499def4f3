"""Names for the parts an experiment is made of, and strict tables for their parameters.

A part is a frozen dataclass. In TOML it is a table such as ``{kind = "krum", f = 2}``: ``kind`` names the class, the
other keys are its fields. Tables are checked strictly: unknown keys, wrong types and wrong values are errors that
name the nearest right key.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from bezoar.errors import ConfigError, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered part, as ``bezoar list`` shows it."""

    name: str
    parameters: str
    summary: str


class Registry(Generic[T]):
    """Name -> frozen dataclass, for one sort of part (``what`` is used in messages)."""

    def __init__(self, what: str, parts: Mapping[str, type[T]]) -> None:
        self.what = what
        self._parts = dict(parts)
        self._names = {part: name for name, part in self._parts.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._parts:
            raise ConfigError(f"unknown {self.what} {name!r}; {nearest(name, self._parts)}")
        return self._parts[name]

    def name(self, part: T) -> str:
        """The name under which the class of ``part`` is registered."""
        if type(part) not in self._names:
            kind = type(part).__name__
            raise ConfigError(f"{kind} has no name as a {self.what}: register it first, add('my-name', {kind})")
        return self._names[type(part)]

    def add(self, name: str, part: type[T]) -> None:
        """Register a part of your own, a frozen dataclass, under a new name."""
        if name in self._parts:
            raise ConfigError(f"there is a {self.what} named {name!r} already")
        self._parts[name] = part
        self._names[part] = name

    def build(self, table: Any) -> T:
        """The part that ``table`` describes: a name, a table with ``kind``, or a finished part (returned as it is)."""
        if type(table) in self._names:
            return table  # type: ignore[no-any-return]
        if isinstance(table, str):
            table = {"kind": table}
        if not isinstance(table, Mapping) or not isinstance(table.get("kind"), str):
            raise ConfigError(
                f'a {self.what} is a name or a table with a key kind, e.g. {{kind = "{next(iter(self))}"}}'
            )
        part = self[table["kind"]]
        return self._fill(part, {key: value for key, value in table.items() if key != "kind"})

    def table(self, part: T) -> dict[str, Any]:
        """The table that describes ``part``; fields that are None are left out."""
        values = TypeAdapter(type(part)).dump_python(part, mode="json")
        return {"kind": self.name(part), **{k: v for k, v in values.items() if v is not None}}

    def entries(self) -> list[Entry]:
        """All parts with parameters and a one-line summary."""
        return [Entry(name, _parameters(part), _summary(part)) for name, part in self._parts.items()]

    def _fill(self, part: type[T], values: dict[str, Any]) -> T:
        name = self._names[part]
        fields = {f.name: f for f in dataclasses.fields(part) if f.init}  # type: ignore[arg-type]
        for key in values:
            if key not in fields:
                known = nearest(key, fields) if fields else "it has no parameters"
                raise ConfigError(f"{self.what} {name!r} has no parameter {key!r}; {known}")
        for key, spec in fields.items():
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            if required and key not in values:
                raise ConfigError(f"{self.what} {name!r} needs the parameter {key!r}; parameters: {_parameters(part)}")
        try:
            return TypeAdapter(part).validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{step}: " for step in first["loc"])
            text = str(first["msg"]).removeprefix("Value error, ")
            raise ConfigError(f"{self.what} {name!r}: {where}{text}") from None


def _parameters(part: type[Any]) -> str:
    shown = []
    for spec in dataclasses.fields(part):
        if not spec.init:
            continue
        if spec.default is not dataclasses.MISSING:
            shown.append(f"{spec.name}={json.dumps(spec.default, default=str)}")
        elif spec.default_factory is not dataclasses.MISSING:
            shown.append(f"{spec.name}=...")
        else:
            shown.append(spec.name)
    return ", ".join(shown)


def _summary(part: type[Any]) -> str:
    return (inspect.getdoc(part) or "").strip().split("\n")[0]
