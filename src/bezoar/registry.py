"""Names for the parts an experiment is made of, and strict tables for their parameters.

A part is a frozen dataclass. In TOML it is a table such as ``{kind = "krum", f = 2}``: ``kind`` names the class, the
other keys are its fields. Tables are checked strictly: unknown keys, wrong types and wrong values are errors that
name the nearest right key.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bezoar.errors import ConfigError, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered part, as ``bezoar list`` shows it."""

    name: str
    parameters: str
    summary: str
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)


#: The labelled lines of a part's docstring, in the order in which they are shown.
LABELS = ("Tolerates", "Knows", "Sums", "Cost", "Constant", "Peers", "Reference")


def card(part: type[Any]) -> dict[str, str]:
    """What a docstring says under a label (``Cost: ...``), and its first formula under "Formula"; text on one line."""
    found: dict[str, str] = {}
    lines = (inspect.getdoc(part) or "").split("\n")
    for i, line in enumerate(lines):
        label, colon, rest = line.partition(":")
        if line.startswith(".. math::"):
            label, rest = "Formula", line.removeprefix(".. math::")
        elif not colon or label not in LABELS:
            continue
        # A formula's further lines may follow an empty one.
        following = itertools.takewhile(lambda text: text.startswith("    "), lines[i + 1 :])
        found.setdefault(label, " ".join([rest, *following]).replace("    ", " ").strip())
    return {label: " ".join(found[label].split()) for label in ("Formula", *LABELS) if label in found}


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a field that holds parts is read from a table (``build``) and written to one (``table``)."""

    build: Callable[[Any], Any]
    table: Callable[[Any], Any]


class Registry(Generic[T]):
    """Name -> frozen dataclass, for one sort of part (``what`` is used in messages).

    Installed packages add parts through the entry point ``group``: its names are the parts' names. They are loaded
    when a name is not known here, or when all are listed.
    """

    def __init__(self, what: str, parts: Mapping[str, type[T]], group: str | None = None) -> None:
        self.what = what
        self._parts = dict(parts)
        self._names = {part: name for name, part in self._parts.items()}
        self._group = group
        self._broken: dict[str, str] = {}
        self._lock = threading.RLock()

    def _load(self) -> None:
        """Register the parts of installed packages, once; what is wrong with one is told when it is asked for."""
        with self._lock:
            group, self._group = self._group, None
            for point in importlib.metadata.entry_points(group=group) if group else ():
                try:
                    part = point.load()
                    if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
                        raise ConfigError("it is no dataclass")
                    self.add(point.name, cast(type[T], part))
                except Exception as error:
                    self._broken[point.name] = f"entry point {point.value!r} can not be used as a {self.what}: {error}"

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._parts)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._parts:
            self._load()
        if name not in self._parts:
            if name in self._broken:
                raise ConfigError(self._broken[name])
            raise ConfigError(f"unknown {self.what} {name!r}; {nearest(name, self._parts)}")
        return self._parts[name]

    def name(self, part: T) -> str:
        """The name under which the class of ``part`` is registered."""
        if type(part) not in self._names:
            self._load()
        if type(part) not in self._names:
            kind = type(part).__name__
            raise ConfigError(f"{kind} has no name as a {self.what}: register it first, add('my-name', {kind})")
        return self._names[type(part)]

    def add(self, name: str, part: type[T]) -> None:
        """Register a part of your own, a frozen dataclass, under a new name."""
        if self._parts.get(name, part) is not part:
            raise ConfigError(f"there is a {self.what} named {name!r} already")
        self._parts[name] = part
        self._names[part] = name

    def build(self, table: Any) -> T:
        """The part that ``table`` describes: a name, a table with ``kind``, or a finished part (returned as it is)."""
        if dataclasses.is_dataclass(table) and type(table) not in self._names:
            self._load()
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
        """The table that describes ``part``.

        Fields that are None are left out, and so are those that the class lists as ``added``, at their defaults:
        experiments from before these existed keep their hashes.
        """
        nested = self._nested(type(part))
        if nested:
            hints, held = get_type_hints(type(part)), {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}  # type: ignore[arg-type]
            plain = {key: value for key, value in held.items() if key not in nested}
            values = {key: TypeAdapter(hints[key]).dump_python(value, mode="json") for key, value in plain.items()}
            values |= {key: None if held[key] is None else codec.table(held[key]) for key, codec in nested.items()}
            values = {key: values[key] for key in held}
        else:
            values = TypeAdapter(type(part)).dump_python(part, mode="json")
        fresh = added_defaults(type(part))
        kept = {k: v for k, v in values.items() if v is not None and (k not in fresh or v != fresh[k])}
        return {"kind": self.name(part), **kept}

    def entries(self) -> list[Entry]:
        """All parts with parameters and a one-line summary."""
        self._load()
        found = [Entry(name, _parameters(part), _summary(part), card(part)) for name, part in self._parts.items()]
        return found + [Entry(name, "", why) for name, why in self._broken.items() if name not in self._parts]

    def _build_within(self, table: Any) -> Any:
        """A part that is a field of another one, from its table."""
        return self.build(table)

    def _table_within(self, part: Any) -> Any:
        return self.table(part)

    def _nested(self, part: type[T]) -> dict[str, Codec]:
        """The fields that hold parts: they say so (:func:`holds`), or have a part of this sort as default."""
        found = {}
        for spec in dataclasses.fields(part):  # type: ignore[arg-type]
            if "codec" in spec.metadata:
                found[spec.name] = spec.metadata["codec"]
                continue
            factory = spec.default_factory
            default = spec.default if factory is dataclasses.MISSING else factory()
            if type(default) in self._names:
                found[spec.name] = Codec(self._build_within, self._table_within)
        return found

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
        nested = self._nested(part)
        if nested:
            return self._assemble(part, values, nested)
        try:
            return TypeAdapter(part).validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            raise self._wrong(name, error) from None

    def _assemble(self, part: type[T], values: dict[str, Any], nested: Mapping[str, Codec]) -> T:
        """As ``_fill`` for a part that holds others: what these are is no matter of types."""
        name, hints = self._names[part], get_type_hints(part)
        held = {}
        for key, value in values.items():
            if key in nested:
                held[key] = nested[key].build(value)
                continue
            try:
                held[key] = TypeAdapter(hints[key]).validate_json(json.dumps(value, default=str), strict=True)
            except ValidationError as error:
                raise self._wrong(name, error, key) from None
        try:
            return part(**held)
        except ConfigError as error:
            raise ConfigError(f"{self.what} {name!r}: {error}") from None

    def _wrong(self, name: str, error: ValidationError, *key: str) -> ConfigError:
        first = error.errors()[0]
        where = "".join(f"{step}: " for step in (*key, *first["loc"]))
        text = str(first["msg"]).removeprefix("Value error, ")
        return ConfigError(f"{self.what} {name!r}: {where}{text}")


def holds(build: Callable[[Any], Any], table: Callable[[Any], Any], **options: Any) -> Any:
    """A dataclass field that holds parts of a registry: how they are read from TOML and written to it.

    ``options`` are those of :func:`dataclasses.field`, e.g. ``default``.
    """
    return dataclasses.field(metadata={"codec": Codec(build, table)}, **options)


def added_defaults(part: type[Any]) -> dict[str, Any]:
    """The parameters that tables leave out at their defaults, with these."""
    names = getattr(part, "added", ())
    return {spec.name: spec.default for spec in dataclasses.fields(part) if spec.name in names}


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
