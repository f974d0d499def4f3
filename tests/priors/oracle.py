"""All honest sets of a few clients and their probabilities, straight from each law's definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from bezoar.priors import Count, Explicit, Groups, HonestPrior, Independent, Ising, KnownBad, Mixture, Subsets


def every_set(n: int) -> np.ndarray[Any, Any]:
    """All 2^n sets, the empty one as well."""
    return np.array(list(itertools.product([False, True], repeat=n)))


def mass(prior: HonestPrior, honest: np.ndarray[Any, Any]) -> float:
    """Probability of one set, not given that it has a member."""
    n = len(honest)
    bad = [i for i in range(n) if not honest[i]]
    match prior:
        case Independent():
            p = prior.p if isinstance(prior.p, tuple) else (prior.p,) * n
            most = (n + 1) // 2 - 1 if prior.at_most == "minority" else n if prior.at_most is None else prior.at_most
            if len(bad) > most:
                return 0.0
            chance = math.prod(1 - p[i] if honest[i] else p[i] for i in range(n))
            if most >= n:
                return chance
            return chance / sum(
                math.prod(1 - p[i] if s[i] else p[i] for i in range(n)) for s in every_set(n) if n - s.sum() <= most
            )
        case Subsets():
            return 1 / math.comb(n, prior.f) if len(bad) == prior.f else 0.0
        case Count():
            return prior.p[len(bad)] / math.comb(n, len(bad)) if len(bad) < len(prior.p) else 0.0
        case Explicit():
            return sum(p for ids, p in zip(prior.bad, prior.p, strict=True) if set(ids) == set(bad))
        case Groups():
            labels = prior.labels or tuple(g for g, m in enumerate(prior.sizes or ()) for _ in range(m))
            names = list(dict.fromkeys(labels))
            found = 1.0
            for g, name in enumerate(names):
                p = prior.p[g] if isinstance(prior.p, tuple) else prior.p
                r = prior.within[g] if isinstance(prior.within, tuple) else prior.within
                fell = [not honest[i] for i in range(n) if labels[i] == name]
                assert p is not None
                found *= p * math.prod(r if b else 1 - r for b in fell) + (0 if any(fell) else 1 - p)
            return found
        case Ising():
            p = prior.p if isinstance(prior.p, tuple) else (prior.p,) * n
            h = prior.fields or [math.log((1 - q) / q) / 2 for q in p]  # type: ignore[operator]
            return ising(h, prior.edges, honest) / sum(ising(h, prior.edges, s) for s in every_set(n))
        case Mixture():
            if not honest.any():
                return 0.0
            return sum(
                c * mass(part, honest) / (1 - mass(part, np.zeros(n, dtype=bool)))
                for c, part in zip(prior.p, prior.parts, strict=True)
            )
        case KnownBad():
            others = [i for i in range(n) if i not in prior.bad]
            return 0.0 if honest[list(prior.bad)].any() else mass(prior.rest, honest[others])
    raise TypeError(prior)


def ising(h: Any, edges: Any, honest: np.ndarray[Any, Any]) -> float:
    s = np.where(honest, 1.0, -1.0)
    return math.exp(float(np.dot(h, s)) + sum(c * s[i] * s[j] for i, j, c in edges))


def law(prior: HonestPrior) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All non-empty sets with their probabilities."""
    sets = every_set(prior.n or 0)[1:]
    p = np.array([mass(prior, s) for s in sets])
    return sets, p / p.sum()
