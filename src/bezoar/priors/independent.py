"""Every client is malicious on its own account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from bezoar.errors import ConfigError
from bezoar.priors.base import HonestPrior
from bezoar.priors.blocks import Block
from bezoar.priors.checks import check_clients, check_probability, each, ids_within
from bezoar.priors.family import Floats, Masks
from bezoar.priors.poisson import drawn_given_count, leave_one_out, poisson_binomial


@dataclass(frozen=True)
class Independent(HonestPrior):
    r"""Client i is malicious with probability ``p``, or ``p[i]``, whatever the others are.

    With ``at_most`` it is given that no more clients are; "minority" stands for fewer than half, ceil(n/2) - 1.
    Weights: Gauss-Legendre, O(n^2); with ``at_most`` = c, sums over \|B\| with each client left out, O(n c log n).

    >>> Independent((0.5, 0.5)).weights().tolist()
    [0.5, 0.5]
    """

    p: float | tuple[float, ...]
    clients: int | None = None
    at_most: int | Literal["minority"] | None = None

    def __post_init__(self) -> None:
        for value in self.p if isinstance(self.p, tuple) else (self.p,):
            check_probability("independent", "p", value)
        if self.p == ():
            raise ConfigError("independent: p must hold at least one probability")
        check_clients("independent", self.clients)
        most = self.at_most
        if (
            most is not None
            and most != "minority"
            and (isinstance(most, bool) or not isinstance(most, int) or most < 0)
        ):
            raise ConfigError(f'independent: at_most must be a whole number >= 0 or "minority", got {most!r}')
        if self.clients is not None:
            self.of(self.clients)

    @property
    def n(self) -> int | None:
        return len(self.p) if isinstance(self.p, tuple) else self.clients

    def of(self, n: int) -> Self:
        if isinstance(self.p, tuple) and len(self.p) != n:
            raise ConfigError(f"independent: p has {len(self.p)} probabilities for {n} clients")
        if self.clients not in (None, n):
            raise ConfigError(f"independent: this prior is about {self.clients} clients, not about {n}")
        return self if self.n == n else replace(self, clients=n)

    @property
    def _most(self) -> int | None:
        """The largest number of bad clients, None if it is n."""
        n = self._clients()
        most = (n + 1) // 2 - 1 if self.at_most == "minority" else self.at_most
        return None if most is None or most >= n else most

    def _law(self) -> Floats:
        r"""P(\|B\| = k) up to the largest number, not given anything."""
        law = poisson_binomial(each(self.p, self._clients()), self._most)
        if not law.sum() > 0:
            raise ConfigError(f"independent: more than {self._most} clients are bad for certain, at_most forbids it")
        return law

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        n = self._clients()
        p, most = each(self.p, n), self._most
        honest = np.asarray(rng.random((times, n)) >= p)
        if most is None:
            return honest
        # Again where too many are bad; where that is the usual case, from the law of the number.
        for _ in range(20):
            wrong = (~honest).sum(1) > most
            if not wrong.any():
                return honest
            honest[wrong] = rng.random((int(wrong.sum()), n)) >= p
        wrong = (~honest).sum(1) > most
        if wrong.any():
            law = self._law()
            honest[wrong] = drawn_given_count(p, rng.choice(len(law), size=int(wrong.sum()), p=law / law.sum()), rng)
        return honest

    def _log_mass(self, honest: Masks) -> Floats:
        p = each(self.p, honest.shape[1])
        with np.errstate(divide="ignore"):
            chances = np.where(honest, np.log1p(-p), np.log(p)).sum(1)
        if self._most is None:
            return np.asarray(chances)
        return np.where(self._possible(honest), chances - np.log(self._law().sum()), -np.inf)

    def _possible(self, honest: Masks) -> NDArray[np.bool_]:
        few = (~honest).sum(1) <= (honest.shape[1] if self._most is None else self._most)
        return np.asarray(few & honest.any(1))

    def _tilted(self, t: Floats) -> tuple[Floats, Floats] | None:
        p = each(self.p, self._clients())
        honest = np.multiply.outer(t, 1 - p)
        either = honest + p
        return np.log(either).sum(1), honest / either

    def _blocks(self) -> list[Block] | None:
        options = np.array([[True], [False]])
        with np.errstate(divide="ignore"):
            pairs = np.log(np.stack([1 - each(self.p, self._clients()), each(self.p, self._clients())], 1))
        return [Block.sorted(np.array([i]), options, pair) for i, pair in enumerate(pairs)]

    def weights(self) -> Floats:
        if self._most is None:
            return super().weights()
        p, n = each(self.p, self._clients()), self._clients()
        some = self._law().sum()
        return np.asarray((1 - p) * (leave_one_out(p, self._most) @ (1 / (n - np.arange(self._most + 1)))) / some)

    def bad_count(self) -> Floats:
        law, n = np.zeros(self._clients() + 1), self._clients()
        given = self._law()
        law[: len(given)] = given
        law[n] = 0
        self._log_some()
        return np.asarray(law / law.sum())

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        p = each(self.p, self._clients())
        with np.errstate(divide="ignore"):
            found = float(np.log(p[list(clients)]).sum())
            if self._most is None:
                return found
            left = self._most - len(clients)
            others = poisson_binomial(np.delete(p, list(clients)), left).sum() if left >= 0 else 0.0
            return float(found + np.log(others) - np.log(self._law().sum()))

    def among(self, clients: Sequence[int]) -> HonestPrior:
        if self._most is not None:
            return super().among(clients)
        ids = ids_within("among", clients, self._clients())
        return Independent(tuple(each(self.p, self._clients())[ids].tolist()))

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        n = self._clients()
        ids = ids_within("given_bad", clients, n, some=False)
        if self._log_all_bad(ids) == -np.inf:
            raise ConfigError(f"independent: clients {ids} are not all bad with any probability")
        p = np.array(each(self.p, n))
        p[ids] = 1.0
        return Independent(tuple(p.tolist()), at_most=self._most)
