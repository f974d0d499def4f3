"""Families of sets that may be the honest ones, and what their overlaps allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.overlaps import intersecting, least_overlaps, rho_of

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Family:
    """Candidate honest sets: K different non-empty ones of n clients, with their probabilities where there are any.

    Attributes:
        honest: who is honest in each set, bool [K, n].
        log_prob: log of each set's probability [K] float64; they need not add up to one.
    """

    honest: Masks
    log_prob: Floats

    def __post_init__(self) -> None:
        if self.honest.ndim != 2 or self.honest.dtype != np.bool_ or not len(self.honest):
            raise ConfigError(f"a family needs candidate sets, bool [K, n] with K >= 1, got {self.honest.shape}")
        if self.log_prob.shape != (len(self.honest),):
            raise ConfigError(f"a family of {len(self.honest)} sets needs as many log_prob, got {self.log_prob.shape}")
        empty = ~self.honest.any(1)
        if empty.any():
            raise ConfigError(f"candidate set {int(empty.argmax())} is empty: then there is nothing to be learnt")

    @classmethod
    def uniform(cls, honest: Masks) -> Family:
        """The sets ``honest`` [K, n], all equally likely."""
        return cls(honest, np.full(len(honest), -np.log(max(1, len(honest)))))

    def __len__(self) -> int:
        return len(self.honest)

    @property
    def n(self) -> int:
        """Number of clients."""
        return int(self.honest.shape[1])

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many clients are honest in each set [K]."""
        counts: NDArray[np.int64] = self.honest.sum(1, dtype=np.int64)
        return counts

    @property
    def mass(self) -> float:
        """Probability that one of the sets is the honest one."""
        return float(np.exp(self.log_prob).sum())

    def weights(self) -> Floats:
        r"""E[1{i in S} / \|S\|] [n], given that S is one of the sets."""
        p = np.exp(self.log_prob - self.log_prob.max())
        shares: Floats = (p / p.sum() / self.sizes) @ self.honest
        return shares

    @cached_property
    def overlaps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        r"""The fewest clients that each set shares with any other, or with itself, and with which one: [K], [K]."""
        return least_overlaps(self.honest)

    def rho(self) -> Floats:
        r"""What the family costs any rule: :math:`\rho_S = \max_T |S \setminus T| / |S \cap T|` [K].

        For every S of the family, no rule that is robust for all of it errs by less than rho_S times the variance of S
        in the worst case, and :class:`bezoar.aggregation.SIP` errs by no more (docs/sip.md). ``overlaps[1]`` tells
        which T attains it.

        Raises:
            ConfigError: two sets are disjoint, so that no rule can serve both.

        >>> Family.uniform(np.array([[True] * 5, [True] * 4 + [False]])).rho().tolist()
        [0.25, 0.0]
        """
        return rho_of(self)

    def intersecting(self) -> Family:
        """The family without sets that can not be served beside likelier ones: of disjoint sets the likeliest remain.

        >>> Family(np.eye(2, dtype=bool), np.log([0.1, 0.9])).intersecting().honest.tolist()
        [[False, True]]
        """
        if self.overlaps[0].all():
            return self
        kept = intersecting(self)
        return Family(self.honest[kept], self.log_prob[kept])

    def bad_count(self) -> Floats:
        """P(|B| = k) for k = 0..n [n + 1], given that one of the sets is the honest one."""
        p = np.exp(self.log_prob - self.log_prob.max())
        counts = np.bincount(self.n - self.sizes, p, self.n + 1)
        return np.asarray(counts / counts.sum())

    def select(self, clients: Sequence[int] | NDArray[np.int64]) -> Family:
        """The family of the sets' parts within ``clients`` (their ids, in the order of the new columns).

        Parts that become equal are one set with the sum of their probabilities; empty parts are left out.

        Raises:
            ConfigError: all parts are empty.
        """
        part = self.honest[:, np.asarray(clients, dtype=np.int64)]
        return merged(part, self.log_prob)

    def without(self, clients: Sequence[int] | NDArray[np.int64]) -> Family:
        """The sets that hold none of ``clients``: these are known to be bad.

        Raises:
            ConfigError: every set holds one of them.
        """
        possible = ~self.honest[:, np.asarray(clients, dtype=np.int64)].any(1)
        if not possible.any():
            raise ConfigError(f"every candidate set holds one of the clients {list(clients)}, which are bad")
        return Family(self.honest[possible], self.log_prob[possible])


def merged(honest: Masks, log_prob: Floats) -> Family:
    """A family of the different non-empty sets among ``honest`` [m, n], the likeliest first."""
    kept = honest.any(1)
    if not kept.any():
        raise ConfigError("all candidate sets are empty: then there is nothing to be learnt")
    honest, log_prob = honest[kept], log_prob[kept]
    packed = np.packbits(honest, axis=1)
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    total = np.full(len(first), -np.inf)
    np.logaddexp.at(total, which.reshape(-1), log_prob)
    order = np.argsort(-total, kind="stable")
    return Family(honest[first][order], total[order])
