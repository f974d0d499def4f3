"""A list of honest sets with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior, likeliest
from bezoar.priors.checks import check_clients, check_law
from bezoar.priors.family import Family, Floats, Masks, merged


@dataclass(frozen=True)
class Explicit(HonestPrior):
    r"""The bad clients are those of ``bad[k]`` (ids, perhaps none) with probability ``p[k]``, of ``clients`` in all.

    >>> Explicit(3, bad=((), (0, 1)), p=(0.75, 0.25)).weights().round(6).tolist()
    [0.25, 0.25, 0.5]
    """

    clients: int
    bad: tuple[tuple[int, ...], ...]
    p: tuple[float, ...]

    def __post_init__(self) -> None:
        check_clients("explicit", self.clients)
        if len(self.bad) != len(self.p) or not self.bad:
            raise ConfigError(f"explicit: needs one probability a set, got {len(self.bad)} sets and {len(self.p)} p")
        check_law("explicit", self.p)
        for ids in self.bad:
            wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < self.clients]
            if wrong or len(set(ids)) < len(ids):
                raise ConfigError(f"explicit: bad must be different ids from 0 to {self.clients - 1}, got {list(ids)}")
        if len({frozenset(ids) for ids in self.bad}) < len(self.bad):
            raise ConfigError("explicit: a set of bad clients is given twice: add their probabilities up")

    @property
    def n(self) -> int:
        return self.clients

    def of(self, n: int) -> Self:
        if self.clients != n:
            raise ConfigError(f"explicit: this prior is about {self.clients} clients, not about {n}")
        return self

    def _sets(self) -> Masks:
        honest = np.ones((len(self.bad), self.clients), dtype=np.bool_)
        for row, ids in zip(honest, self.bad, strict=True):
            row[list(ids)] = False
        return honest

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        p = np.asarray(self.p)
        drawn: Masks = self._sets()[rng.choice(len(p), size=times, p=p / p.sum())]
        return drawn

    def _log_mass(self, honest: Masks) -> Floats:
        known = {row.tobytes(): p for row, p in zip(self._sets(), self.p, strict=True)}
        found = np.array([known.get(row.tobytes(), 0.0) for row in np.ascontiguousarray(honest)], dtype=np.float64)
        with np.errstate(divide="ignore"):
            # The given probabilities may miss one by rounding.
            return np.asarray(np.log(found) - np.log(sum(self.p)), dtype=np.float64)

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        bad = ~self._sets()[:, list(clients)].any(1)
        with np.errstate(divide="ignore"):
            return float(np.log(np.asarray(self.p)[bad].sum()) - np.log(sum(self.p)))

    def support(self, delta: float = 0.0) -> Family:
        honest = self._sets()
        log_prob = np.asarray(self.log_prob(honest))
        possible = log_prob > -np.inf
        if not possible.any():
            raise ConfigError("explicit: nobody is honest in any set that has a probability")
        return likeliest(merged(honest[possible], log_prob[possible]), delta)
