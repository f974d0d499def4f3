"""What expected guarantees cost: all honest sets' bounds at once against one set after the other."""

from __future__ import annotations

import time

import numpy as np

from bezoar.aggregation import TrimmedMean
from bezoar.certify import Looks, expected_guarantee
from bezoar.priors import Independent


def main() -> None:
    rounds, f = 200, 4
    print(f"{rounds} looks, trimmed mean f={f}, independent clients at rate 0.1, all honest sets")
    for n in (10, 12, 14):
        draws = np.random.default_rng(0)
        scale = np.linspace(2, 1, rounds)[:, None, None]
        gradients = draws.normal(size=(rounds, n, 30)) * scale + draws.normal(size=(rounds, 1, 30))
        looks = Looks(gradients @ gradients.transpose(0, 2, 1))
        prior, rule = Independent(0.1, clients=n), TrimmedMean(f=f)
        seconds = {}
        for name, g in (("at once", looks), ("one by one", lambda mask, looks=looks: looks(mask))):
            begin = time.perf_counter()
            value = expected_guarantee(rule, prior, g, mu=0.5).value
            seconds[name] = time.perf_counter() - begin
        once, one = seconds["at once"], seconds["one by one"]
        print(
            f"n={n}: {2**n - 1:6d} sets  {once:.3f} s at once, {one:.3f} s one by one: {one / once:.1f}x ({value:.4f})"
        )


if __name__ == "__main__":
    main()
