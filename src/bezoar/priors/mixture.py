"""One of several priors holds, it is not known which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from bezoar.errors import ConfigError
from bezoar.priors.base import ENUMERABLE, HonestPrior, likeliest, ordered
from bezoar.priors.checks import check_law, check_probability, ids_within
from bezoar.priors.family import Family, Floats, Masks
from bezoar.priors.independent import Independent
from bezoar.priors.known_bad import build, table
from bezoar.registry import holds


def _build_all(tables: Any) -> tuple[HonestPrior, ...]:
    if not isinstance(tables, list | tuple):
        raise ConfigError(f"mixture: parts must be a list of priors, got {tables!r}")
    return tuple(build(one) for one in tables)


def _table_all(parts: tuple[HonestPrior, ...]) -> list[dict[str, Any]]:
    return [table(part) for part in parts]


@dataclass(frozen=True)
class Mixture(HonestPrior):
    r"""The honest set comes from the prior ``parts[k]`` with probability ``p[k]``.

    Every part is given that somebody is honest. Weights, probabilities and the law of \|B\| are the parts' mixed.

    >>> Mixture((Independent((0.0, 0.0)), Independent((0.0, 1.0))), p=(0.5, 0.5)).weights().tolist()
    [0.75, 0.25]
    """

    parts: tuple[HonestPrior, ...] = holds(_build_all, _table_all)
    p: tuple[float, ...]  # type: ignore[misc]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.p) or not self.parts:
            raise ConfigError(f"mixture: needs one p a part, got {len(self.parts)} parts and {len(self.p)} p")
        check_law("mixture", self.p)
        numbers = sorted({part.n for part in self.parts if part.n is not None})
        if len(numbers) > 1:
            raise ConfigError(f"mixture: parts must be about equally many clients, got {numbers}")

    @property
    def n(self) -> int | None:
        numbers = {part.n for part in self.parts}
        return None if None in numbers else next(iter(numbers))

    def of(self, n: int) -> Self:
        return self if self.n == n else replace(self, parts=tuple(part.of(n) for part in self.parts))

    def _chances(self) -> Floats:
        return np.asarray(self.p) / sum(self.p)

    def _draw(self, times: int, rng: np.random.Generator) -> Masks:
        which = rng.choice(len(self.p), size=times, p=self._chances())
        honest = np.empty((times, self._clients()), dtype=np.bool_)
        for k, part in enumerate(self.parts):
            if (which == k).any():
                honest[which == k] = part._draw_some(int((which == k).sum()), rng)
        return honest

    def _log_mass(self, honest: Masks) -> Floats:
        with np.errstate(divide="ignore"):
            chances = np.log(self._chances())
        found = [log + np.asarray(part.log_prob(honest)) for log, part in zip(chances, self.parts, strict=True)]
        return np.asarray(np.logaddexp.reduce(found, axis=0))

    def weights(self) -> Floats:
        return np.asarray(self._chances() @ np.array([part.weights() for part in self.parts]))

    def bad_count(self) -> Floats:
        return np.asarray(self._chances() @ np.array([part.bad_count() for part in self.parts]))

    def support(self, delta: float = 0.0) -> Family:
        """The smallest family, by enumeration up to n = 22; beyond, it is cut from the union of the parts' families.

        A set outside the parts' families for delta' has a probability below tau, the sum over parts of p_k times the
        least probability in family k. So delta' is lowered until all sets that are needed have more than tau.
        """
        check_probability("support", "delta", delta)
        n, parts = self._clients(), [(c, part) for c, part in zip(self.p, self.parts, strict=True) if c > 0]
        if n <= ENUMERABLE or delta == 0:
            families = [part.support() for _, part in parts]
            return likeliest(self._union(families), delta)
        inner = delta
        while True:
            inner /= 4
            families = [part.support(inner) for _, part in parts]
            found = self._union(families)
            # A part's family that is all its sets bounds what is outside by nothing.
            tau = sum(
                c * (0.0 if family.mass >= 1 - 1e-12 else float(np.exp(family.log_prob.min())))
                for (c, _), family in zip(parts, families, strict=True)
            )
            mass = np.cumsum(np.exp(found.log_prob))
            count = int(np.searchsorted(mass, (1 - delta) * (1 - 1e-12))) + 1
            if count <= len(found) and np.exp(found.log_prob[count - 1]) >= tau:
                return Family(found.honest[:count], found.log_prob[:count])

    def _union(self, families: list[Family]) -> Family:
        honest = np.unique(np.concatenate([family.honest for family in families]), axis=0)
        return ordered(honest, np.asarray(self.log_prob(honest)))

    def _log_all_bad(self, clients: Sequence[int]) -> float:
        with np.errstate(divide="ignore"):
            return float(
                np.logaddexp.reduce(np.log(self._chances()) + [_given_some(part, clients) for part in self.parts])
            )

    def among(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("among", clients, self._clients())
        # Somebody of the cohort is honest with probability 1 - P(all of it are bad).
        some = np.array([1 - np.exp(_given_some(part, ids)) for part in self.parts])
        return self._again(some, lambda part: part.among(ids), f"among: all of the clients {ids} are bad for certain")

    def given_bad(self, clients: Sequence[int]) -> HonestPrior:
        ids = ids_within("given_bad", clients, self._clients(), some=False)
        if not ids:
            return self
        chances = np.exp([_given_some(part, ids) for part in self.parts])
        return self._again(
            chances, lambda part: part.given_bad(ids), f"clients {ids} are not all bad with any probability"
        )

    def _again(self, likelihood: Floats, change: Any, wrong: str) -> Mixture:
        p = self._chances() * likelihood
        if not p.sum() > 1e-14:
            raise ConfigError(f"mixture: {wrong}")
        kept = np.flatnonzero(p > 1e-15 * p.sum())
        p = p[kept] / p[kept].sum()
        return Mixture(tuple(change(self.parts[k]) for k in kept), tuple(p.tolist()))


def _given_some(part: HonestPrior, clients: Sequence[int]) -> float:
    """Log P(all of ``clients`` are bad | somebody is honest)."""
    n = part._clients()
    every = np.exp(part._log_all_bad(range(n))) if part._log_some() < 0 else 0.0
    with np.errstate(divide="ignore"):
        chance = np.exp(part._log_all_bad(clients)) - every
        return float(np.log(max(0.0, chance)) - part._log_some())


def contaminated(prior: HonestPrior, epsilon: float = 0.1, p0: float = 0.1) -> Mixture:
    r"""``prior`` with probability 1 - epsilon, else independent clients at rate p0, fewer than half of them bad.

    What to give to rules that must survive a wrong prior: no set with an honest majority is impossible.

    >>> guarded = contaminated(Independent(0.0, clients=3))
    >>> bool(guarded.log_prob([True, True, False]) > -float("inf"))
    True
    """
    for name, value in (("epsilon", epsilon), ("p0", p0)):
        check_probability("contaminated", name, value)
    return Mixture((prior, Independent(p0, prior.n, "minority")), (1 - epsilon, epsilon))
