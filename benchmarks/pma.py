"""What the posterior mean and guarded SIP cost, next to one Gram product.

    python benchmarks/pma.py                   # d=1,000,000, float32; n=20 and 100; 5, 1,000 and 10,000 candidate sets

References, in the same run and interleaved: ``gram`` is the library's own matrix of squared distances from the bare
tensor, checks for unusable rows included, which every rule that looks at distances pays; ``X @ X.T`` the product alone,
``mean`` is ``torch.mean``. The ratio is the median, over turns, of a rule's time over that of ``gram`` in the same
turn; the target is at most 1.2 for the posterior mean. Guarded SIP is compared with SIP plus ``gram``, both with the
mean as their base, at 5 sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Timing, interleave, table

from bezoar.aggregation import SIP, GuardedSIP, Mean, PosteriorMean
from bezoar.priors import Family
from bezoar.updates.convert import as_updates

TARGET = 1.2


def candidates(n: int, k: int) -> Family:
    """k different sets of about 3/4 of n clients; everybody first."""
    draws = np.random.default_rng(0)
    honest = np.unique(draws.random((2 * k, n)) < 0.75, axis=0)
    honest = honest[honest.sum(1) > n // 2][draws.permutation(len(honest[honest.sum(1) > n // 2]))[: k - 1]]
    return Family.uniform(np.concatenate([np.ones((1, n), dtype=np.bool_), honest]))


def distances(values: torch.Tensor) -> object:
    """The library's Gram product."""
    rows, _ = as_updates(values)
    rows.finite()
    return rows.squared_distances()


def ratio(own: Timing, *references: Timing) -> float:
    """The median, over turns, of a subject's time over that of the references together."""
    turns: list[tuple[float, ...]] = list(zip(own.seconds, *(other.seconds for other in references), strict=True))
    return statistics.median(turn[0] / sum(turn[1:]) for turn in turns)


def measure(n: int, d: int, sets: list[int], repeats: int) -> dict[str, Any]:
    """The table for n rows."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    few = candidates(n, 5)
    calls: dict[str, Callable[[], object]] = {
        "gram": partial(distances, values),
        "X @ X.T": lambda: values @ values.T,
        "mean": lambda: values.mean(0),
    }
    calls |= {f"posterior mean, K={k}": partial(PosteriorMean(candidates(n, k)), values) for k in sets}
    calls |= {"sip(mean), K=5": partial(SIP(few, Mean()), values)}
    calls |= {"guarded sip(mean), K=5": partial(GuardedSIP(few, Mean()), values)}
    timings = interleave(calls, repeats, torch.device("cpu"))
    rows, record = [], {}
    for name, timing in timings.items():
        record[name] = {"milliseconds": 1e3 * timing.median, "of_gram": ratio(timing, timings["gram"])}
        rows.append([name, f"{1e3 * timing.median:.1f}", f"{record[name]['of_gram']:.2f}"])
    guarded = ratio(timings["guarded sip(mean), K=5"], timings["sip(mean), K=5"], timings["gram"])
    record["guarded sip(mean), K=5"]["of_sip_and_gram"] = guarded
    print(f"n={n}")
    print(table(["subject", "ms", "/ gram"], rows))
    print(f"guarded sip / (sip + gram): {guarded:.2f}\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="*", default=[20, 100])
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, nargs="*", default=[5, 1_000, 10_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"d={options.d}, float32, {options.threads} threads, torch {torch.__version__}; target {TARGET} x gram\n")
    record = {str(n): measure(n, options.d, options.sets, options.repeats) for n in options.n}
    if options.json:
        setting = {"d": options.d, "threads": options.threads, "torch": torch.__version__}
        options.json.write_text(json.dumps({"setting": setting, "figures": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
