"""Some clients are known to be bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior
from bezoar.priors.checks import ids_within
from bezoar.priors.family import Family, Floats, Masks
from bezoar.registry import holds


def build(table: Any) -> HonestPrior:
    """A prior that is part of another, from its table."""
    from bezoar.priors import PRIORS

    return PRIORS.build(table)


def table(prior: HonestPrior) -> dict[str, Any]:
    """The table of a prior that is part of another."""
    from bezoar.priors import PRIORS

    return PRIORS.table(prior)


@dataclass(frozen=True)
class KnownBad(HonestPrior):
    """The clients ``bad`` (ids) are bad for certain; ``rest`` is about the others, in the order of their ids."""

    rest: HonestPrior = holds(build, table)  # noqa: RUF009
    bad: tuple[int, ...]  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.rest.n is None:
            raise ConfigError("known-bad: rest must say of how many clients it is, e.g. clients = 5")
        ids_within("known-bad", self.bad, self.n, some=False)

    @property
    def n(self) -> int:
        return (self.rest.n or 0) + len(self.bad)

    def of(self, n: int) -> Self:
        if n != self.n:
            raise ConfigError(f"known-bad: this prior is about {self.n} clients, not about {n}")
        return self

    def _others(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.setdiff1d(np.arange(self.n), self.bad)

    def _wide(self, honest: Masks) -> Masks:
        wide = np.zeros((len(honest), self.n), dtype=np.bool_)
        wide[:, self._others()] = honest
        return wide

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        return self._wide(self.rest._draw(times, rng))

    def _log_mass(self, honest: Masks) -> Floats:
        possible = ~honest[:, list(self.bad)].any(1)
        return np.where(possible, self.rest._log_mass(honest[:, self._others()]), -np.inf)

    def _log_weight(self, honest: Masks) -> Floats:
        possible = ~honest[:, list(self.bad)].any(1)
        return np.where(possible, self.rest._log_weight(honest[:, self._others()]), -np.inf)

    def _log_some(self) -> float:
        return self.rest._log_some()

    def weights(self) -> Floats:
        found = np.zeros(self.n)
        found[self._others()] = self.rest.weights()
        return found

    def bad_count(self) -> Floats:
        found = np.zeros(self.n + 1)
        found[len(self.bad) :] = self.rest.bad_count()
        return found

    def support(self, delta: float = 0.0) -> Family:
        family = self.rest.support(delta)
        return Family(self._wide(family.honest), family.log_prob)

    def _split(self, clients: Sequence[int]) -> list[int]:
        """Places within ``rest`` of those of ``clients`` that are not known to be bad."""
        place = {int(i): j for j, i in enumerate(self._others())}
        return [place[i] for i in clients if i in place]

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        others = self._split(clients)
        return self.rest._log_all_bad(others) if others else 0.0

    def among(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("among", clients, self.n)
        others = self._split(ids)
        if not others:
            raise ConfigError(f"among: all of the clients {ids} are known to be bad")
        inner, bad = self.rest.among(others), tuple(j for j, i in enumerate(ids) if i in self.bad)
        return KnownBad(inner, bad) if bad else inner

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("given_bad", clients, self.n, some=False)
        others = self._split(ids)
        if not others:
            return self
        known = self.rest.given_bad(others)
        kept = np.setdiff1d(np.arange(self.n - len(self.bad)), others)
        return KnownBad(known.among(kept.tolist()), tuple(sorted({*self.bad, *ids})))
