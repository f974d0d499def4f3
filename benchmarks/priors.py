"""What exact weights of priors cost, next to one pass of logarithms over as many numbers.

    python benchmarks/priors.py

The reference of every row is measured in the same run: ``numpy.log`` over nodes x clients numbers, n/2 x n of them,
which is what evaluating the integrand takes at the least. For Ising models that are enumerated it is ``numpy.exp`` over
their 2^n states.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bezoar.priors import Groups, HonestPrior, Independent, Ising
from bezoar.priors.quadrature import gauss_legendre


def seconds(work: Callable[[], Any], turns: int = 5) -> float:
    """Least time of a few calls."""
    found = []
    for _ in range(turns):
        gauss_legendre.cache_clear()
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def logs(entries: int) -> None:
    """Logarithms of ``entries`` numbers, a million at a time."""
    part = np.linspace(0.1, 1.0, min(entries, 10**6))
    for _ in range(entries // len(part)):
        np.log(part)


def main() -> None:
    rates = np.random.default_rng(0).uniform(0.01, 0.5, 10_000).tolist()
    ring = tuple((i, (i + 1) % 20, 0.4) for i in range(20))
    chain = tuple((i, i + 1, 0.4) for i in range(999))
    subjects: list[tuple[str, Callable[[], HonestPrior], Callable[[], Any]]] = [
        ("independent, n = 1,000", lambda: Independent(tuple(rates[:1000])), lambda: logs(500 * 1000)),
        ("independent, n = 10,000", lambda: Independent(tuple(rates)), lambda: logs(5000 * 10_000)),
        (
            "independent, minority, n = 1,000",
            lambda: Independent(tuple(rates[:1000]), None, "minority"),
            lambda: logs(500 * 1000),
        ),
        ("groups, 1,000 of 10", lambda: Groups((10,) * 1000, tuple(rates[:1000])), lambda: logs(5000 * 1000)),
        ("ising, ring of 20", lambda: Ising(0.2, ring, clients=20), lambda: np.exp(np.zeros(2**20))),
        ("ising, chain of 1,000", lambda: Ising(0.2, chain, clients=1000), lambda: logs(500 * 1000)),
    ]
    print(f"{'weights of':35}{'seconds':>9}{'reference':>11}{'ratio':>8}")
    for name, make, reference in subjects:
        took, base = seconds(lambda make=make: make().weights()), seconds(reference)  # type: ignore[misc]
        print(f"{name:35}{took:9.3f}{base:11.4f}{took / base:8.1f}")


if __name__ == "__main__":
    main()
