"""What a paper says of a grid: its numbers, and what would have to hold for a claim to be reproduced.

A recipe's ``[paper]`` table has a ``title``, perhaps other names of the recipe (``also``), and claims::

    [[paper.claims]]
    of = "Table 2"
    says = "Colluding PGD breaks clipping and does not break SparseFed."
    published = [
      { at = { defence = "clipping", attack = "PGD" }, attack = 100.0 },
      { at = { defence = "SparseFed", attack = "PGD" }, attack = 4.6 },
    ]
    checks = [
      { metric = "attack", at = { defence = "clipping", attack = "PGD" }, above = 50 },
      { metric = "attack", at = { defence = "SparseFed", attack = "PGD" }, below = 20 },
    ]
    why = { small = "..." }

``at`` gives labels of the grid; an axis that is left out means all of its values. A check is about means over seeds:

- ``above`` or ``below`` (or both): every row ``at`` lies there,
- ``than`` and ``by``: the row ``at`` exceeds the row ``than``, by at least ``by`` (which may be negative),
- ``along`` and ``trend``: over the values of that axis the metric ``"rises"`` or ``"falls"`` from the first to the
  last, and no step goes the other way by more than ``slack``.

Metrics: ``test``, ``error`` (100 - test) and ``attack`` in %, ``oif``, ``l1`` (distance to the twin without attack).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from bezoar.errors import ConfigError, nearest

#: Metric -> what it is called.
METRICS = {
    "test": "test accuracy (%)",
    "error": "test error (%)",
    "attack": "attack accuracy (%)",
    "oif": "OIF",
    "l1": "l1 distance to the twin",
}

_KEYS = ("title", "also", "claims")
_KINDS = {"published": list, "checks": list, "metrics": list, "why": dict, "regime": str}

#: The axis that is averaged over.
SEED = "seed"

Labels = Mapping[str, str]

#: The value of a metric in the row with these labels; None where it was not run or does not apply.
Lookup = Callable[[Labels, str], float | None]

Word = Literal["agrees", "partly", "differs", "not run", "reported"]


@dataclass(frozen=True)
class Published:
    """What the paper prints for the rows ``at``: metric -> number, or a word such as "DNC" (did not converge)."""

    at: Labels
    numbers: Mapping[str, float | str]

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str) -> Self:
        """From a table of the recipe."""
        numbers = {key: value for key, value in table.items() if key != "at"}
        for key, value in numbers.items():
            if key not in METRICS:
                raise ConfigError(f"{where}: no metric {key!r}; {nearest(key, METRICS)}")
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ConfigError(f"{where}: {key} must be a number or a word, got {value!r}")
        if not numbers:
            raise ConfigError(f"{where}: no number; give some of {', '.join(METRICS)}")
        return cls(_labels(table.get("at"), where), numbers)

    def table(self) -> dict[str, Any]:
        """The table that gives this."""
        return {"at": dict(self.at), **self.numbers}


@dataclass(frozen=True)
class Check:
    """One thing that holds or does not; see the module's description."""

    metric: str
    at: Labels = field(default_factory=dict)
    above: float | None = None
    below: float | None = None
    than: Labels | None = None
    by: float = 0.0
    along: str | None = None
    trend: Literal["rises", "falls"] = "rises"
    slack: float = 0.0

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str) -> Self:
        """From a table of the recipe."""
        known = [spec.name for spec in fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(f"{where}: a check has no key {key!r}; {nearest(key, known)}")
        if table.get("metric") not in METRICS:
            given = table.get("metric")
            raise ConfigError(f"{where}: metric must be one of {', '.join(METRICS)}, got {given!r}")
        bounds = "above" in table or "below" in table
        if bounds + ("than" in table) + ("along" in table) != 1:
            raise ConfigError(f"{where}: a check has bounds (above, below), or than, or along")
        if table.get("trend", "rises") not in ("rises", "falls"):
            raise ConfigError(f"{where}: trend must be 'rises' or 'falls', got {table['trend']!r}")
        for key in ("above", "below", "by", "slack"):
            value = table.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{where}: {key} must be a number, got {value!r}")
        rows = {key: _labels(table[key], where) for key in ("at", "than") if key in table}
        return cls(**{**table, **rows})

    def table(self) -> dict[str, Any]:
        """The table that gives this check."""
        found = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        defaults = {spec.name: spec.default for spec in fields(self)}
        return {key: value for key, value in found.items() if value != defaults[key] and value != {}}

    def words(self) -> str:
        """The check as a sentence without its full stop.

        >>> Check("attack", {"defence": "clipping"}, above=50).words()
        'attack accuracy (%) of [clipping] is above 50'
        """
        what = f"{METRICS[self.metric]} of {_name(self.at)}"
        if self.than is not None:
            if self.by < 0:
                return f"{what} is at most {-self.by:g} below that of {_name(self.than)}"
            margin = f" by at least {self.by:g}" if self.by else ""
            return f"{what} exceeds that of {_name(self.than)}{margin}"
        if self.along is not None:
            slack = f" (no step back by more than {self.slack:g})" if self.slack else ""
            return f"{what} {self.trend} along {self.along}{slack}"
        bounds = [
            f"{side} {value:g}" for side, value in (("above", self.above), ("below", self.below)) if value is not None
        ]
        return f"{what} is {' and '.join(bounds)}"

    def holds(self, rows: Sequence[Labels], value: Lookup) -> bool | None:
        """Whether it holds among the grid's ``rows``; None where something that it needs was not run."""
        on = _matching(rows, self.at)
        at = [value(row, self.metric) for row in on]
        if not at or None in at:
            return None
        found = [number for number in at if number is not None]
        if any(map(math.isnan, found)):
            # A run that diverged has no number that lies anywhere.
            return False
        if self.than is not None:
            other = [value(row, self.metric) for row in _matching(rows, self.than)]
            if len(other) != 1 or len(found) != 1 or other[0] is None:
                return None
            # False where the other is NaN. Equal numbers exceed each other by nothing.
            return found[0] - other[0] >= self.by if self.by else found[0] > other[0]
        if self.along is not None:
            fixed = {tuple(sorted((axis, name) for axis, name in row.items() if axis != self.along)) for row in on}
            if len(found) < 2 or len(fixed) > 1:
                return None
            sign = 1 if self.trend == "rises" else -1
            steps = [sign * (right - left) for left, right in itertools.pairwise(found)]
            return sum(steps) > 0 and min(steps) >= -self.slack
        low = True if self.above is None else min(found) > self.above
        return low and (self.below is None or max(found) < self.below)


@dataclass(frozen=True)
class Claim:
    """What one table or figure shows.

    Attributes:
        of: the table or figure.
        says: the claim in words.
        regime: which regime the paper's numbers are from, as far as it can be told.
        metrics: what is compared.
        where: labels of the rows that it is about; all rows if empty.
        published: the paper's numbers.
        checks: what must hold for the claim to be reproduced.
        why: scale -> what explains the outcome there, written after looking at it.
    """

    of: str
    says: str
    regime: str = ""
    metrics: tuple[str, ...] = ()
    where: Labels = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    checks: tuple[Check, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """The table that gives this claim, for records."""
        return {
            "of": self.of,
            "says": self.says,
            "regime": self.regime,
            "metrics": list(self.metrics),
            "where": dict(self.where),
            "published": [numbers.table() for numbers in self.published],
            "checks": [check.table() for check in self.checks],
            "why": dict(self.why),
        }

    def rows(self, rows: Sequence[Labels]) -> list[Labels]:
        """Those of the grid's rows that it is about."""
        return _matching(rows, self.where)

    def number(self, row: Labels, metric: str) -> float | str | None:
        """What the paper prints for a row."""
        fits = (p.numbers[metric] for p in self.published if metric in p.numbers and _matching([row], p.at))
        return next(fits, None)

    def judge(self, rows: Sequence[Labels], value: Lookup) -> Verdict:
        """Which checks hold among the grid's ``rows``."""
        return Verdict(tuple(check.holds(rows, value) for check in self.checks))


@dataclass(frozen=True)
class Verdict:
    """Whether each check of a claim holds (None: not run)."""

    holds: tuple[bool | None, ...]

    @property
    def word(self) -> Word:
        """All that were run hold: agrees; some: partly; none: differs."""
        run = [held for held in self.holds if held is not None]
        if not self.holds:
            return "reported"
        if not run:
            return "not run"
        if all(run):
            # A claim of which a part was not run is not reproduced.
            return "agrees" if len(run) == len(self.holds) else "partly"
        return "partly" if any(run) else "differs"


def claims(table: object, values: Mapping[str, Iterable[str]], where: str) -> tuple[Claim, ...]:
    """The claims of a recipe's ``[paper]`` table (None: there are none).

    ``values`` are the labels of every axis. Raises ConfigError for a label that the grid does not have.
    """
    if table is None:
        return ()
    if not isinstance(table, Mapping) or not isinstance(table.get("claims"), list) or not table["claims"]:
        raise ConfigError(f"{where}: needs at least one [[paper.claims]]")
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where}: no key {key!r}; {nearest(key, _KEYS)}")
    found = tuple(claim(entry, f"{where}.claims[{i}]") for i, entry in enumerate(table["claims"]))
    axes = {axis: set(map(str, known)) for axis, known in values.items() if axis != SEED}
    for i, one in enumerate(found):
        for labels in _all_labels(one):
            for axis, name in labels.items():
                if axis not in axes:
                    raise ConfigError(f"{where}.claims[{i}]: the grid has no axis {axis!r}; {nearest(axis, axes)}")
                if name not in axes[axis]:
                    raise ConfigError(f"{where}.claims[{i}]: {axis} has no value {name!r}; {nearest(name, axes[axis])}")
        for check in one.checks:
            if check.along is not None and check.along not in axes:
                raise ConfigError(
                    f"{where}.claims[{i}]: the grid has no axis {check.along!r}; {nearest(check.along, axes)}"
                )
    return found


def claim(entry: Mapping[str, Any], where: str) -> Claim:
    """One claim from its table."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: a claim is a table, got {entry!r}")
    for key, kind in _KINDS.items():
        if not isinstance(entry.get(key, kind()), kind):
            raise ConfigError(f"{where}: {key} must be a {kind.__name__}, got {entry[key]!r}")
    for key in ("published", "checks"):
        for i, part in enumerate(entry.get(key, ())):
            if not isinstance(part, Mapping):
                raise ConfigError(f"{where}.{key}[{i}]: must be a table, got {part!r}")
    known = [spec.name for spec in fields(Claim)]
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}: a claim has no key {key!r}; {nearest(key, known)}")
    for key in ("of", "says"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ConfigError(f"{where}: the key {key!r} is missing")
    published = tuple(Published.of(t, f"{where}.published[{i}]") for i, t in enumerate(entry.get("published", ())))
    checks = tuple(Check.of(t, f"{where}.checks[{i}]") for i, t in enumerate(entry.get("checks", ())))
    used = [*(m for p in published for m in p.numbers), *(check.metric for check in checks)]
    metrics = tuple(entry.get("metrics", ())) or tuple(dict.fromkeys(used))
    for metric in metrics:
        if metric not in METRICS:
            raise ConfigError(f"{where}: no metric {metric!r}; {nearest(str(metric), METRICS)}")
    return Claim(
        entry["of"],
        entry["says"],
        entry.get("regime", ""),
        metrics,
        _labels(entry.get("where", {}), where),
        published,
        checks,
        dict(entry.get("why", {})),
    )


def _labels(table: object, where: str) -> Labels:
    if not isinstance(table, Mapping):
        raise ConfigError(f'{where}: at gives labels of the grid, e.g. {{ defence = "clipping" }}, got {table!r}')
    return {axis: str(name) for axis, name in table.items()}


def _all_labels(one: Claim) -> Iterable[Labels]:
    yield one.where
    yield from (numbers.at for numbers in one.published)
    for check in one.checks:
        yield check.at
        yield check.than or {}


def _matching(rows: Iterable[Labels], at: Labels) -> list[Labels]:
    return [row for row in rows if all(row.get(axis) == name for axis, name in at.items())]


def _name(at: Labels) -> str:
    return f"[{', '.join(at.values())}]" if at else "every row"
