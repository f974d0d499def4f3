"""Who may be malicious in an experiment: the table [prior], labels that come from the data, and who is told what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from bezoar.aggregation import SIP, Part
from bezoar.data import Federation
from bezoar.data.dataset import Indices
from bezoar.errors import ConfigError, nearest
from bezoar.priors import PRIORS, HonestPrior
from bezoar.priors.family import Family, Floats, Masks
from bezoar.priors.graphs import added_up, edges_of_metadata
from bezoar.seeding import numpy_generator

#: Key of a prior's table that holds one label per client, or the name of a column that says them.
LABELS = "labels"

#: Key of an Ising prior's table that holds columns, each with the coupling of clients that share a value in it.
METADATA = "metadata"

_P = TypeVar("_P", bound=Part)


@dataclass(frozen=True)
class FromData:
    """A prior that needs columns of the data set, until the federation is known.

    ``labels = "hospital"`` names the groups by a column; ``metadata = {hospital = 0.5}`` couples clients of an Ising
    prior that share a value.
    """

    table: Mapping[str, Any]

    def __post_init__(self) -> None:
        for part in _parts(self.table):
            known = [spec.name for spec in dataclasses.fields(PRIORS[part["kind"]]) if spec.init]
            known += [METADATA] if "edges" in known else []
            for key in part:
                if key not in ("kind", *known):
                    raise ConfigError(f"prior {part['kind']!r} has no parameter {key!r}; {nearest(key, known)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(dict.fromkeys(_columns(self.table)))

    def within(self, federation: Federation) -> HonestPrior:
        """The prior about the clients of ``federation``.

        Raises:
            ConfigError: there is no such column, or a client has samples with two labels in it.
        """
        found = {column: client_labels(federation, column) for column in self.columns}
        return PRIORS.build(_replaced(self.table, found))


def read_prior(table: Any) -> HonestPrior | FromData | None:
    """A prior from its table; labels that are the name of a column wait for the data."""
    if table is None or isinstance(table, FromData):
        return table
    if isinstance(table, Mapping) and isinstance(table.get("kind"), str) and any(_columns(table)):
        return FromData(dict(table))
    return PRIORS.build(table)


def prior_table(prior: HonestPrior | FromData | None) -> dict[str, Any] | None:
    """The table that describes ``prior``."""
    if isinstance(prior, FromData):
        return dict(prior.table)
    return None if prior is None else PRIORS.table(prior)


def client_labels(federation: Federation, column: str) -> list[int]:
    """The label of every client in a natural column of the data set [n].

    Raises:
        ConfigError: there is no such column, or a client has samples with two labels in it.
    """
    dataset = federation.dataset
    if column not in dataset.natural:
        known = nearest(column, dataset.natural) if dataset.natural else "it has no natural columns"
        raise ConfigError(f"labels: {dataset.name} has no column {column!r}; {known}, or list one label per client")
    values = np.asarray(dataset.natural[column])
    labels = []
    for client in range(federation.n):
        own = np.unique(values[federation.client(client)])
        if len(own) != 1:
            what = f"of {len(own)} labels: {', '.join(map(str, own[:4]))}" if len(own) else "none"
            raise ConfigError(
                f"labels: client {client} has samples {what}{' ...' if len(own) > 4 else ''} in the column {column!r}; "
                f"divide the data by that column or a finer one (data.partition), or list one label per client"
            )
        labels.append(int(own[0]))
    return labels


def about(prior: HonestPrior | FromData, federation: Federation) -> HonestPrior:
    """``prior`` about the clients of ``federation``. Raises ConfigError if it is about others."""
    resolved = prior.within(federation) if isinstance(prior, FromData) else prior
    return resolved.of(federation.n)


def drawn(prior: HonestPrior, n: int, seed: int, *, somebody: bool) -> Indices:
    """The ids of the clients that are malicious in an experiment with that seed, ascending.

    With ``somebody``, draws in which nobody is honest are drawn again.
    """
    rng = numpy_generator(seed, "honest set")
    for _ in range(1000):
        honest = prior.draw(n, rng)
        if honest.any() or not somebody:
            return np.flatnonzero(~honest).astype(np.int64)
    raise ConfigError("hardly any draw has an honest client: there is nothing to be learnt under this prior")


def told(rule: _P, prior: HonestPrior | None, n: int, sybils: int = 0) -> _P:
    """``rule`` for n clients, with ``prior`` where it has none of its own; ids beyond the prior's are known to be bad.

    Raises:
        ConfigError: a part wants a prior, and there is none; or two of its candidate sets are disjoint.
    """
    if prior is not None:
        rule = rule.given(Strangers(prior, sybils) if sybils else prior)
    for part in _all_parts(rule):
        if isinstance(part, SIP) and part.prior is not None:
            part.family(n + sybils).rho()
        if any(spec.name == "prior" and getattr(part, spec.name) is None for spec in dataclasses.fields(part)):
            raise ConfigError(
                f"{part.name} needs a probability over honest sets: write a table [prior] in the experiment, which all "
                f'rules are told, or give the rule its own: prior = {{kind = "independent", p = 0.1}}'
            )
    return rule


@dataclass(frozen=True)
class Strangers(HonestPrior):
    """``prior``, and ``more`` clients with higher ids of whom it says nothing: nobody vouches for them."""

    prior: HonestPrior
    more: int

    @property
    def n(self) -> int | None:
        return None if self.prior.n is None else self.prior.n + self.more

    def of(self, n: int) -> Self:
        if self.n == n:
            return self
        return dataclasses.replace(self, prior=self.prior.of(n - self.more))

    def _wider(self, honest: Masks) -> Masks:
        return np.pad(honest, ((0, 0), (0, self.more)))

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        return self._wider(self.prior._draw(times, rng))

    def _log_mass(self, honest: Masks) -> Floats:
        known = self._clients() - self.more
        found = np.asarray(self.prior._log_mass(np.ascontiguousarray(honest[:, :known])))
        return np.where(honest[:, known:].any(1), -np.inf, found)

    def weights(self) -> Floats:
        return np.pad(self.prior.weights(), (0, self.more))

    def bad_count(self) -> Floats:
        return np.pad(self.prior.bad_count(), (self.more, 0))

    def support(self, delta: float = 0.0) -> Family:
        family = self.prior.support(delta)
        return Family(self._wider(family.honest), family.log_prob)


def _all_parts(part: Part) -> Iterator[Part]:
    yield part
    for spec in dataclasses.fields(part):
        value = getattr(part, spec.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Part):
                yield from _all_parts(inner)


def _parts(table: Any) -> Iterator[Mapping[str, Any]]:
    """All tables of priors within ``table``, itself first."""
    if isinstance(table, Mapping):
        if isinstance(table.get("kind"), str):
            yield table
        for value in table.values():
            yield from _parts(value)
    elif isinstance(table, list | tuple):
        for value in table:
            yield from _parts(value)


def _columns(table: Any) -> Iterator[str]:
    """The names of columns that stand where labels or couplings may stand."""
    for part in _parts(table):
        if isinstance(part.get(LABELS), str):
            yield part[LABELS]
        if isinstance(part.get(METADATA), Mapping):
            yield from part[METADATA]


def _replaced(table: Any, found: Mapping[str, list[int]]) -> Any:
    """``table`` with labels in place of a column's name, and edges in place of metadata."""
    if isinstance(table, list | tuple):
        return [_replaced(value, found) for value in table]
    if not isinstance(table, Mapping):
        return table
    out = {key: _replaced(value, found) for key, value in table.items() if key not in (LABELS, METADATA)}
    if LABELS in table:
        labels = table[LABELS]
        out[LABELS] = found[labels] if isinstance(labels, str) else labels
    if METADATA in table:
        try:
            shared = edges_of_metadata(found, table[METADATA])
            out["edges"] = added_up([*out.get("edges", ()), *shared])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"ising: metadata = {{column = coupling, ...}}: {error}") from None
    return out
