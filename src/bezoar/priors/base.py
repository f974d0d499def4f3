"""What a prior over honest sets is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.family import Family, Floats, Masks, merged
from bezoar.seeding import numpy_generator

#: All 2^n sets are enumerated up to this number of clients.
ENUMERABLE = 22


@dataclass(frozen=True)
class HonestPrior(ABC):
    """A probability over which clients are honest. Nobody honest is not an outcome: everything is given S not empty.

    A prior that is about no certain number of clients (``n`` is None: "every client is bad with probability 0.1") can
    be drawn from; for the rest say the number first, ``prior.of(n)``.
    """

    @property
    @abstractmethod
    def n(self) -> int | None:
        """Number of clients, None while it is open."""

    @abstractmethod
    def of(self, n: int) -> Self:
        """This prior about n clients. Raises ConfigError if it is about another number."""

    @abstractmethod
    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        """Draws in which nobody may be honest: bool [times, n]."""

    @abstractmethod
    def _log_mass(self, honest: Masks) -> Floats:
        """Log probability of every set in ``honest`` [K, n], the empty set being an outcome like others: [K]."""

    def draw(self, n: int, rng: np.random.Generator) -> Masks:
        """Who of n clients is honest in one draw, nobody perhaps: bool [n].

        Raises ConfigError if the prior is about another number of clients.
        """
        drawn: Masks = self.of(n)._draw(1, rng)[0]
        return drawn

    def sample(self, n_draws: int, seed: int) -> Masks:
        """Honest sets, none of them empty: bool [n_draws, n].

        Raises:
            ConfigError: (almost) every set is empty.
        """
        self._clients()
        rng = numpy_generator(seed, "honest sets")
        found = self._draw(n_draws, rng)
        for _ in range(1000):
            empty = ~found.any(1)
            if not empty.any():
                return found
            found[empty] = self._draw(int(empty.sum()), rng)
        raise ConfigError("hardly any draw has an honest client: there is nothing to be learnt under this prior")

    def log_prob(self, honest: Any) -> Any:
        """Log of the probability of the set(s) ``honest``, bool [n] or [K, n]; minus infinity for an empty one."""
        sets = np.asarray(honest, dtype=np.bool_)
        n = self._clients()
        if sets.shape[-1:] != (n,) or sets.ndim > 2:
            raise ConfigError(f"log_prob needs bool [{n}] or [K, {n}], got shape {list(sets.shape)}")
        rows = np.atleast_2d(sets)
        found = np.where(rows.any(1), self._log_mass(rows) - self._log_some(), -np.inf)
        return found if sets.ndim == 2 else float(found[0])

    def _log_some(self) -> float:
        """Log of the probability that somebody is honest."""
        nobody = float(np.exp(self._log_mass(np.zeros((1, self._clients()), dtype=np.bool_)))[0])
        if nobody >= 1:
            raise ConfigError("nobody is honest with probability 1: there is nothing to be learnt under this prior")
        return float(np.log1p(-nobody))

    def weights(self) -> Floats:
        r"""w_i = E[1{i in S} / \|S\|] [n]: what client i weighs in the expected honest loss. They add up to one."""
        return self.support().weights()

    def bad_count(self) -> Floats:
        """The law of the number of bad clients: P(|B| = k) for k = 0..n, float64 [n + 1]; the last one is zero."""
        family = self.support()
        counts = np.bincount(family.n - family.sizes, np.exp(family.log_prob), family.n + 1)
        return np.asarray(counts / counts.sum())

    def support(self, delta: float = 0.0) -> Family:
        """The smallest family that holds the honest set with probability >= 1 - delta, the likeliest set first.

        Raises:
            ConfigError: there are too many sets to enumerate them.
        """
        n = self._clients()
        if n > ENUMERABLE:
            raise ConfigError(f"{n} clients have too many sets to enumerate them: at most {ENUMERABLE} clients")
        codes = np.arange(1, 2**n, dtype=np.int64)
        family = merged((codes[:, None] >> np.arange(n) & 1).astype(np.bool_), np.zeros(len(codes)))
        log_prob = np.asarray(self.log_prob(family.honest))
        order = np.argsort(-log_prob, kind="stable")
        possible = order[log_prob[order] > -np.inf]
        return likeliest(Family(family.honest[possible], log_prob[possible]), delta)

    def _clients(self) -> int:
        if self.n is None:
            raise ConfigError(f"{type(self).__name__}: of how many clients? Say it with prior.of(n)")
        return self.n


def likeliest(family: Family, delta: float) -> Family:
    """The fewest sets of ``family``, whose likeliest come first, that lose at most ``delta`` of its mass."""
    check_probability("support", "delta", delta)
    mass = np.cumsum(np.exp(family.log_prob))
    # Rounding must not cost the last set.
    count = int(np.searchsorted(mass, (1 - delta) * mass[-1] * (1 - 1e-12))) + 1 if delta else len(family)
    return Family(family.honest[:count], family.log_prob[:count])


def check_probability(owner: str, name: str, value: float) -> None:
    """Raise unless 0 <= value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{owner}: {name} must be a number from 0 to 1, got {value!r}")


def each(value: float | tuple[float, ...], n: int) -> NDArray[np.float64]:
    """One number for each of n, from one for all or a list."""
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (n,))
