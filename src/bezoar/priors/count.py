"""Only how many are bad is known: all sets of one size are equally likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import ENUMERABLE, HonestPrior, likeliest
from bezoar.priors.checks import check_clients, check_law, check_probability, ids_within
from bezoar.priors.family import Family, Floats, Masks
from bezoar.priors.known_bad import KnownBad


class _Exchangeable(HonestPrior):
    """A law of the number of bad clients, and then everybody alike: the weights are 1/n."""

    def _law(self) -> Floats:
        """P(|B| = k), k = 0..n; all may be bad."""
        raise NotImplementedError

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        n, law = self._clients(), self._law()
        bad = rng.choice(n + 1, size=times, p=law / law.sum())
        place = rng.random((times, n)).argsort(1).argsort(1)
        return np.asarray(place >= bad[:, None])

    def _log_mass(self, honest: Masks) -> Floats:
        n = self._clients()
        with np.errstate(divide="ignore"):
            each_set = np.log(self._law()) - log_binomial(n, np.arange(n + 1))
        return np.asarray(each_set[(~honest).sum(1)])

    def weights(self) -> Floats:
        self._log_some()
        return np.full(self._clients(), 1 / self._clients())

    def bad_count(self) -> Floats:
        self._log_some()
        law = self._law().copy()
        law[-1] = 0.0
        return np.asarray(law / law.sum())

    def support(self, delta: float = 0.0) -> Family:
        check_probability("support", "delta", delta)
        n, law = self._clients(), self.bad_count()
        sets = [math.comb(n, k) for k in range(n + 1)]
        chances = [math.log(law[k]) - math.log(sets[k]) if law[k] > 0 else -math.inf for k in range(n + 1)]
        order = sorted((k for k in range(n + 1) if law[k] > 0), key=lambda k: (-round(chances[k], 10), k))
        wanted, mass, needed = (1 - delta) * (1 - 1e-12), 0.0, 0
        taken: list[tuple[int, int]] = []
        for k in order:
            missing = wanted - mass
            fewest = sets[k] if delta == 0 or missing >= law[k] else max(1, math.ceil(missing / law[k] * sets[k]))
            taken.append((k, min(fewest, sets[k])))
            needed, mass = needed + taken[-1][1], mass + law[k]
            if delta and mass >= wanted:
                break
        if needed > 2**ENUMERABLE or needed * n > 2**30:
            raise ConfigError(f"{needed:.3g} sets are needed for a probability of {1 - delta:.6g}: too many")
        honest = np.ones((needed, n), dtype=np.bool_)
        row = 0
        for k, number in taken:
            for _, bad in zip(range(number), combinations(range(n), k), strict=False):
                honest[row, list(bad)] = False
                row += 1
        return likeliest(Family(honest, np.concatenate([np.full(many, chances[k]) for k, many in taken])), 0.0)

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        n, d = self._clients(), len(clients)
        k = np.arange(d, n + 1)
        with np.errstate(divide="ignore"):
            return float(np.log((self._law()[d:] * np.exp(log_binomial(n - d, k - d) - log_binomial(n, k))).sum()))

    def among(self, clients: Sequence[int]) -> HonestPrior:
        n, c = self._clients(), len(ids_within("among", clients, self._clients()))
        law = np.zeros(c + 1)
        for k, chance in enumerate(self._law()):
            if chance > 0:
                b = np.arange(max(0, k - (n - c)), min(c, k) + 1)
                law[b] += chance * np.exp(
                    log_binomial(c, b) + log_binomial(n - c, k - b) - log_binomial(n, np.asarray(k))
                )
        return Count(tuple((law / law.sum()).tolist()), c)

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        n = self._clients()
        ids = ids_within("given_bad", clients, n, some=False)
        d = len(ids)
        k = np.arange(d, n + 1)
        law = self._law()[d:] * np.exp(log_binomial(n - d, k - d) - log_binomial(n, k))
        if not law[:-1].sum() > 0:
            raise ConfigError(f"clients {ids} are not all bad, while another is honest, with any probability")
        rest = Count(tuple((law / law.sum()).tolist()), n - d)
        return KnownBad(rest, tuple(ids)) if ids else rest


@dataclass(frozen=True)
class Count(_Exchangeable):
    r"""k clients are bad with probability ``p[k]``, any k of them equally likely.

    Weights: 1/n.

    >>> Count((0.5, 0.25, 0.25), clients=4).bad_count().tolist()
    [0.5, 0.25, 0.25, 0.0, 0.0]
    """

    p: tuple[float, ...]
    clients: int | None = None

    def __post_init__(self) -> None:
        check_law("count", self.p)
        check_clients("count", self.clients)
        if self.clients is not None:
            self._fits(self.clients)

    def _fits(self, n: int) -> None:
        if any(self.p[n + 1 :]):
            raise ConfigError(f"count: p is about up to {len(self.p) - 1} bad clients, but there are {n}")

    @property
    def n(self) -> int | None:
        return self.clients

    def of(self, n: int) -> Self:
        if self.clients not in (None, n):
            raise ConfigError(f"count: this prior is about {self.clients} clients, not about {n}")
        return self if self.clients == n else replace(self, clients=n)

    def _law(self) -> Floats:
        law = np.zeros(self._clients() + 1)
        given = np.asarray(self.p[: len(law)])
        law[: len(given)] = given
        return law


@dataclass(frozen=True)
class Subsets(_Exchangeable):
    r"""Exactly ``f`` clients are bad, any f of them equally likely.

    Weights: 1/n.

    >>> Subsets(f=1, clients=3).weights().round(6).tolist()
    [0.333333, 0.333333, 0.333333]
    """

    f: int
    clients: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.f, bool) or not isinstance(self.f, int) or self.f < 0:
            raise ConfigError(f"subsets: f must be a whole number >= 0, got {self.f!r}")
        check_clients("subsets", self.clients)
        if self.clients is not None and self.f >= self.clients:
            raise ConfigError(f"subsets: f must be less than the {self.clients} clients, got {self.f}")

    @property
    def n(self) -> int | None:
        return self.clients

    def of(self, n: int) -> Self:
        if self.clients not in (None, n):
            raise ConfigError(f"subsets: this prior is about {self.clients} clients, not about {n}")
        return self if self.clients == n else replace(self, clients=n)

    def _law(self) -> Floats:
        law = np.zeros(self._clients() + 1)
        law[self.f] = 1.0
        return law


def log_binomial(n: int, k: NDArray[np.int64]) -> Floats:
    """Log of n over k."""
    from scipy.special import gammaln

    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
