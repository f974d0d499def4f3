"""Clients that fall together: one operator, one site, one software version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import ENUMERABLE, HonestPrior
from bezoar.priors.blocks import Block
from bezoar.priors.checks import check_probability, each, ids_within
from bezoar.priors.family import Family, Floats, Masks


@dataclass(frozen=True)
class Groups(HonestPrior):
    r"""Group g of ``sizes[g]`` consecutive clients is bad with probability ``p``, or ``p[g]``, whatever the others are.

    Instead of ``sizes``, ``labels`` names every client's group; groups are numbered as they first appear. In a bad
    group every client is malicious with probability ``within``, or ``within[g]``. Weights: O(n groups), exact.

    >>> Groups((2, 1), p=0.5).weights().round(6).tolist()
    [0.277778, 0.277778, 0.444444]
    >>> Groups(labels=("north", "south", "north"), p=0.5).weights().round(6).tolist()
    [0.277778, 0.444444, 0.277778]
    """

    sizes: tuple[int, ...] | None = None
    p: float | tuple[float, ...] | None = None
    within: float | tuple[float, ...] = 1.0
    labels: tuple[str | int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.sizes is None) == (self.labels is None):
            raise ConfigError("groups: needs either sizes (of consecutive clients) or labels (one a client)")
        if self.sizes is not None:
            wrong = [m for m in self.sizes if isinstance(m, bool) or not isinstance(m, int) or m < 1]
            if not self.sizes or wrong:
                raise ConfigError(f"groups: sizes must be numbers of clients >= 1, got {self.sizes}")
        if self.labels == ():
            raise ConfigError("groups: labels must name the group of at least one client")
        if self.p is None:
            raise ConfigError("groups: needs p, the probability that a group is bad")
        count = len(self._counts)
        for name, given in (("p", self.p), ("within", self.within)):
            if isinstance(given, tuple) and len(given) != count:
                raise ConfigError(f"groups: {name} has {len(given)} probabilities for {count} groups")
            for value in given if isinstance(given, tuple) else (given,):
                check_probability("groups", name, value)

    @cached_property
    def _member(self) -> NDArray[np.int64]:
        """The number of every client's group [n]."""
        if self.sizes is not None:
            return np.repeat(np.arange(len(self.sizes)), self.sizes)
        number = {label: g for g, label in enumerate(dict.fromkeys(self.labels or ()))}
        return np.array([number[label] for label in self.labels or ()], dtype=np.int64)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.bincount(self._member)

    def _rates(self) -> tuple[Floats, Floats]:
        """p and within of every group."""
        count = len(self._counts)
        return each(0.0 if self.p is None else self.p, count), each(self.within, count)

    @property
    def n(self) -> int:
        return len(self._member)

    def of(self, n: int) -> Self:
        if self.n != n:
            what = "sizes add up to" if self.labels is None else "labels are those of"
            raise ConfigError(f"groups: {what} {self.n}, but there are {n} clients")
        return self

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        p, within = self._rates()
        bad = (rng.random((times, len(p))) < p)[:, self._member]
        return np.asarray(~(bad & (rng.random((times, self.n)) < within[self._member])))

    def _log_mass(self, honest: Masks) -> Floats:
        p, within = self._rates()
        bad = (~honest).astype(np.float64) @ (self._member[:, None] == np.arange(len(p))).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A power of zero is one if there is nothing to multiply, as it should be.
            fallen = np.log(p) + _times(bad, np.log(within)) + _times(self._counts - bad, np.log1p(-within))
            stood = np.where(bad == 0, np.log1p(-p), -np.inf)
        return np.asarray(np.logaddexp(fallen, stood).sum(1))

    def _tilted(self, t: Floats) -> tuple[Floats, Floats] | None:
        p, within = self._rates()
        one = t[:, None] * (1 - within) + within
        # Over t ** size, which may underflow: ratios of powers that are at least one.
        with np.errstate(divide="ignore"):
            log_t = np.log(t)[:, None]
            stood = np.log1p(-p) + self._counts * log_t
            fallen = np.log(p) + self._counts * np.log(one)
            either = np.logaddexp(stood, fallen)
            share = np.logaddexp(stood, fallen + np.log(1 - within) + log_t - np.log(one)) - either
        return either.sum(1), np.exp(share)[:, self._member]

    def _blocks(self) -> list[Block] | None:
        p, within = self._rates()
        found = []
        for g, m in enumerate(self._counts.tolist()):
            columns = np.flatnonzero(self._member == g)
            if within[g] in (0, 1):
                chance = p[g] * within[g]
                options = np.repeat([[True], [False]], m, axis=1)
                log_prob = np.array([1 - chance, chance])
            elif m > ENUMERABLE:
                raise ConfigError(f"groups: a group of {m} with within = {within[g]:g} has too many sets to enumerate")
            else:
                options = np.arange(2**m)[:, None] >> np.arange(m - 1, -1, -1) & 1 == 1
                bad = m - options.sum(1)
                log_prob = p[g] * within[g] ** bad * (1 - within[g]) ** (m - bad) + np.where(bad == 0, 1 - p[g], 0)
            with np.errstate(divide="ignore"):
                found.append(Block.sorted(columns, options, np.log(log_prob)))
        return found

    def bad_count(self) -> Floats:
        self._log_some()
        p, within = self._rates()
        law = np.ones(1)
        for chance, rate, m in zip(p, within, self._counts.tolist(), strict=True):
            of_group = chance * _binomial(m, float(rate))
            of_group[0] += 1 - chance
            law = np.convolve(law, of_group)
        law[-1] = 0.0
        return np.asarray(law / law.sum())

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        p, within = self._rates()
        bad = np.bincount(self._member[list(clients)], minlength=len(p))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(bad > 0, np.log(p) + _times(bad, np.log(within)), 0.0).sum())

    def among(self, clients: Sequence[int]) -> HonestPrior:
        return self._part(self._member[ids_within("among", clients, self.n)])

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("given_bad", clients, self.n, some=False)
        if self._log_all_bad(ids) == -np.inf:
            raise ConfigError(f"groups: clients {ids} are not all bad with any probability")
        p, within = self._rates()
        p, count = np.array(p), len(p)
        # A group with a bad client is bad; the client itself becomes a group of its own that is bad for certain.
        p[self._member[ids]] = 1.0
        member = self._member.copy()
        member[ids] = np.arange(count, count + len(ids))
        sure = np.ones(len(ids))
        return self._part(member, np.concatenate([p, sure]), np.concatenate([within, sure]))

    def _part(self, member: NDArray[np.int64], p: Floats | None = None, within: Floats | None = None) -> Groups:
        own_p, own_within = self._rates()
        p, within = own_p if p is None else p, own_within if within is None else within
        first = list(dict.fromkeys(member.tolist()))
        return Groups(labels=tuple(member.tolist()), p=tuple(p[first].tolist()), within=tuple(within[first].tolist()))

    def support(self, delta: float = 0.0) -> Family:
        self._log_some()
        return super().support(delta)


def _times(count: NDArray[np.float64] | NDArray[np.int64], log: Floats) -> Floats:
    """count * log where 0 * -inf is 0."""
    return np.where(count == 0, 0.0, count * log)


def _binomial(m: int, rate: float) -> Floats:
    law = np.ones(1)
    for _ in range(m):
        law = np.convolve(law, [1 - rate, rate])
    return law
