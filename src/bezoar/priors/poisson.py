"""The number of successes among independent trials, and who they were."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bezoar.priors.family import Floats, Masks


def poisson_binomial(p: Floats, most: int | None = None) -> Floats:
    """P(k of the independent events with probabilities p [n] happen), k = 0..most (n): all terms positive, O(n most).

    >>> poisson_binomial(np.array([0.5, 0.5])).tolist()
    [0.25, 0.5, 0.25]
    """
    law = np.zeros(1 + (len(p) if most is None else min(most, len(p))))
    law[0] = 1.0
    for k, chance in enumerate(p):
        top = min(k + 2, len(law))
        law[1:top] = law[1:top] * (1 - chance) + law[: top - 1] * chance
        law[0] *= 1 - chance
    return law


def leave_one_out(p: Floats, most: int) -> Floats:
    """:func:`poisson_binomial` of all but i, for every i: [n, most + 1], O(n most log n).

    Halves are split again and again, and each is handed the law of all outside it: products only, no division that
    would lose digits.
    """
    found = np.zeros((len(p), most + 1))
    todo: list[tuple[int, int, Floats]] = [(0, len(p), np.ones(1))]
    while todo:
        start, stop, outside = todo.pop()
        if stop - start == 1:
            found[start, : len(outside)] = outside
            continue
        middle = (start + stop) // 2
        for a, b, other in ((start, middle, p[middle:stop]), (middle, stop, p[start:middle])):
            todo.append((a, b, np.convolve(outside, poisson_binomial(other, most))[: most + 1]))
    return found


def drawn_given_count(p: Floats, bad: NDArray[np.int64], rng: np.random.Generator) -> Masks:
    """Who is honest [k, n], given that ``bad[j]`` are not in draw j; from the last client to the first, exactly."""
    n, most = len(p), int(bad.max())
    # laws[i] is that of the first i clients.
    laws = np.zeros((n + 1, most + 2))
    laws[0, 1] = 1.0
    for i, chance in enumerate(p):
        laws[i + 1, 1:] = laws[i, 1:] * (1 - chance) + laws[i, :-1] * chance
    left = bad.astype(np.int64)
    honest = np.ones((len(bad), n), dtype=np.bool_)
    for i in range(n - 1, -1, -1):
        fell = laws[i, left] * p[i] > rng.random(len(left)) * laws[i + 1, left + 1]
        honest[:, i] = ~fell
        left = left - fell
    return honest
