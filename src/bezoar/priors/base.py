"""What a prior over honest sets is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.blocks import Block, likeliest_sets
from bezoar.priors.checks import check_probability, each, ids_within
from bezoar.priors.family import Family, Floats, Masks
from bezoar.priors.quadrature import gauss_legendre
from bezoar.seeding import numpy_generator

__all__ = ["ENUMERABLE", "Estimate", "HonestPrior", "check_probability", "each", "likeliest", "mean_of", "quantile_of"]

#: All 2^n sets are enumerated up to this number of clients.
ENUMERABLE = 22
#: Entries of the largest temporary array of :meth:`HonestPrior.weights`.
_ENTRIES = 2**21


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means over independent draws with 95 % intervals: value +- half_width, both [...] as what was averaged."""

    value: Floats
    half_width: Floats
    draws: int


def mean_of(values: Floats) -> Estimate:
    """The mean over the first axis, with 1.96 standard errors. Needs two draws."""
    if len(values) < 2:
        raise ConfigError(f"an estimate with an interval needs at least 2 draws, got {len(values)}")
    spread = values.std(0, ddof=1) / np.sqrt(len(values))
    return Estimate(np.asarray(values.mean(0)), np.asarray(1.96 * spread), len(values))


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

    def _log_weight(self, honest: Masks) -> Floats:
        """:meth:`_log_mass` up to a constant: there are priors that know no more."""
        return self._log_mass(honest)

    def _tilted(self, t: Floats) -> tuple[Floats, Floats] | None:
        r"""For every t [m]: log E[t^\|S\|] [m], and E[1{i in S} t^\|S\|] / E[t^\|S\|] [m, n], S perhaps empty.

        None: weights are taken from the enumerated family.
        """
        return None

    def _blocks(self) -> list[Block] | None:
        """The independent blocks of clients that the prior consists of, None if it does not."""
        return None

    def _possible(self, honest: Masks) -> NDArray[np.bool_]:
        """Which of the sets ``honest`` [K, n] that the blocks make up may occur: [K]."""
        return np.asarray(honest.any(1))

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        """Log probability that all of ``clients`` are bad, S perhaps empty."""
        family = self.support()
        bad = ~family.honest[:, list(clients)].any(1)
        with np.errstate(divide="ignore"):
            return float(np.log(np.exp(family.log_prob[bad]).sum()))

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
        if isinstance(n_draws, bool) or not isinstance(n_draws, int | np.integer) or n_draws < 1:
            raise ConfigError(f"sample: n_draws must be a whole number >= 1, got {n_draws!r}")
        self._clients()
        return self._draw_some(int(n_draws), numpy_generator(seed, "honest sets"))

    def _draw_some(self, times: int, rng: np.random.Generator) -> Masks:
        found = self._draw(times, rng)
        for _ in range(1000):
            empty = ~found.any(1)
            if not empty.any():
                return found
            found[empty] = self._draw(int(empty.sum()), rng)
        raise ConfigError("hardly any draw has an honest client: there is nothing to be learnt under this prior")

    def log_prob(self, honest: Any) -> Any:
        """Log of the probability of the set(s) ``honest``, bool [n] or [K, n]; minus infinity for an empty one."""
        sets = np.asarray(honest)
        n = self._clients()
        if sets.dtype != np.bool_ or sets.shape[-1:] != (n,) or sets.ndim > 2:
            raise ConfigError(f"log_prob needs bool [{n}] or [K, {n}], got {sets.dtype} {list(sets.shape)}")
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
        r"""w_i = E[1{i in S} / \|S\|] [n]: what client i weighs in the expected honest loss. They add up to one.

        Exact: 1/\|S\| is the integral of t^(\|S\|-1) over [0, 1], and Gauss-Legendre with n/2 nodes integrates the
        polynomial E[1{i in S} t^(\|S\|-1)] without error.
        """
        n = self._clients()
        t, nodes = gauss_legendre((n + 1) // 2)
        step = max(1, _ENTRIES // n)
        total, some = np.zeros(n), self._log_some()
        for at in range(0, len(t), step):
            part = slice(at, at + step)
            tilted = self._tilted(t[part])
            if tilted is None:
                return self.support().weights()
            log_z, honest = tilted
            total += (nodes[part] / t[part] * np.exp(log_z - some)) @ honest
        return total

    def bad_count(self) -> Floats:
        """The law of the number of bad clients: P(|B| = k) for k = 0..n, float64 [n + 1]; the last one is zero."""
        return self.support().bad_count()

    def f_quantile(self, delta: float) -> int:
        """The least f with P(|B| <= f) >= 1 - delta."""
        check_probability("f_quantile", "delta", delta)
        return quantile_of(self.bad_count(), delta)

    def breakdown_probability(self, f: int) -> float:
        """P(|B| > f): how likely more clients are bad than a rule was told."""
        if isinstance(f, bool) or not isinstance(f, int | np.integer) or f < 0:
            raise ConfigError(f"breakdown_probability: f must be a whole number >= 0, got {f!r}")
        return float(self.bad_count()[int(f) + 1 :].sum())

    def expected(self, phi: Callable[[Masks], Any], draws: int, seed: int) -> Estimate:
        """E[phi(S)] by independent draws, with its interval; ``phi`` maps bool [draws, n] to numbers [draws, ...]."""
        values = np.asarray(phi(self.sample(draws, seed)), dtype=np.float64)
        if values.shape[:1] != (draws,):
            raise ConfigError(f"expected: phi must give one value for each of {draws} sets, got shape {values.shape}")
        return mean_of(values)

    def estimated_weights(self, draws: int, seed: int) -> Estimate:
        """:meth:`weights` by independent draws, with 95 % intervals: for priors that have no exact ones."""
        return self.expected(lambda honest: honest / honest.sum(1, keepdims=True), draws, seed)

    def estimated_bad_count(self, draws: int, seed: int) -> Estimate:
        """:meth:`bad_count` by independent draws, with 95 % intervals."""
        n = self._clients()
        return self.expected(lambda honest: (~honest).sum(1)[:, None] == np.arange(n + 1), draws, seed)

    def support(self, delta: float = 0.0) -> Family:
        """The smallest family that holds the honest set with probability >= 1 - delta, the likeliest set first.

        Equally likely sets come in a fixed order.

        Raises:
            ConfigError: there are too many sets to enumerate them; it says how many, roughly, would be needed.
        """
        check_probability("support", "delta", delta)
        n = self._clients()
        blocks = self._blocks()
        if blocks is not None:
            return likeliest_sets(self, blocks, delta)
        if n > ENUMERABLE:
            raise ConfigError(f"{n} clients have too many sets to enumerate them: at most {ENUMERABLE} clients")
        honest = np.arange(1, 2**n, dtype=np.int64)[:, None] >> np.arange(n - 1, -1, -1) & 1 == 1
        return likeliest(ordered(honest, np.asarray(self.log_prob(honest))), delta)

    def among(self, clients: Sequence[int]) -> HonestPrior:
        """The law of the honest ones within ``clients`` (ids, e.g. a cohort; column j is ``clients[j]``).

        It is given that one of them is honest.

        Raises:
            ConfigError: no closed form, and too many sets to enumerate them.
        """
        return _explicit(self.support().select(ids_within("among", clients, self._clients())))

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        """The law of the honest set among all n once ``clients`` (ids) are known to be bad."""
        return _explicit(self.support().without(ids_within("given_bad", clients, self._clients(), some=False)))

    def _clients(self) -> int:
        if self.n is None:
            raise ConfigError(f"{type(self).__name__}: of how many clients? Say it with prior.of(n)")
        return self.n


def _explicit(family: Family) -> HonestPrior:
    from bezoar.priors.explicit import Explicit

    p = np.exp(family.log_prob - family.log_prob.max())
    bad = tuple(tuple(np.flatnonzero(~row).tolist()) for row in family.honest)
    return Explicit(family.n, bad, tuple((p / p.sum()).tolist()))


def ordered(honest: Masks, log_prob: Floats) -> Family:
    """The family of those of the different sets ``honest``, in lexicographic order, that can occur, likeliest first.

    Log probabilities that agree to ten digits count as equal, so that rounding does not decide on the order.
    """
    possible = np.flatnonzero(log_prob > -np.inf)
    if not len(possible):
        raise ConfigError("no honest set is possible: there is nothing to be learnt under this prior")
    order = possible[np.argsort(-np.round(log_prob[possible], 10), kind="stable")]
    return Family(honest[order], log_prob[order])


def quantile_of(law: Floats, delta: float) -> int:
    """The least k with P(k or fewer) >= 1 - delta, from the law of a count [n + 1]."""
    # Rounding must not cost one more.
    return int(np.searchsorted(np.cumsum(law), (1 - delta) * (1 - 1e-12)))


def likeliest(family: Family, delta: float) -> Family:
    """The fewest sets of ``family``, whose likeliest come first, that lose at most ``delta`` of its mass."""
    check_probability("support", "delta", delta)
    mass = np.cumsum(np.exp(family.log_prob))
    # Rounding must not cost the last set.
    count = int(np.searchsorted(mass, (1 - delta) * mass[-1] * (1 - 1e-12))) + 1 if delta else len(family)
    return Family(family.honest[:count], family.log_prob[:count])
